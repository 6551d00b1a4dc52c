/** A large file that comes over a connection that may break: it goes on where it stopped, and has its name only when every byte is known to be right. */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { stat, symlink } from 'node:fs/promises'
import { dirname, relative } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ModalignError } from '../errors.ts'
import { errnoOf, fileError } from './file-error.ts'
import { fillOnce } from './fill-once.ts'
import { type FsOps, nodeFs, type WritableFile } from './fs-ops.ts'

export interface Arriving {
  /** Where the first chunk belongs: what was asked for, or 0 from a source that cannot go on. */
  readonly from: number
  readonly chunks: AsyncIterable<Uint8Array>
}

export interface ResumableFileOptions {
  /** Exactly so many bytes; a source that gives more is cut off. */
  readonly bytes: number
  /** Of the whole file, in hexadecimal; `prefix` goes into it before the first byte. */
  readonly digest: { readonly algorithm: 'sha1' | 'sha256'; readonly hex: string; readonly prefix?: string }
  /** Bytes from a place on. */
  readonly read: (from: number) => Promise<Arriving>
  /** Told how many bytes are there; also what an earlier attempt left. */
  readonly onBytes?: ((present: number) => void) | undefined
  /** Whether a failure may pass: it is tried again, up to five times in a row without a new byte. */
  readonly isPassing: (error: unknown) => boolean
  readonly retryMs?: number | undefined
  readonly pollMs?: number | undefined
  readonly signal?: AbortSignal | undefined
  readonly fs?: FsOps
}

const mostAttempts = 5

/**
 * Makes the file at `path` from a source that can begin anywhere. Of several processes one writes and the others wait. What an interrupted run left is kept beside it, as
 * `NAME.modalign-part`, and gone on from; if the whole then proves wrong, it is read once more from its beginning.
 *
 * @throws ModalignError `HTTP_CHECKSUM`, `HTTP_LENGTH`, `DISK_*`, what `read` throws
 * @example
 * await resumableFile('blobs/abc', { bytes: 10, digest: { algorithm: 'sha256', hex }, read: (from) => download(url, from), isPassing: () => false })
 */
export async function resumableFile(path: string, options: ResumableFileOptions): Promise<void> {
  const { fs = nodeFs, signal, pollMs } = options
  await fillOnce(path, () => fill(path, options, fs), { fs, signal, pollMs })
}

async function fill(path: string, options: ResumableFileOptions, fs: FsOps): Promise<void> {
  const part = `${path}.modalign-part`
  try {
    const file = await fs.open(part, 'update')
    try {
      const kept = (await stat(part)).size
      const resumed = kept > 0 && kept <= options.bytes
      if (kept > options.bytes) await file.truncate(0)
      let found = await arrive(part, file, resumed ? kept : 0, options)
      if (found !== options.digest.hex && resumed) {
        await file.truncate(0)
        found = await arrive(part, file, 0, options)
      }
      if (found !== options.digest.hex) {
        await file.truncate(0)
        throw new ModalignError({
          code: 'HTTP_CHECKSUM',
          file: path,
          got: `${options.digest.algorithm} ${found}`,
          expected: options.digest.hex,
          hint: 'the server or something on the way changed the file; nothing of it was kept',
        })
      }
      await file.sync()
    } finally {
      await file.close()
    }
    await fs.rename(part, path)
    await fs.syncDir(dirname(path))
  } catch (error) {
    throw fileError(error, path)
  }
}

/** Fills the file up and returns its digest. */
async function arrive(part: string, file: WritableFile, kept: number, options: ResumableFileOptions): Promise<string> {
  const { bytes, read, onBytes, isPassing, signal, retryMs = 500 } = options
  const { algorithm, prefix = '' } = options.digest
  const start = () => createHash(algorithm).update(prefix)
  let hash = start()
  if (kept > 0) for await (const chunk of createReadStream(part, { end: kept - 1 })) hash.update(chunk)
  let present = kept
  onBytes?.(present)
  for (let attempt = 1; present < bytes; attempt++) {
    const before = present
    try {
      const { from, chunks } = await read(present)
      if (from !== present) {
        await file.truncate(0)
        hash = start()
        present = 0
      }
      for await (const chunk of chunks) {
        signal?.throwIfAborted()
        if (present + chunk.length > bytes) throw wrongLength(part, `more than ${bytes} bytes`, bytes)
        await file.write(chunk, present)
        hash.update(chunk)
        present += chunk.length
        onBytes?.(present)
      }
      if (present < bytes) throw wrongLength(part, `${present} bytes, then the end`, bytes)
    } catch (error) {
      signal?.throwIfAborted()
      if (present > before) attempt = 0
      const cut = error instanceof ModalignError && error.code === 'HTTP_LENGTH' && present < bytes
      if (!(cut || isPassing(error)) || attempt >= mostAttempts) throw error
      await sleep(retryMs * 2 ** attempt, undefined, signal === undefined ? {} : { signal })
    }
  }
  return hash.digest('hex')
}

function wrongLength(file: string, got: string, bytes: number): ModalignError {
  return new ModalignError({ code: 'HTTP_LENGTH', file, got, expected: `${bytes} bytes` })
}

/**
 * A second name for a file: a relative symbolic link, or a hard link where the system allows none. One that is there stays.
 *
 * @throws ModalignError `DISK_*`, `FILE_PERMISSION`
 * @example
 * await linkFile('blobs/abc', 'snapshots/main/config.json')
 */
export async function linkFile(existing: string, path: string, { fs = nodeFs }: { readonly fs?: FsOps } = {}): Promise<void> {
  try {
    await fs.mkdir(dirname(path))
    await symlink(relative(dirname(path), existing), path).catch((error: unknown) => {
      if (errnoOf(error) !== 'EPERM') throw error
      return fs.link(existing, path)
    })
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw fileError(error, path)
  }
}
