/** How weights in files of their own reach a runtime that reads no files: WASM in Node. */
import { readFile, realpath, stat } from 'node:fs/promises'
import { join, relative, sep } from 'node:path'
import { ModalignError } from '../errors.ts'
import { decodeModel } from '../onnx/codec.ts'
import { externalReferences } from '../onnx/precheck.ts'
import type { ExternalData } from './session.ts'

/** WASM has 32-bit addresses. */
const wasmBytes = 2 ** 32

/**
 * The external files of a model, whole, for a runtime that reads none itself.
 *
 * @param root as `realExternalRoot` gives it
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
