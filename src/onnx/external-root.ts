/**
 * Where external data is looked for: ONNX Runtime takes one folder for a model and locations below it. Pure text: the files' real paths (no symlink on the way, which
 * ONNX Runtime refuses) are the business of whoever opened them.
 */

export interface ExternalRoot {
  readonly root: string
  /** A file's path relative to the root, with forward slashes. */
  locationOf(file: string): string
}

/**
 * The nearest folder that holds all the files; undefined for none.
 *
 * @example
 * commonRoot(['/models/a/x.safetensors', '/models/b/y.safetensors'])?.root // '/models'
 */
export function commonRoot(files: readonly string[]): ExternalRoot | undefined {
  const [first, ...others] = files.map(segmentsOf)
  if (first === undefined) return undefined
  let shared = first.length - 1
  for (const segments of others) {
    let equal = 0
    while (equal < shared && segments[equal] === first[equal]) equal++
    shared = Math.min(equal, segments.length - 1)
  }
  const joined = first.slice(0, shared).join('/')
  // '/a' alone lies in '/', 'C:/a' in 'C:/'.
  const root = shared <= 1 ? `${joined}/` : joined
  return { root, locationOf: (file) => segmentsOf(file).slice(shared).join('/') }
}

function segmentsOf(file: string): readonly string[] {
  return file.replaceAll('\\', '/').split('/')
}
