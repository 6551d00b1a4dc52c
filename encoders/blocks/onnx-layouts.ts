/** Where published repositories keep a model's ONNX files: Optimum's in the folder itself, those for transformers.js in `onnx/`, one for each precision. */
import { stat } from 'node:fs/promises'
import path from 'node:path'
import { ModalignError } from '../../src/errors.ts'
import { errnoOf, fileError } from '../../src/io/file-error.ts'

/** Precisions as transformers.js calls them, and what their file names end in. */
export const onnxPrecisions = {
  fp32: '',
  fp16: '_fp16',
  int8: '_int8',
  uint8: '_uint8',
  q8: '_quantized',
  q4: '_q4',
  q4f16: '_q4f16',
  bnb4: '_bnb4',
} as const
export type OnnxPrecision = keyof typeof onnxPrecisions

/**
 * The ONNX file of a model's folder.
 *
 * @param names of the file without its precision, in the order of preference: `vision_model`, `model`
 * @returns undefined if there is none of that precision
 */
export async function findOnnxFile(folder: string, names: readonly string[], precision: OnnxPrecision): Promise<string | undefined> {
  for (const name of names) {
    for (const place of [path.join(folder, 'onnx'), folder]) {
      const file = path.join(place, `${name}${onnxPrecisions[precision]}.onnx`)
      if (await isFile(file)) return file
    }
  }
  return undefined
}

/** The precisions that a folder has. */
export async function foundPrecisions(folder: string, names: readonly string[]): Promise<readonly string[]> {
  const found: string[] = []
  for (const precision of ['fp32', 'fp16', 'int8', 'uint8', 'q8', 'q4', 'q4f16', 'bnb4'] as const)
    if ((await findOnnxFile(folder, names, precision)) !== undefined) found.push(precision)
  return found
}

/** The folder of a model that a file belongs to: above `onnx/`. */
export function modelFolderOf(file: string): string {
  const folder = path.dirname(path.resolve(file))
  return path.basename(folder) === 'onnx' ? path.dirname(folder) : folder
}

export async function isFile(file: string): Promise<boolean> {
  try {
    return (await stat(file)).isFile()
  } catch (error) {
    const code = errnoOf(error)
    if (code === 'ENOENT' || code === 'ENOTDIR') return false
    throw fileError(error, file, 'a file')
  }
}

/** @throws {ModalignError} `FILE_...` */
export async function isFolder(place: string): Promise<boolean> {
  const found = await stat(place).catch((error: unknown) => {
    throw fileError(error, place, "a model's folder, or an ONNX file")
  })
  return found.isDirectory()
}

export function noSuchPrecision(folder: string, precision: string, found: readonly string[]): ModalignError {
  return new ModalignError({
    code: 'ENCODER_MISSING',
    file: folder,
    field: '/weights',
    got: found.length === 0 ? 'a folder without ONNX files of this model' : `ONNX files of ${found.join(', ')}`,
    expected: `weights of precision ${precision}`,
  })
}
