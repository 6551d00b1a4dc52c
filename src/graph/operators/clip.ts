import { ModalignError } from '../../errors.ts'
import { evaluateUnary } from '../elementwise.ts'
import { defineOperator, only, required } from '../operator.ts'
import { scalar, type Tensor } from '../tensor.ts'
import { and } from './and.ts'
import { greater } from './greater.ts'
import { less } from './less.ts'
import { where } from './where.ts'

export interface ClipOptions {
  readonly min?: number
  readonly max?: number
}

const apply = defineOperator<ClipOptions>({
  name: 'Clip',
  shape(inputs, { min, max }) {
    if (min !== undefined && max !== undefined && min > max)
      throw new ModalignError({ code: 'GRAPH_RANGE', field: 'Clip', got: `${min} to ${max}`, expected: 'min <= max' })
    return [required(inputs, 0, 'Clip')]
  },
  gradient({ inputs: [x], upstream: [g], needs, attributes: { min, max } }) {
    if (!needs[0] || x === undefined || g === undefined) return []
    const above = min === undefined ? undefined : greater(x, min)
    const below = max === undefined ? undefined : less(x, max)
    const inside = above !== undefined && below !== undefined ? and(above, below) : (above ?? below)
    return [inside === undefined ? g : where(inside, g, scalar(0, g.dtype))]
  },
  evaluate: ([x], { min = Number.NEGATIVE_INFINITY, max = Number.POSITIVE_INFINITY }) =>
    evaluateUnary([x], (v) => Math.min(Math.max(v, min), max)),
})

/** Y = X kept within min and max, either of which may be left out.  dX = g where min < X < max; 0 elsewhere, also at the bounds, as PyTorch has it. */
export function clip(x: Tensor, { min, max }: ClipOptions): Tensor {
  if (min === undefined && max === undefined) return x
  const bound = (value: number | undefined): Tensor | undefined => (value === undefined ? undefined : scalar(value, x.dtype))
  const inputs = max === undefined ? [x, bound(min)] : [x, bound(min), bound(max)]
  return only(apply(inputs, { ...(min !== undefined && { min }), ...(max !== undefined && { max }) }))
}
