import type { DataType } from '../../tensors.ts'
import { defineOperator, only, required } from '../operator.ts'
import { isFloating, type Tensor } from '../tensor.ts'

/** ONNX's numbers for the types (TensorProto.DataType). */
const onnxType: Readonly<Record<DataType, number>> = {
  float32: 1,
  uint8: 2,
  int8: 3,
  uint16: 4,
  int16: 5,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  float64: 11,
  uint32: 12,
  uint64: 13,
  bfloat16: 16,
}

const apply = defineOperator<{ readonly to: DataType }>({
  name: 'Cast',
  shape: (inputs, { to }) => [{ dtype: to, shape: required(inputs, 0, 'Cast').shape }],
  gradient: ({ inputs: [x], upstream: [g], needs }) => [needs[0] && g && x ? cast(g, x.dtype) : undefined],
  evaluate([x], { to }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const data = to === 'bool' ? x.data.map((v) => (v === 0 ? 0 : 1)) : isFloating(to) ? x.data : x.data.map(Math.trunc)
    return [{ dtype: to, dims: x.dims, data }]
  },
  onnx: ({ to }) => ({ attributes: { to: { int: onnxType[to] } } }),
})

/** The same values in another type; itself if it has that type already. The evaluator does not round to narrower floats: it is the exact reference. */
export function cast(x: Tensor, to: DataType): Tensor {
  return x.dtype === to ? x : only(apply([x], { to }))
}
