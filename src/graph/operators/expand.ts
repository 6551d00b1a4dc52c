import { ModalignError } from '../../errors.ts'
import { broadcastShapes, sumTo } from '../broadcast.ts'
import { formatShape, type Shape, shapesEqual } from '../dim.ts'
import { at, broadcastStrides, forEachOffset } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import type { Tensor } from '../tensor.ts'

const apply = defineOperator<{ readonly shape: Shape }>({
  name: 'Expand',
  shape(inputs, { shape }) {
    const x = required(inputs, 0, 'Expand')
    if (!shapesEqual(broadcastShapes(x.shape, shape, 'Expand'), shape)) {
      throw new ModalignError({
        code: 'GRAPH_BROADCAST',
        field: 'Expand',
        got: formatShape(x.shape),
        expected: `a shape that stretches to ${formatShape(shape)}`,
      })
    }
    return [{ dtype: x.dtype, shape }]
  },
  gradient: ({ inputs: [x], upstream: [g], needs }) => [needs[0] && g && x ? sumTo(g, x.shape) : undefined],
  evaluate([x], { shape }, { resolve }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const dims = shape.map(resolve)
    const data = new Float64Array(dims.reduce((product, dim) => product * dim, 1))
    forEachOffset(dims, [broadcastStrides(x.dims, dims)], (position, offsets) => {
      data[position] = at(x.data, at(offsets, 0))
    })
    return [{ dtype: x.dtype, dims, data }]
  },
  onnx: ({ shape }) => ({ operands: [shape] }),
})

/** Stretched to a larger shape by the rules of broadcasting; sizes may be named. */
export function expand(x: Tensor, shape: Shape): Tensor {
  return shapesEqual(x.shape, shape) ? x : only(apply([x], { shape }))
}
