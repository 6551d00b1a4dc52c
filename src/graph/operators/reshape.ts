import { ModalignError } from '../../errors.ts'
import { type Dim, dimsEqual, formatShape, productOf, type Shape, shapesEqual } from '../dim.ts'
import { defineOperator, only, required } from '../operator.ts'
import type { Tensor } from '../tensor.ts'

const apply = defineOperator<{ readonly shape: Shape }>({
  name: 'Reshape',
  shape(inputs, { shape }) {
    const x = required(inputs, 0, 'Reshape')
    if (!dimsEqual(productOf(x.shape), productOf(shape))) {
      throw new ModalignError({ code: 'GRAPH_RESHAPE', got: formatShape(shape), expected: `as many elements as ${formatShape(x.shape)}` })
    }
    return [{ dtype: x.dtype, shape }]
  },
  gradient: ({ inputs: [x], upstream: [g], needs }) => [needs[0] && g && x ? reshape(g, x.shape) : undefined],
  evaluate([x], { shape }, { resolve }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    return [{ dtype: x.dtype, dims: shape.map(resolve), data: x.data }]
  },
  onnx: ({ shape }) => ({ attributes: { allowzero: { int: shape.includes(0) ? 1 : 0 } }, operands: [shape] }),
})

/** The same elements in the same order under another shape; sizes may be named. @throws GRAPH_RESHAPE if the counts differ. */
export function reshape(x: Tensor, shape: readonly Dim[]): Tensor {
  return shapesEqual(x.shape, shape) ? x : only(apply([x], { shape }))
}
