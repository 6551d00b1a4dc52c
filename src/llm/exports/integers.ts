/**
 * Weights of exports that are kept in 8-bit integers with one scale for the matrix or for each of its columns: the operands of MatMulInteger (ONNX Runtime's dynamic quantisation,
 * `model_quantized.onnx`), MatMulIntegerToFloat and DynamicQuantizeMatMul, and whatever DequantizeLinear makes whole.
 */
import { ModalignError } from '../../errors.ts'
import type { Blocks } from '../../graph/composites/block-quantised.ts'
import { constant, weight } from '../../graph/tensor.ts'
import type { NodeProto } from '../../onnx/onnx_pb.ts'
import { float32Tensor } from '../../tensors.ts'
import { toFloat32 } from '../../weights/float16.ts'
import { type ExportFile, numberOf, readStored, type StoredTensor } from './export-file.ts'

/** A matrix [rows, columns], stored so or turned, with scales and zero points for the whole or for each row. */
export interface IntegerMatrix {
  readonly stored: StoredTensor
  readonly turned: boolean
  readonly rows: number
  readonly columns: number
  readonly scales: StoredTensor
  readonly zeroPoints: StoredTensor | undefined
}

/**
 * The integers that a product multiplies by, or that a Gather takes rows of; undefined where its operand is of another kind.
 *
 * @throws ModalignError LLM_EXPORT_QUANTISATION for integers whose scales cannot be found, or that are in blocks of DequantizeLinear
 */
export function integerOperand(file: ExportFile, node: NodeProto): IntegerMatrix | undefined {
  const stored = (name: string | undefined): StoredTensor | undefined => file.tensors.get(name ?? '')
  const { input } = node
  switch (node.opType) {
    case 'MatMulInteger':
      return matrixOf(file, node, { data: stored(input[1]), scales: outerScales(file, node), zeroPoints: stored(input[3]), turned: true })
    case 'MatMulIntegerToFloat':
      return matrixOf(file, node, { data: stored(input[1]), scales: stored(input[3]), zeroPoints: stored(input[5]), turned: true })
    case 'DynamicQuantizeMatMul':
      return matrixOf(file, node, { data: stored(input[1]), scales: stored(input[2]), zeroPoints: stored(input[3]), turned: true })
    case 'Gather': {
      const data = stored(input[0])
      const whole =
        data && isInteger(data) && (file.consumers.get(node.output[0] ?? '') ?? []).find((one) => one.opType === 'DequantizeLinear')
      if (!whole || numberOf(node, 'axis', 0) !== 0) return undefined
      return matrixOf(file, node, { data, scales: stored(whole.input[1]), zeroPoints: stored(whole.input[2]), turned: false })
    }
    case 'MatMul':
    case 'Gemm': {
      const whole = file.producers.get(input[1] ?? '')
      if (whole?.opType !== 'DequantizeLinear' || stored(whole.input[0]) === undefined) return undefined
      if (numberOf(whole, 'block_size', 0) !== 0) throw refusal(file, node, 'blocks of DequantizeLinear', 'blocks of MatMulNBits')
      const turned = numberOf(node, 'transB', 0) === 0
      return matrixOf(file, node, {
        data: stored(whole.input[0]),
        scales: stored(whole.input[1]),
        zeroPoints: stored(whole.input[2]),
        turned,
      })
    }
    default:
      return undefined
  }
}

const isInteger = ({ dtype }: StoredTensor): boolean => dtype === 'int8' || dtype === 'uint8'

interface Operands {
  readonly data: StoredTensor | undefined
  readonly scales: StoredTensor | undefined
  readonly zeroPoints: StoredTensor | undefined
  readonly turned: boolean
}

