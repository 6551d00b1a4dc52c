import type { DataType } from '../../tensors.ts'
import { defineOperator, only, required } from '../operator.ts'
import { integers, type Tensor } from '../tensor.ts'
import { cast } from './cast.ts'
import { gather } from './gather.ts'
import { reduceProd } from './reduce-prod.ts'

const apply = defineOperator<undefined>({
  name: 'Shape',
  shape: (inputs) => [{ dtype: 'int64', shape: [required(inputs, 0, 'Shape').shape.length] }],
  gradient: 'none',
  evaluate([x]) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    return [{ dtype: 'int64', dims: [x.dims.length], data: Float64Array.from(x.dims) }]
  },
})

/** The sizes of `x` as an int64 vector: for arithmetic with named sizes. No gradient. */
export function shapeOf(x: Tensor): Tensor {
  return only(apply([x], undefined))
}

/** How many elements `x` has along axes, as a scalar of a floating type. */
export function sizeOf(x: Tensor, axes: readonly number[], dtype: DataType): Tensor {
  return cast(reduceProd(gather(shapeOf(x), integers(axes)), [0]), dtype)
}
