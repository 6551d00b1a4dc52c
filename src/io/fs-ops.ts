import * as fsp from 'node:fs/promises'

/**
 * Everything that changes the disk, as a small interface, so that tests can make any single operation fail or can stop the world at it
 * (`fs-faults.ts`). Reading is not part of it: what matters is which states the disk can be left in.
 */
export interface FsOps {
  /** `create`: the file must not exist. `update`: for reading and writing; made if it is missing, kept as it is if not. */
  open(path: string, mode: 'create' | 'update'): Promise<WritableFile>
  rename(from: string, to: string): Promise<void>
  /** Gives `existing` a second name; fails with EEXIST where `path` exists: the atomic "create only if absent". */
  link(existing: string, path: string): Promise<void>
  unlink(path: string): Promise<void>
  /** With its parents; a folder that exists is no error. */
  mkdir(path: string): Promise<void>
  readdir(path: string): Promise<readonly string[]>
  /** Makes the folder's entries (creations, renames, removals) durable. */
  syncDir(path: string): Promise<void>
}

export interface WritableFile {
  /** Writes all bytes at `position`, in one system call unless the kernel takes fewer. The position is always explicit (`pwrite`). */
  write(bytes: Uint8Array, position: number): Promise<void>
  truncate(length: number): Promise<void>
  /** Returns when contents and length are on stable storage. */
  sync(): Promise<void>
  close(): Promise<void>
}

/** The real disk. Errors are Node's own, with `code` and `path`; `fileError` turns them into a `ModalignError`. */
export const nodeFs: FsOps = {
  async open(path, mode) {
    return writableFile(mode === 'create' ? await fsp.open(path, 'wx') : await openForUpdate(path))
  },
  rename: (from, to) => fsp.rename(from, to),
  link: (existing, path) => fsp.link(existing, path),
  unlink: (path) => fsp.unlink(path),
  async mkdir(path) {
    await fsp.mkdir(path, { recursive: true })
  },
  readdir: (path) => fsp.readdir(path),
  async syncDir(path) {
    // Windows cannot open a folder for this; NTFS journals its entries.
    if (process.platform === 'win32') return
    const folder = await fsp.open(path, 'r')
    try {
      await folder.sync()
    } finally {
      await folder.close()
    }
  },
}

/** Not `a+`: Linux ignores the position of a write to a file opened for appending. */
function openForUpdate(path: string): Promise<fsp.FileHandle> {
  const { O_RDWR, O_CREAT } = fsp.constants
  return fsp.open(path, O_RDWR | O_CREAT, 0o666)
}

function writableFile(handle: fsp.FileHandle): WritableFile {
  return {
    async write(bytes, position) {
      let written = 0
      while (written < bytes.length) {
        const { bytesWritten } = await handle.write(bytes, written, bytes.length - written, position + written)
        written += bytesWritten
      }
    },
    truncate: (length) => handle.truncate(length),
    sync: () => handle.sync(),
    close: () => handle.close(),
  }
}
