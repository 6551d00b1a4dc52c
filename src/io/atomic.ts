import { randomBytes } from 'node:crypto'
import { basename, dirname, join } from 'node:path'
import { ModalignError } from '../errors.ts'
import { errnoOf, fileError } from './file-error.ts'
import { type FsOps, nodeFs } from './fs-ops.ts'

export type FileContent = string | Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>

/**
 * Replaces the file at `path`, or makes it, in one step: readers see the old content or the new, whatever happens in between. The bytes go to a temporary
 * file in the same folder, which is synced and then renamed; the folder is synced last. On failure the temporary file is removed and the old file stands;
 * after a crash a temporary file may be left, which {@link removeTemporaries} finds.
 *
 * @throws ModalignError `DISK_FULL`, `DISK_FAILED`, `DISK_READ_ONLY`, `FILE_PERMISSION`, `FILE_MISSING` (the folder), `FILE_LIMIT`
 * @example
 * await writeFileAtomic('run/config.json', JSON.stringify({ epochs: 1 }))
 */
export async function writeFileAtomic(path: string, content: FileContent, { fs = nodeFs }: { readonly fs?: FsOps } = {}): Promise<void> {
  const temporary = temporaryName(path)
  try {
    await writeTemporary(fs, temporary, content)
    await fs.rename(temporary, path)
  } catch (error) {
    throw await withoutTemporary(fs, temporary, fileError(error, path))
  }
  await fs.syncDir(dirname(path)).catch((error: unknown) => {
    throw fileError(error, path)
  })
}

/**
 * As {@link writeFileAtomic}, but for a file that must not exist yet: of several writers exactly one succeeds.
 *
 * @throws ModalignError `FILE_EXISTS` where the file exists; else as `writeFileAtomic`
 * @example
 * await createFileAtomic('a.txt', 'a cat on a mat\n')
 */
export async function createFileAtomic(path: string, content: FileContent, { fs = nodeFs }: { readonly fs?: FsOps } = {}): Promise<void> {
  const temporary = temporaryName(path)
  try {
    await writeTemporary(fs, temporary, content)
    await fs.link(temporary, path)
  } catch (error) {
    throw await withoutTemporary(fs, temporary, fileError(error, path))
  }
  try {
    await fs.unlink(temporary)
    await fs.syncDir(dirname(path))
  } catch (error) {
    throw fileError(error, path)
  }
}

/** Removes what interrupted writes of `path` left behind. Only for the one process that may write it: call it under a lock. Returns how many there were. */
export async function removeTemporaries(path: string, { fs = nodeFs }: { readonly fs?: FsOps } = {}): Promise<number> {
  const prefix = temporaryPrefix(path)
  return removeMatching(
    fs,
    dirname(path),
    (name) => name.startsWith(prefix) && temporaryEnding.test(name.slice(prefix.length - '.tmp-'.length)),
  )
}

/** As {@link removeTemporaries}, for all files of a folder whose names end in `suffix` (at most 40 characters). */
export async function removeTemporariesIn(folder: string, suffix: string, { fs = nodeFs }: { readonly fs?: FsOps } = {}): Promise<number> {
  return removeMatching(
    fs,
    folder,
    (name) => name.startsWith('.') && temporaryEnding.test(name) && name.replace(temporaryEnding, '').endsWith(suffix),
  )
}

const temporaryEnding = /\.tmp-\d+-[0-9a-f]{12}$/

async function removeMatching(fs: FsOps, folder: string, matches: (name: string) => boolean): Promise<number> {
  try {
    const left = (await fs.readdir(folder)).filter(matches)
    for (const name of left) await fs.unlink(join(folder, name))
    return left.length
  } catch (error) {
    throw fileError(error, folder)
  }
}

async function writeTemporary(fs: FsOps, temporary: string, content: FileContent): Promise<void> {
  const file = await fs.open(temporary, 'create')
  try {
    let position = 0
    for await (const chunk of chunksOf(content)) {
      await file.write(chunk, position)
      position += chunk.length
    }
    await file.sync()
  } catch (error) {
    // The first failure is the one to report; a close that fails after it says nothing new.
    await file.close().catch(() => undefined)
    throw error
  }
  await file.close()
}

async function withoutTemporary(fs: FsOps, temporary: string, error: unknown): Promise<unknown> {
  try {
    await fs.unlink(temporary)
    return error
  } catch (second) {
    if (errnoOf(second) === 'ENOENT' || !(error instanceof ModalignError)) return error
    return new ModalignError({
      ...error.details,
      hint: `${error.details.hint ?? 'not written'}; ${temporary} could not be removed either`,
      cause: error,
    })
  }
}

function chunksOf(content: FileContent): Iterable<Uint8Array> | AsyncIterable<Uint8Array> {
  if (typeof content === 'string') return [new TextEncoder().encode(content)]
  return content instanceof Uint8Array ? [content] : content
}

/** A hidden name in the same folder, unique to this call. Only the end of a long name is used: names have at most 255 bytes. */
function temporaryName(path: string): string {
  return join(dirname(path), `${temporaryPrefix(path)}${process.pid}-${randomBytes(6).toString('hex')}`)
}

function temporaryPrefix(path: string): string {
  return `.${[...basename(path)].slice(-40).join('')}.tmp-`
}
