import { at, forEachOffset, stridesOf } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import type { ReductionOptions } from '../reduction.ts'
import { normaliseAxis, type Tensor } from '../tensor.ts'

interface Attributes {
  readonly axis: number
  readonly keepdims: boolean
}

const apply = defineOperator<Attributes>({
  name: 'ArgMax',
  shape: (inputs, { axis, keepdims }) => [{ dtype: 'int64', shape: without(required(inputs, 0, 'ArgMax').shape, axis, keepdims) }],
  gradient: 'none',
  evaluate([x], { axis, keepdims }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const stride = at(stridesOf(x.dims), axis)
    const lines = x.dims.map((dim, a) => (a === axis ? 1 : dim))
    const data = new Float64Array(lines.reduce((product, dim) => product * dim, 1))
    forEachOffset(lines, [stridesOf(x.dims)], (position, offsets) => {
      const element = (step: number): number => at(x.data, at(offsets, 0) + step * stride)
      let best = 0
      for (let step = 1; step < at(x.dims, axis); step++) if (element(step) > element(best)) best = step
      data[position] = best
    })
    return [{ dtype: 'int64', dims: without(x.dims, axis, keepdims), data }]
  },
  onnx: ({ axis, keepdims }) => ({ attributes: { axis: { int: axis }, keepdims: { int: keepdims ? 1 : 0 } } }),
})

/** Where the largest element lies along an axis (the first of equal ones), as int64: no gradient. */
export function argMax(x: Tensor, axis: number, { keepdims = false }: ReductionOptions = {}): Tensor {
  return only(apply([x], { axis: normaliseAxis(axis, x.shape.length, 'ArgMax'), keepdims }))
}

function without<T>(sizes: readonly T[], axis: number, keepdims: boolean): readonly (T | 1)[] {
  return sizes.flatMap((dim, a): readonly (T | 1)[] => (a === axis ? (keepdims ? [1] : []) : [dim]))
}
