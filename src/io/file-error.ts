import { ModalignError } from '../errors.ts'

interface Meaning {
  readonly code: string
  readonly got: string
  readonly hint?: string
}

const meanings: ReadonlyMap<string, Meaning> = new Map([
  ['ENOENT', { code: 'FILE_MISSING', got: 'nothing at this path', hint: 'check the path' }],
  ['ENOTDIR', { code: 'FILE_MISSING', got: 'a file where a folder is needed', hint: 'check the path' }],
  ['ENAMETOOLONG', { code: 'FILE_MISSING', got: 'a path that is too long' }],
  ['ELOOP', { code: 'FILE_MISSING', got: 'a loop of symbolic links' }],
  ['EISDIR', { code: 'FILE_NOT_REGULAR', got: 'a folder' }],
  ['ENXIO', { code: 'FILE_NOT_REGULAR', got: 'a socket or device' }],
  ['EEXIST', { code: 'FILE_EXISTS', got: 'a file that is already there' }],
  ['EACCES', { code: 'FILE_PERMISSION', got: 'permission denied', hint: 'check who owns the file and its folder' }],
  ['EPERM', { code: 'FILE_PERMISSION', got: 'operation not permitted', hint: 'check who owns the file and its folder' }],
  ['EROFS', { code: 'DISK_READ_ONLY', got: 'a read-only file system' }],
  ['ENOSPC', { code: 'DISK_FULL', got: 'no space left on the disk', hint: 'free some space and run again: what was complete is kept' }],
  ['EDQUOT', { code: 'DISK_FULL', got: 'disk quota used up', hint: 'free some space and run again: what was complete is kept' }],
  ['EFBIG', { code: 'DISK_FULL', got: 'the largest allowed file size reached' }],
  ['EIO', { code: 'DISK_FAILED', got: 'the disk reported an input/output error', hint: 'do not trust this disk; write to another one' }],
  ['ESTALE', { code: 'DISK_FAILED', got: 'a network file that has gone away' }],
  ['EMFILE', { code: 'FILE_LIMIT', got: 'too many open files', hint: 'raise the limit (ulimit -n) or close other programs' }],
  ['ENFILE', { code: 'FILE_LIMIT', got: 'too many open files on this machine' }],
  ['ERR_INVALID_ARG_VALUE', { code: 'FILE_MISSING', got: 'a path with a NUL character' }],
])

/**
 * What a failed file operation means to its user. Errors that are no file system errors come back as they are.
 *
 * @example
 * await readFile(path).catch((error) => { throw fileError(error, path, 'an image') })
 */
export function fileError(error: unknown, file: string, expected?: string): unknown {
  if (!(error instanceof Error) || !('code' in error) || typeof error.code !== 'string' || error instanceof ModalignError) return error
  const meaning = meanings.get(error.code)
  if (meaning === undefined && !('syscall' in error)) return error
  return new ModalignError({ ...(meaning ?? { code: 'FILE_FAILED', got: error.code }), file, expected, cause: error })
}

/** Node's error code, such as `ENOENT`, if there is one. */
export function errnoOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
}
