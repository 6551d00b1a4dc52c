/** Weights that stay in files of their own: where ONNX Runtime finds them without copying a byte, and how they reach a runtime without files. */
import { readFile, realpath, stat } from 'node:fs/promises'
import { join, normalize, relative, sep } from 'node:path'
import { ModalignError } from '../errors.ts'
import { decodeModel } from '../onnx/codec.ts'
import { commonRoot } from '../onnx/external-root.ts'
import { externalReferences } from '../onnx/precheck.ts'
import type { ExternalData } from './session.ts'

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

/** WASM has 32-bit addresses. */
const wasmBytes = 2 ** 32

/**
 * The external files of a model, whole, for a runtime that reads none itself.
 *
 * @param root as {@link realExternalRoot} gives it
 * @throws {ModalignError} `RUNTIME_EXTERNAL_FILE`, `RUNTIME_EXTERNAL_ROOT` for a link that leads out of the root, `RUNTIME_OUT_OF_MEMORY` for more than WASM can address, and what the model's own checks throw
 */
export async function readExternalData(model: Uint8Array, root: string): Promise<readonly ExternalData[]> {
  const locations = new Set(externalReferences(decodeModel(model)).map(({ reference }) => reference.location))
  const files = new Map<string, string>()
  let total = 0
  for (const location of locations) {
    const file = join(root, location)
    const target = await realpath(file).catch((cause: unknown) => {
      throw new ModalignError({ code: 'RUNTIME_EXTERNAL_FILE', file, got: 'nothing there', expected: 'a file of weights', cause })
    })
    if (relative(root, target).split(sep)[0] === '..')
      throw new ModalignError({
        code: 'RUNTIME_EXTERNAL_ROOT',
        file,
        got: 'a link that leads out of the folder',
        expected: `a file below ${root}`,
      })
    const { size } = await stat(target)
    total += size
    files.set(location, target)
  }
  if (total >= wasmBytes)
    throw new ModalignError({
      code: 'RUNTIME_OUT_OF_MEMORY',
      got: `${total} bytes of weights`,
      expected: `less than ${wasmBytes}, which is all that WASM can address`,
    })
  return Promise.all([...files].map(async ([path, file]) => ({ path, data: await readFile(file) })))
}
