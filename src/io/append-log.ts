import { stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { ModalignError, unreachable } from '../errors.ts'
import { type ByteSource, fileSource } from './byte-source.ts'
import { errnoOf, fileError } from './file-error.ts'
import { type FsOps, nodeFs, type WritableFile } from './fs-ops.ts'

/** A file that only grows, by whole records. */
export interface AppendLog extends AsyncDisposable {
  readonly path: string
  /** Bytes of complete records. */
  readonly length: number
  /** Bytes of a half-written last record that were cut off when the log was opened. */
  readonly tornBytes: number
  /** Adds complete records with a single write. After a failure the log takes no more; what was there before is kept. */
  append(records: Uint8Array): Promise<void>
  /** Returns when everything appended is on stable storage. */
  sync(): Promise<void>
  /** Syncs and closes. */
  close(): Promise<void>
}

export interface AppendLogOptions {
  readonly fs?: FsOps
  /** A sync happens at the first append after this many milliseconds; 0: at every append. Default 1000. A killed process loses nothing either way; a power cut may lose this much. */
  readonly syncIntervalMs?: number
}

/**
 * Opens the log at `path`, making it if needed, and cuts off a half-written last record. `completeLength` says how many bytes of the file are complete
 * records.
 *
 * @throws ModalignError as `fileError` maps them
 */
export async function openAppendLog(
  path: string,
  completeLength: (source: ByteSource) => Promise<number>,
  { fs = nodeFs, syncIntervalMs = 1000 }: AppendLogOptions = {},
): Promise<AppendLog> {
  const existed = await exists(path)
  let file: WritableFile
  let length = 0
  let tornBytes = 0
  try {
    file = await fs.open(path, 'update')
  } catch (error) {
    throw fileError(error, path)
  }
  try {
    const source = await fileSource(path)
    length = await completeLength(source)
    tornBytes = source.size - length
    if (tornBytes > 0) {
      await file.truncate(length)
      await file.sync()
    }
    if (!existed) await fs.syncDir(dirname(path))
  } catch (error) {
    await file.close().catch(() => undefined)
    throw fileError(error, path)
  }
  return appendTo(file, { path, length, tornBytes, syncIntervalMs })
}

function appendTo(
  file: WritableFile,
  opened: { readonly path: string; readonly length: number; readonly tornBytes: number; readonly syncIntervalMs: number },
): AppendLog {
  const { path, tornBytes, syncIntervalMs } = opened
  let length = opened.length
  let state: 'open' | 'failed' | 'closed' = 'open'
  let syncedLength = length
  let syncedAt = performance.now()

  async function guarded(run: () => Promise<void>): Promise<void> {
    if (state !== 'open') unreachable(`${path}: used after it ${state === 'failed' ? 'failed' : 'was closed'}`)
    try {
      await run()
    } catch (error) {
      state = 'failed'
      throw fileError(error, path)
    }
  }
  async function sync(): Promise<void> {
    if (syncedLength === length) return
    // A failed sync is never tried again: the kernel may have dropped the pages, and a second call would report success.
    await file.sync()
    syncedLength = length
    syncedAt = performance.now()
  }
  const log: AppendLog = {
    path,
    tornBytes,
    get length() {
      return length
    },
    append: (records) =>
      guarded(async () => {
        if (records.length === 0) return
        try {
          await file.write(records, length)
        } catch (error) {
          // Take the torn record back at once. If that fails too, the next opening does it; the first failure is the one to report.
          await file.truncate(length).catch(() => undefined)
          throw error
        }
        length += records.length
        if (performance.now() - syncedAt >= syncIntervalMs) await sync()
      }),
    sync: () => guarded(sync),
    async close() {
      if (state === 'closed') return
      const failed = state === 'failed'
      try {
        if (!failed) await guarded(sync)
      } finally {
        state = 'closed'
        await file.close().catch((error: unknown) => {
          throw fileError(error, path)
        })
      }
    },
    [Symbol.asyncDispose]: () => log.close(),
  }
  return log
}

async function exists(path: string): Promise<boolean> {
  try {
    const found = await stat(path)
    if (!found.isFile()) {
      throw new ModalignError({
        code: 'FILE_NOT_REGULAR',
        file: path,
        got: found.isDirectory() ? 'a folder' : 'a pipe, socket or device',
        expected: 'a file to append to',
      })
    }
    return true
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false
    throw fileError(error, path)
  }
}