function matrixOf(file: ExportFile, node: NodeProto, { data, scales, zeroPoints, turned }: Operands): IntegerMatrix | undefined {
  if (data?.dims.length !== 2) return undefined
  const [first = 0, second = 0] = data.dims
  const [rows, columns] = turned ? [second, first] : [first, second]
  if (!isInteger(data) || data.nibbles !== undefined) throw refusal(file, node, `weights of ${data.dtype}`, 'int8 or uint8')
  if (scales === undefined) throw refusal(file, node, 'integers without a constant scale', 'a scale among the initializers')
  for (const one of [scales, ...(zeroPoints === undefined ? [] : [zeroPoints])]) {
    const count = one.dims.reduce((product, size) => product * size, 1)
    if (count !== 1 && count !== rows) throw refusal(file, node, `${count} values of ${one.name}`, `1 or ${rows}`)
  }
  return { stored: data, turned, rows, columns, scales, zeroPoints }
}

function refusal(file: ExportFile, node: NodeProto, got: string, expected: string): ModalignError {
  return new ModalignError({ code: 'LLM_EXPORT_QUANTISATION', file: file.path, field: node.name, got, expected })
}

/** MatMulInteger's product becomes a number by a Cast and a Mul with (scale of the activations) x (scale of the weight). */
function outerScales({ consumers, producers, tensors }: ExportFile, node: NodeProto): StoredTensor | undefined {
  const after = (name: string | undefined, opType: string): NodeProto | undefined =>
    (consumers.get(name ?? '') ?? []).find((one) => one.opType === opType)
  const cast = after(node.output[0], 'Cast')
  const scaled = after(cast?.output[0], 'Mul')
  const factor = scaled?.input.find((name) => name !== cast?.output[0])
  const product = producers.get(factor ?? '')
  return product?.opType === 'Mul' ? product.input.map((name) => tensors.get(name)).find((one) => one !== undefined) : undefined
}

/**
 * The same values as blocks of 8 bits: all blocks of a row have the row's scale. The bytes are turned and counted from 128 as blocks are, so they are copied into memory.
 *
 * @throws ModalignError LLM_EXPORT_QUANTISATION for rows that are not whole blocks
 */
export async function integerBlocks({ stored, turned, rows, columns, scales, zeroPoints }: IntegerMatrix, file: string): Promise<Blocks> {
  const size = [128, 64, 32, 16].find((one) => columns % one === 0)
  const { data } = await readStored(stored)
  if (size === undefined || !(data instanceof Int8Array || data instanceof Uint8Array))
    throw new ModalignError({
      code: 'LLM_EXPORT_QUANTISATION',
      file,
      field: stored.name,
      got: `rows of ${columns} integers`,
      expected: 'a multiple of 16',
    })
  // Two's complement counts from -128 where blocks count from 0.
  const flip = data instanceof Int8Array ? 0x80 : 0
  const packed = new Uint8Array(rows * columns)
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++)
      packed[row * columns + column] = ((data[turned ? column * rows + row : row * columns + column] ?? 0) & 0xff) ^ flip
  }
  const factors = toFloat32(await readStored(scales))
  const blocks = columns / size
  const ofBlocks = (value: (row: number) => number): Float32Array =>
    Float32Array.from({ length: rows * blocks }, (_, i) => value(Math.floor(i / blocks)))
  const at = (values: ArrayLike<number>, row: number): number => values[values.length === 1 ? 0 : row] ?? 0
  const shape = [rows, blocks, size]
  const own = {
    packed: weight(stored.name, 'uint8', shape, { kind: 'memory', value: { dtype: 'uint8', dims: shape, data: packed } }),
    scales: constant(
      float32Tensor(
        ofBlocks((row) => at(factors, row)),
        [rows, blocks],
      ),
    ),
    bits: 8,
  } as const
  const points = zeroPoints === undefined ? [0] : Float64Array.from((await readStored(zeroPoints)).data, Number)
  const middle = flip === 0 ? 128 : 0
  const offset = (row: number): number => middle - at(points, row)
  if (Array.from({ length: rows }, (_, row) => offset(row)).every((value) => value === 0)) return own
  return {
    ...own,
    minimums: constant(
      float32Tensor(
        ofBlocks((row) => offset(row) * at(factors, row)),
        [rows, blocks],
      ),
    ),
  }
}
