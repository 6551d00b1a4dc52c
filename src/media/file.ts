/** Reading a medium's bytes from disk: regular files only, within a root, within a size. */
import { opendir, realpath } from 'node:fs/promises'
import path from 'node:path'
import { ModalignError } from '../errors.ts'
import { type FileSource, fileSource, readWhole } from '../io/byte-source.ts'
import { errnoOf, fileError } from '../io/file-error.ts'

/**
 * The real path of `relativePath` below `root`. Dataset records, uploads and queue jobs name files this way, and none of them may leave
 * the root: not by `..`, not absolutely, not by a URL, not through a symbolic link.
 *
 * @throws {ModalignError} `PATH_EMPTY`, `PATH_NUL`, `PATH_URL`, `PATH_ABSOLUTE`, `PATH_ESCAPE`; `FILE_MISSING` (with a suggestion where a name is
 * near), `FILE_PERMISSION`.
 *
 * @example
 * await resolveWithin('coco', 'train2017/000000033471.jpg') // '/data/coco/train2017/000000033471.jpg'
 */
export async function resolveWithin(root: string, relativePath: string): Promise<string> {
  const refuse = (code: string, expected: string, hint?: string): ModalignError =>
    new ModalignError({ code, file: relativePath, got: JSON.stringify(relativePath), expected, hint })
  if (relativePath === '') throw refuse('PATH_EMPTY', 'the name of a file')
  if (relativePath.includes('\0')) throw refuse('PATH_NUL', 'a path without NUL characters')
  if (/^([a-z][a-z0-9+.-]+:\/|(data|javascript|blob|file|pipe|concat|subfile):)/i.test(relativePath)) {
    throw refuse('PATH_URL', 'a path below the root', 'download the file first, then name it relative to the root')
  }
  if (
    path.isAbsolute(relativePath) ||
    path.win32.isAbsolute(relativePath) ||
    (process.platform === 'win32' && /^[a-z]:/i.test(relativePath))
  ) {
    throw refuse('PATH_ABSOLUTE', 'a path relative to the root', `leave out the part up to ${root}`)
  }
  if (relativePath.split(/[\\/]/).includes('..')) throw refuse('PATH_ESCAPE', 'a path without ".."')

  const realRoot = await realpath(root).catch((error: unknown) => {
    throw fileError(error, root, 'the root folder')
  })
  const real = await realpath(path.join(realRoot, relativePath)).catch(async (error: unknown) => {
    throw errnoOf(error) === 'ENOENT' ? await missing(realRoot, relativePath, error) : fileError(error, relativePath)
  })
  if (!isWithin(realRoot, real)) throw refuse('PATH_ESCAPE', 'a path whose links stay below the root')
  return real
}

function isWithin(root: string, file: string): boolean {
  // "/data/img-private" starts with "/data/img": only with the separator is it containment.
  return file.startsWith(root.endsWith(path.sep) ? root : root + path.sep)
}

/** How many names of a folder are looked through for a suggestion. */
const mostNames = 20_000

/** The error for a file that is not there: names the part of the path that fails, and a name that is near, in case, Unicode form or extension. */
async function missing(root: string, relativePath: string, cause: unknown): Promise<ModalignError> {
  let folder = root
  for (const segment of relativePath.split(path.sep).filter((part) => part !== '' && part !== '.')) {
    const names = await namesIn(folder)
    if (names.includes(segment)) {
      const next = await realpath(path.join(folder, segment)).catch(() => undefined)
      if (next === undefined || !isWithin(root, next)) break
      folder = next
      continue
    }
    const near = names.find((name) => folded(name) === folded(segment)) ?? names.find((name) => stem(name) === stem(segment))
    return new ModalignError({
      code: 'FILE_MISSING',
      file: relativePath,
      got: `no "${segment}" in ${folder}`,
      hint: near === undefined ? 'check the path and the root folder' : `did you mean "${near}"?`,
      cause,
    })
  }
  return new ModalignError({ code: 'FILE_MISSING', file: relativePath, got: 'a link that leads nowhere', hint: 'check the path', cause })
}

