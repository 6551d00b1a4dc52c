import { type BigIntStats, closeSync, constants, fstatSync, open, read } from 'node:fs'
import { realpath } from 'node:fs/promises'
import { resolve } from 'node:path'
import { promisify } from 'node:util'
import { ModalignError } from '../errors.ts'
import { fileError } from './file-error.ts'
import type { ByteSource } from './memory-source.ts'

export { type ByteSource, memorySource } from './memory-source.ts'

// Opening and reading wait for disks and go to Node's threads, which costs more than either; what the open file knows of itself, and closing it, wait for nothing.
const openFile = promisify(open)
const readFrom = promisify(read)

/** A file. `path`: absolute, with symbolic links resolved. */
export interface FileSource extends ByteSource {
  readonly path: string
}

/** One `read` system call takes at most 2 GiB - 4 KiB on Linux. */
const largestRead = 2 ** 30

/**
 * A file as a {@link ByteSource}. No descriptor stays open between reads, so there is nothing to close; each read makes sure that the file is still the one
 * that was opened first (device, inode, size, modification time).
 *
 * @throws ModalignError `FILE_MISSING`, `FILE_PERMISSION`, `FILE_NOT_REGULAR` (a folder, pipe, socket or device); on reading also `FILE_CHANGED`
 * @example
 * const source = await fileSource('model.safetensors')
 * const firstBytes = await source.read(0, 8)
 */
export async function fileSource(path: string): Promise<FileSource> {
  const absolute = resolve(path)
  try {
    const real = await realpath(absolute)
    const opened = await withFile(real, path, async (_, identity) => identity)
    return {
      path: real,
      size: opened.size,
      read: (offset, length) =>
        withFile(real, path, async (descriptor, now) => {
          if (now.size !== opened.size) throw changed(path, `${now.size} bytes instead of ${opened.size}`)
          if (now.inode !== opened.inode || now.device !== opened.device) throw changed(path, 'another file under the same name')
          if (now.modified !== opened.modified) throw changed(path, 'a newer modification time')
          checkRange(offset, length, opened.size, path)
          return filled(descriptor, offset, length, path)
        }),
    }
  } catch (error) {
    throw fileError(error, path)
  }
}

/**
 * A file's bytes, read at once with one descriptor: half the system calls of a {@link fileSource}.
 *
 * @returns the size alone where that is more than `mostBytes`
 * @throws ModalignError `FILE_MISSING`, `FILE_PERMISSION`, `FILE_NOT_REGULAR`, `FILE_CHANGED` while it was read
 * @example
 * const { bytes } = await readWhole('cat.jpg', 2 ** 20)
 */
export async function readWhole(path: string, mostBytes: number): Promise<{ readonly size: number; readonly bytes?: Uint8Array }> {
  const absolute = resolve(path)
  return withFile(absolute, path, async (descriptor, opened) => {
    const { size } = opened
    if (size > mostBytes) return { size }
    const bytes = await filled(descriptor, 0, size, path)
    const now = identityOf(fstatSync(descriptor, { bigint: true }))
    if (now.size !== size) throw changed(path, `${now.size} bytes instead of ${size}`)
    if (now.modified !== opened.modified) throw changed(path, 'a newer modification time')
    return { size, bytes }
  })
}

async function filled(descriptor: number, offset: number, length: number, path: string): Promise<Uint8Array> {
  const bytes = new Uint8Array(length)
  let at = 0
  while (at < length) {
    const { bytesRead } = await readFrom(descriptor, bytes, at, Math.min(length - at, largestRead), offset + at)
    if (bytesRead === 0) throw changed(path, `an end at byte ${offset + at}`)
    at += bytesRead
  }
  return bytes
}

function changed(path: string, what: string): ModalignError {
  return new ModalignError({
    code: 'FILE_CHANGED',
    file: path,
    got: what,
    expected: 'the file as it was when it was opened',
    hint: 'run again once nobody writes it',
  })
}

interface Identity {
  readonly device: bigint
  readonly inode: bigint
  readonly modified: bigint
  readonly size: number
}

async function withFile<T>(real: string, path: string, use: (descriptor: number, identity: Identity) => Promise<T>): Promise<T> {
  // O_NONBLOCK: opening a named pipe must not wait for its writer. Windows has no such flag (undefined there).
  const descriptor = await openFile(real, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0)).catch((error: unknown) => {
    throw fileError(error, path)
  })
  try {
    const stat = fstatSync(descriptor, { bigint: true })
    if (!stat.isFile()) {
      throw new ModalignError({
        code: 'FILE_NOT_REGULAR',
        file: path,
        got: stat.isDirectory() ? 'a folder' : 'a pipe, socket or device',
        expected: 'a regular file',
      })
    }
    return await use(descriptor, identityOf(stat))
  } catch (error) {
    throw fileError(error, path)
  } finally {
    closeSync(descriptor)
  }
}

function identityOf(stat: BigIntStats): Identity {
  return { device: stat.dev, inode: stat.ino, modified: stat.mtimeNs, size: Number(stat.size) }
}

function checkRange(offset: number, length: number, size: number, file: string): void {
  if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0 || offset + length > size) {
    throw new ModalignError({
      code: 'FILE_RANGE',
      file,
      got: `${length} bytes from byte ${offset}`,
      expected: `a range within ${size} bytes`,
    })
  }
}
