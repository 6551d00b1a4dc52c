import type { Dim } from '../dim.ts'
import { defineOperator, only } from '../operator.ts'
import { integers, scalar, type Tensor } from '../tensor.ts'
import { expand } from './expand.ts'
import { shapeOf } from './shape.ts'
import { squeeze } from './squeeze.ts'

const apply = defineOperator<{ readonly length: Dim }>({
  name: 'Range',
  shape: (_, { length }) => [{ dtype: 'int64', shape: [length] }],
  gradient: 'none',
  evaluate(_, { length }, { resolve }) {
    const count = resolve(length)
    return [{ dtype: 'int64', dims: [count], data: Float64Array.from({ length: count }, (_unused, index) => index) }]
  },
})

/** 0, 1, ..., length - 1 as int64 [length]; the length may be named. No gradient. */
export function range(length: Dim): Tensor {
  return only(apply([integers([0], []), sizeAsTensor(length), integers([1], [])], { length }))
}

/** A size as an int64 tensor of rank 0. */
export function sizeAsTensor(dim: Dim): Tensor {
  return typeof dim === 'number' ? integers([dim], []) : squeeze(shapeOf(expand(scalar(0), [dim])), [0])
}
