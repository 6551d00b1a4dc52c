/** What a path in a record may look like. Lexical only: links are resolved, and their targets checked, when the file is opened. */

/** Longest path that Linux opens. */
const longestPath = 4096

export interface PathFault {
  /** `PATH_ESCAPE` (leaves the root), `PATH_URL`, `PATH_INVALID`. */
  readonly code: string
  readonly got: string
  readonly expected: string
  readonly hint?: string
}

/**
 * Why a media path of a record is refused, or undefined. Accepted are relative paths with forward slashes that stay below the root on every platform.
 *
 * @example
 * mediaPathFault('../secret.jpg')?.code // 'PATH_ESCAPE'
 */
export function mediaPathFault(path: string): PathFault | undefined {
  const expected = 'a path relative to the media root, with forward slashes'
  const fault = (code: string, hint?: string): PathFault => ({ code, got: path, expected, ...(hint !== undefined && { hint }) })
  if (path === '') return { ...fault('PATH_INVALID', 'leave the key out of text-only records'), got: 'an empty path' }
  if (path.length > longestPath) return { ...fault('PATH_INVALID'), got: `a path of ${path.length} characters` }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: a path with a control character is what is looked for
  if (/[\u0000-\u001f\u007f]/.test(path)) return fault('PATH_INVALID', 'it holds a control character')
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(path) || /^(?:data|file|blob|javascript):/i.test(path)) {
    return fault('PATH_URL', 'download the files first and name them by their paths')
  }
  if (/^[a-z]:/i.test(path) || path.startsWith('/'))
    return fault('PATH_ESCAPE', 'absolute paths are refused: set the root and name files below it')
  if (path.includes('\\')) return fault('PATH_INVALID', 'write / instead of \\')
  for (const segment of path.split('/')) {
    if (/^(?:\.|%2e){2}$/i.test(segment)) return fault('PATH_ESCAPE', 'it climbs out of a folder')
    if (segment === '.') continue
    if (segment === '') return fault('PATH_INVALID', 'it has an empty segment')
    if (/[ .]$/.test(segment)) return fault('PATH_INVALID', 'Windows drops a space or dot at the end of a name')
  }
  return undefined
}
