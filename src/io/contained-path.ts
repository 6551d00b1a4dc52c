import { realpath } from 'node:fs/promises'
import { resolve, sep } from 'node:path'
import { ModalignError } from '../errors.ts'
import { fileError } from './file-error.ts'

/**
 * The real path of a file that a stranger's text names, which must lie inside `root` once every symbolic link is followed. Absolute paths are fine if they do.
 *
 * @param root a folder, itself trusted
 * @throws ModalignError `PATH_ESCAPE`, `PATH_URL` (remote sources are never fetched), `FILE_MISSING`, `FILE_PERMISSION`
 * @example
 * const file = await containedPath('coco/train2017', '000000000009.jpg')
 */
export async function containedPath(root: string, path: string): Promise<string> {
  const scheme = /^([A-Za-z][A-Za-z\d+.-]+):/.exec(path)?.[1]
  if (scheme !== undefined && (path.includes('://') || /^(data|file|javascript)$/i.test(scheme))) {
    throw new ModalignError({
      code: 'PATH_URL',
      got: path,
      expected: 'a path of a local file',
      hint: 'download the file and name the copy',
    })
  }
  if (path === '' || path.includes('\0'))
    throw new ModalignError({ code: 'FILE_MISSING', got: path === '' ? 'an empty path' : path, expected: 'a path of a file' })
  const absolute = resolve(root, path)
  let realRoot: string
  try {
    realRoot = await realpath(root)
  } catch (error) {
    throw fileError(error, root, 'a folder')
  }
  // By the words of the path first: nothing outside is even looked at. The root may itself be written through a link.
  if (!inside(resolve(root), absolute) && !inside(realRoot, absolute)) throw escapes(path, 'a path that leads out of its root folder')
  let real: string
  try {
    real = await realpath(absolute)
  } catch (error) {
    throw fileError(error, path)
  }
  if (!inside(realRoot, real)) throw escapes(path, 'a link that leads out of its root folder')
  return real
}

function inside(root: string, path: string): boolean {
  return path === root || path.startsWith(root.endsWith(sep) ? root : root + sep)
}

function escapes(file: string, got: string): ModalignError {
  return new ModalignError({
    code: 'PATH_ESCAPE',
    file,
    got,
    expected: 'a file inside that folder',
    hint: 'move the file there, or name a root that holds both',
  })
}
