import { ModalignError } from '../../errors.ts'
import { elementCount } from '../../tensors.ts'
import { blockFormats, type Dequantise } from './blocks/index.ts'
import type { GgufFile, GgufTensor } from './gguf.ts'
import type { GgmlType } from './types.ts'

/** Blocks are read and widened in pieces of about this many bytes, so that a tensor of gigabytes needs no memory of its size. */
const pieceBytes = 4 * 2 ** 20

/**
 * The float32 values of a tensor, in pieces of whole blocks, in their order.
 *
 * @param together so many elements, a whole number of blocks, are never parted
 * @throws ModalignError `TENSOR_MISSING`, `GGUF_TYPE_UNSUPPORTED`, and what reading the file throws
 * @example
 * for await (const values of dequantised(file, 'token_embd.weight')) sum += values.length
 */
export async function* dequantised(
  file: GgufFile,
  name: string,
  together?: number,
): AsyncGenerator<Float32Array<ArrayBuffer>, void, undefined> {
  const { type, offset, byteLength } = ggufTensor(file, name)
  const format = formatOf(file, name, type)
  const unit = ((together ?? type.blockElements) / type.blockElements) * type.blockBytes
  const step = Math.max(1, Math.floor(pieceBytes / unit)) * unit
  for (let at = 0; at < byteLength; at += step) {
    const bytes = await file.source.read(offset + at, Math.min(step, byteLength - at))
    const values = new Float32Array((bytes.length / type.blockBytes) * type.blockElements)
    format(bytes, values)
    yield values
  }
}

/** The same as one array: for small tensors. */
export async function dequantise(file: GgufFile, name: string): Promise<Float32Array<ArrayBuffer>> {
  const out = new Float32Array(elementCount(ggufTensor(file, name).shape))
  let filled = 0
  for await (const values of dequantised(file, name)) {
    out.set(values, filled)
    filled += values.length
  }
  return out
}

/** @throws ModalignError `TENSOR_MISSING` */
export function ggufTensor(file: GgufFile, name: string): GgufTensor {
  const tensor = file.tensors.get(name)
  if (tensor !== undefined) return tensor
  throw new ModalignError({
    code: 'TENSOR_MISSING',
    file: file.file,
    got: `no tensor ${JSON.stringify(name)}`,
    expected: 'a weight of the model',
  })
}

/** @throws ModalignError `GGUF_TYPE_UNSUPPORTED` */
export function formatOf(file: GgufFile, name: string, type: GgmlType): Dequantise {
  const format = blockFormats.get(type.name)
  if (format !== undefined) return format
  throw new ModalignError({
    code: 'GGUF_TYPE_UNSUPPORTED',
    file: file.file,
    field: name,
    got: type.name,
    expected: [...blockFormats.keys()].join(', '),
    hint: 'take the same model in one of these formats',
  })
}
