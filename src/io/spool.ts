/** Bytes as a file for a program that must seek in what it reads, without leaving one behind. */
import { type FileHandle, mkdtemp, open, rm, unlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileError } from './file-error.ts'

export interface SpooledFile extends AsyncDisposable {
  /** Absolute; readable by programs of the same user until it is disposed. */
  readonly path: string
}

/**
 * Writes bytes into a file that only this user can read, in the system's folder for temporary files. On Linux the file has no name any more when this returns (it is
 * reached through the process's descriptor), so that nothing is left even if the process is killed; elsewhere it is removed when it is disposed.
 *
 * @throws {ModalignError} `DISK_FULL` and what else `fileError` makes of a failed write.
 *
 * @example
 * await using file = await spool(bytes)
 * await runFfmpeg({ input: { file: file.path }, ...request })
 */
export async function spool(bytes: Uint8Array): Promise<SpooledFile> {
  const folder = await mkdtemp(path.join(tmpdir(), 'modalign-')).catch((error: unknown) => {
    throw fileError(error, tmpdir(), 'a folder for temporary files')
  })
  const file = path.join(folder, 'medium')
  let handle: FileHandle | undefined
  const remove = async (): Promise<void> => {
    await handle?.close()
    await rm(folder, { recursive: true, force: true })
  }
  try {
    await writeFile(file, bytes, { mode: 0o600 })
    if (process.platform !== 'linux') return { path: file, [Symbol.asyncDispose]: remove }
    const opened = await open(file, 'r')
    handle = opened
    await unlink(file)
    await rm(folder, { recursive: true })
    return { path: `/proc/${process.pid}/fd/${opened.fd}`, [Symbol.asyncDispose]: () => opened.close() }
  } catch (error) {
    await remove()
    throw fileError(error, file)
  }
}
