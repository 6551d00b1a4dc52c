/** Weights that stay in files of their own: where ONNX Runtime finds them without copying a byte. */
import { realpath, stat } from 'node:fs/promises'
import { join, normalize } from 'node:path'
import { ModalignError } from '../errors.ts'
import { commonRoot } from '../onnx/external-root.ts'

export interface ExternalLayout {
  /** For `ModelSource.externalRoot`: a real folder, free of symbolic links. */
  readonly root: string
  /** File as given -> `location` of its tensors: relative to the root, with forward slashes. */
  readonly locations: ReadonlyMap<string, string>
}

/**
 * The nearest real folder above all files, and each file's place below it. ONNX Runtime refuses symbolic links and `..` on the way to external
 * data, so links are resolved first: a Hugging Face cache, whose snapshots are links to blobs, works as it is.
 *
 * @throws {ModalignError} `RUNTIME_EXTERNAL_FILE` for a file that is missing or no file, or for no files; `RUNTIME_EXTERNAL_ROOT` when no folder holds all of them (two Windows drives)
 * @example
 * const { root, locations } = await externalLayout(['/models/a/x.safetensors', '/models/b/y.safetensors'])
 * // root '/models', locations.get('/models/a/x.safetensors') === 'a/x.safetensors'
 */
export async function externalLayout(files: readonly string[]): Promise<ExternalLayout> {
  const real = new Map<string, string>()
  for (const file of files) {
    const found = await stat(file).catch((cause: unknown) => {
      throw new ModalignError({ code: 'RUNTIME_EXTERNAL_FILE', file, got: 'nothing there', expected: 'a file of weights', cause })
    })
    if (!found.isFile())
      throw new ModalignError({ code: 'RUNTIME_EXTERNAL_FILE', file, got: 'no regular file', expected: 'a file of weights' })
    real.set(file, await realpath(file))
  }
  const shared = commonRoot([...real.values()])
  if (shared === undefined) throw new ModalignError({ code: 'RUNTIME_EXTERNAL_FILE', got: 'no files', expected: 'at least one' })
  const locations = new Map([...real].map(([file, target]) => [file, shared.locationOf(target)]))
  for (const [file, target] of real) {
    if (join(shared.root, locations.get(file) ?? '') !== normalize(target))
      throw new ModalignError({
        code: 'RUNTIME_EXTERNAL_ROOT',
        file,
        got: `no folder above it and ${files[0]}`,
        expected: 'all weights of a model on one drive',
      })
  }
  return { root: shared.root, locations }
}

/** The folder without symbolic links. @throws {ModalignError} `RUNTIME_EXTERNAL_ROOT` for what is not an existing folder */
export async function realExternalRoot(folder: string): Promise<string> {
  const found = await stat(folder).catch(() => undefined)
  if (found?.isDirectory() !== true)
    throw new ModalignError({
      code: 'RUNTIME_EXTERNAL_ROOT',
      file: folder,
      got: found === undefined ? 'nothing there' : 'no folder',
      expected: 'the folder of the model’s external weights',
    })
  return realpath(folder)
}
