import { ModalignError } from '../../errors.ts'
import { broadcastShapes, sumTo } from '../broadcast.ts'
import { at, broadcastStrides, forEachOffset } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { scalar, type Tensor } from '../tensor.ts'

const apply = defineOperator<undefined>({
  name: 'Where',
  shape(inputs) {
    const [condition, a, b] = [required(inputs, 0, 'Where'), required(inputs, 1, 'Where'), required(inputs, 2, 'Where')]
    if (condition.dtype !== 'bool' || a.dtype !== b.dtype) {
      throw new ModalignError({
        code: 'GRAPH_DTYPE',
        field: 'Where',
        got: `${condition.dtype}, ${a.dtype}, ${b.dtype}`,
        expected: 'bool and two of one type',
      })
    }
    return [{ dtype: a.dtype, shape: broadcastShapes(broadcastShapes(condition.shape, a.shape, 'Where'), b.shape, 'Where') }]
  },
  gradient({ inputs: [condition, a, b], upstream: [g], needs }) {
    if (condition === undefined || a === undefined || b === undefined || g === undefined) return []
    const zero = scalar(0, g.dtype)
    return [
      undefined,
      needs[1] ? sumTo(where(condition, g, zero), a.shape) : undefined,
      needs[2] ? sumTo(where(condition, zero, g), b.shape) : undefined,
    ]
  },
  evaluate([condition, a, b]) {
    if (condition === undefined || a === undefined || b === undefined) throw new Error('internal: an operand is missing')
    const operands = [condition, a, b]
    const rank = Math.max(...operands.map(({ dims }) => dims.length))
    const dims = Array.from({ length: rank }, (_, axis) => {
      const sizes = operands.map((operand) => operand.dims[axis - rank + operand.dims.length] ?? 1)
      return sizes.find((size) => size !== 1) ?? 1
    })
    const data = new Float64Array(dims.reduce((product, dim) => product * dim, 1))
    const views = operands.map((operand) => broadcastStrides(operand.dims, dims))
    forEachOffset(dims, views, (position, offsets) => {
      data[position] = at(condition.data, at(offsets, 0)) !== 0 ? at(a.data, at(offsets, 1)) : at(b.data, at(offsets, 2))
    })
    return [{ dtype: a.dtype, dims, data }]
  },
})

/** Y = A where the condition (bool) holds, B elsewhere; all three broadcast. */
export function where(condition: Tensor, a: Tensor, b: Tensor): Tensor {
  return only(apply([condition, a, b], undefined))
}