const folded = (name: string): string => name.normalize('NFC').toLowerCase()
const stem = (name: string): string => folded(path.parse(name).name)

async function namesIn(folder: string): Promise<readonly string[]> {
  const names: string[] = []
  try {
    for await (const entry of await opendir(folder)) if (names.push(entry.name) >= mostNames) break
  } catch (error) {
    // A folder that cannot be listed gives no suggestion; that the file is missing is reported all the same.
    if (!['ENOTDIR', 'EACCES', 'ENOENT'].includes(errnoOf(error) ?? '')) throw fileError(error, folder)
  }
  return names
}

export interface ReadMediaOptions {
  /** Larger files are refused before a byte is read. */
  readonly maxBytes: number
  /** The code of that refusal. Default `FILE_TOO_LARGE`. */
  readonly tooLargeCode?: string
  /** Where given, `file` is relative to it and must lie below it ({@link resolveWithin}). */
  readonly root?: string | undefined
}

/**
 * The bytes of a regular file. The kind is asked of the open file, so that nothing can be exchanged in between, and opening never blocks on
 * a FIFO. A file that changes while it is read is read once more, then refused.
 *
 * @throws {ModalignError} `FILE_MISSING`, `FILE_PERMISSION`, `FILE_NOT_REGULAR`, `FILE_CHANGED`, `tooLargeCode`; with a root also what {@link resolveWithin} throws.
 *
 * @example
 * const bytes = await readMediaFile('train2017/000000033471.jpg', { root: 'coco', maxBytes: 2 ** 26 })
 */
export async function readMediaFile(file: string, options: ReadMediaOptions): Promise<Uint8Array> {
  const { maxBytes, root } = options
  const read = async (): Promise<Uint8Array> => {
    if (root !== undefined) {
      const source = await openMediaFile(file, options)
      return await source.read(0, source.size)
    }
    const { size, bytes } = await readMediaAtOnce(file, maxBytes)
    if (bytes === undefined) throw tooLarge(file, size, options)
    return bytes
  }
  return await read().catch((error: unknown) => {
    if (error instanceof ModalignError && error.code === 'FILE_CHANGED') return read()
    throw error
  })
}

/** The file as {@link readMediaFile} would read it, for those who read parts: its kind, place and size are checked, and every read makes sure that it did not change. */
export async function openMediaFile(file: string, options: ReadMediaOptions): Promise<FileSource> {
  const { root } = options
  const resolved = root === undefined ? undefined : await resolveWithin(root, file)
  const opened = resolved ?? file
  const source = await suggesting(opened, fileSource(opened))
  if (resolved !== undefined && source.path !== resolved) {
    throw new ModalignError({ code: 'PATH_ESCAPE', file, got: 'a path that became a link', expected: 'a file below the root' })
  }
  if (source.size > options.maxBytes) throw tooLarge(file, source.size, options)
  return source
}

/** A regular file's bytes, or its size alone where that is more than `mostBytes`. For a user's own path, not one below a root. @throws as {@link openMediaFile} */
export async function readMediaAtOnce(file: string, mostBytes: number): Promise<{ readonly size: number; readonly bytes?: Uint8Array }> {
  return await suggesting(file, readWhole(file, mostBytes))
}

function tooLarge(file: string, size: number, { maxBytes, tooLargeCode = 'FILE_TOO_LARGE' }: ReadMediaOptions): ModalignError {
  return new ModalignError({ code: tooLargeCode, file, got: `${size} bytes`, expected: `at most ${maxBytes} bytes` })
}

async function suggesting<T>(file: string, opening: Promise<T>): Promise<T> {
  return await opening.catch(async (error: unknown) => {
    const isMissing = error instanceof ModalignError && error.code === 'FILE_MISSING' && errnoOf(error.cause) === 'ENOENT'
    if (!isMissing) throw error
    const absolute = path.resolve(file)
    const { root } = path.parse(absolute)
    throw await missing(root, path.relative(root, absolute), error.cause)
  })
}
