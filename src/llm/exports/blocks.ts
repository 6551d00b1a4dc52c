/** Weights of exports that are kept in blocks of 4 or 8 bits: the operands of MatMulNBits and GatherBlockQuantized. */
import { ModalignError } from '../../errors.ts'
import type { Blocks } from '../../graph/composites/block-quantised.ts'
import { constant, weight } from '../../graph/tensor.ts'
import { elementCount, float32Tensor, type TensorValue } from '../../tensors.ts'
import { toFloat32 } from '../../weights/float16.ts'
import { readStored, type StoredTensor, storedWeight } from './export-file.ts'

export interface BlockOperands {
  readonly packed: StoredTensor
  readonly scales: StoredTensor
  readonly zeroPoints: StoredTensor | undefined
  readonly rows: number
  readonly columns: number
  readonly bits: number
  readonly blockSize: number
  /** Named in errors. */
  readonly file: string
}

/**
 * The blocks where they lie. Zero points other than the middle become minimums, (middle - zero point) x scale, which is the same value.
 *
 * @throws ModalignError LLM_EXPORT_QUANTISATION for widths, block sizes or zero points that are not supported
 */
export async function blocksFrom(operands: BlockOperands): Promise<Blocks> {
  const { packed, scales, zeroPoints, rows, columns, bits, blockSize, file } = operands
  const refuse = (got: string, expected: string): ModalignError =>
    new ModalignError({ code: 'LLM_EXPORT_QUANTISATION', file, field: packed.name, got, expected })
  if (bits !== 4 && bits !== 8) throw refuse(`${bits} bits`, '4 or 8')
  if (columns % blockSize !== 0) throw refuse(`rows of ${columns} in blocks of ${blockSize}`, 'whole blocks')
  const blocks = columns / blockSize
  const shape = [rows, blocks, (blockSize * bits) / 8]
  const bytes = packed.source.kind === 'file' ? packed.source.byteLength : packed.source.value.data.byteLength
  if (packed.dtype !== 'uint8' || bytes !== elementCount(shape))
    throw refuse(`${bytes} bytes of ${packed.dtype}`, `${elementCount(shape)} of uint8`)
  if (elementCount(scales.dims) !== rows * blocks) throw refuse(`${elementCount(scales.dims)} scales`, `${rows * blocks}`)
  const own = {
    // Signed nibbles count from 0 where unsigned ones count from 8: turning the highest bit is the same as adding 8.
    packed:
      packed.nibbles === 'signed'
        ? weight(packed.name, 'uint8', shape, { kind: 'memory', value: turned(await readStored(packed), shape) })
        : storedWeight(packed, shape),
    scales: storedWeight(scales, [rows, blocks]),
    bits,
  } as const
  if (zeroPoints === undefined) return own
  const points = pointsOf(await readStored(zeroPoints), { rows, blocks, bits, signed: packed.nibbles === 'signed' })
  if (points === undefined) throw refuse(`${elementCount(zeroPoints.dims)} zero points of ${zeroPoints.dtype}`, 'one for each block')
  const middle = bits === 4 ? 8 : 128
  if (points.every((point) => point === middle)) return own
  const factors = toFloat32(await readStored(scales))
  const minimums = Float32Array.from(points, (point, i) => (middle - point) * (factors[i] ?? 0))
  return { ...own, minimums: constant(float32Tensor(minimums, [rows, blocks])) }
}

function turned(value: TensorValue, dims: readonly number[]): TensorValue {
  if (value.dtype !== 'uint8') throw new Error('internal: 4-bit integers are read as bytes')
  return { dtype: 'uint8', dims, data: value.data.map((byte) => byte ^ 0x88) }
}

/** Zero points counted from 0 upwards: packed like the values, row by row, or floating-point numbers. Undefined where their number is another. */
function pointsOf(
  value: TensorValue,
  { rows, blocks, bits, signed }: { readonly rows: number; readonly blocks: number; readonly bits: 4 | 8; readonly signed: boolean },
): Float32Array | undefined {
  const count = rows * blocks
  if (value.dtype !== 'uint8') {
    const points = toFloat32(value)
    return points.length === count ? points : undefined
  }
  const { data } = value
  if (bits === 8) return data.length === count ? Float32Array.from(data) : undefined
  const rowBytes = Math.ceil(blocks / 2)
  if (data.length !== rows * rowBytes) return undefined
  return Float32Array.from({ length: count }, (_, i) => {
    const [row, block] = [Math.floor(i / blocks), i % blocks]
    const nibble = ((data[row * rowBytes + (block >> 1)] ?? 0) >> (4 * (block & 1))) & 15
    return signed ? nibble ^ 8 : nibble
  })
}
