import { productOf } from '../dim.ts'
import { defineOperator, only, required } from '../operator.ts'
import { normaliseAxis, type Tensor } from '../tensor.ts'
import { reshape } from './reshape.ts'

const apply = defineOperator<{ readonly axis: number }>({
  name: 'Flatten',
  shape(inputs, { axis }) {
    const x = required(inputs, 0, 'Flatten')
    return [{ dtype: x.dtype, shape: [productOf(x.shape.slice(0, axis)), productOf(x.shape.slice(axis))] }]
  },
  gradient: ({ inputs: [x], upstream: [g], needs }) => [needs[0] && g && x ? reshape(g, x.shape) : undefined],
  evaluate([x], { axis }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const product = (dims: readonly number[]): number => dims.reduce((total, dim) => total * dim, 1)
    return [{ dtype: x.dtype, dims: [product(x.dims.slice(0, axis)), product(x.dims.slice(axis))], data: x.data }]
  },
  onnx: ({ axis }) => ({ attributes: { axis: { int: axis } } }),
})

/** [a, b, c, d] -> [a*b, c*d] for axis 2: a matrix whose rows are the axes before `axis` (default 1; the rank itself is allowed). */
export function flatten(x: Tensor, axis = 1): Tensor {
  return only(apply([x], { axis: axis === x.shape.length ? axis : normaliseAxis(axis, x.shape.length, 'Flatten') }))
}
