import { ModalignError } from '../errors.ts'
import { type FileContent, removeTemporaries, writeFileAtomic } from './atomic.ts'
import { type FillOnceOptions, fillOnce } from './fill-once.ts'
import { nodeFs } from './fs-ops.ts'

/**
 * Makes a file that can always be made again, once: of several processes that want it, one writes it and the others wait. The name has to say everything that the
 * content depends on. The file is whole or absent; what a process that died has left is taken away.
 *
 * @param content called only where the file has to be made
 * @throws ModalignError `DISK_FULL`, `DISK_READ_ONLY`, `FILE_PERMISSION` and what else writing throws, with a hint at `MODALIGN_CACHE`; what `content` throws; an AbortError
 * @example
 * await cachedFile(join(cacheFolder(), 'weights', `${fingerprint}.safetensors`), () => safetensorsChunks(tensors))
 */
export async function cachedFile(
  path: string,
  content: () => FileContent,
  { fs = nodeFs, signal, pollMs }: FillOnceOptions = {},
): Promise<void> {
  try {
    await fillOnce(
      path,
      async () => {
        await removeTemporaries(path, { fs })
        await writeFileAtomic(path, content(), { fs })
      },
      { fs, signal, pollMs },
    )
  } catch (error) {
    throw withHint(error)
  }
}

const diskCodes: ReadonlySet<string> = new Set([
  'DISK_FULL',
  'DISK_READ_ONLY',
  'DISK_FAILED',
  'FILE_PERMISSION',
  'FILE_MISSING',
  'FILE_EXISTS',
  'FILE_NOT_REGULAR',
  'FILE_FAILED',
])

function withHint(error: unknown): unknown {
  if (!(error instanceof ModalignError) || !diskCodes.has(error.code)) return error
  return new ModalignError({ ...error.details, hint: 'MODALIGN_CACHE names another folder for such files', cause: error })
}
