/** What the reductions share: axes, result shapes, and how the evaluator folds. */
import type { Dim } from './dim.ts'
import type { Value } from './evaluate.ts'
import { at, forEachOffset, stridesOf } from './indexing.ts'
import { type Inputs, type OnnxForm, required } from './operator.ts'
import { unsqueeze } from './operators/unsqueeze.ts'
import { normaliseAxis, type Tensor, type TensorType } from './tensor.ts'

export interface Reduction {
  readonly axes: readonly number[]
  readonly keepdims: boolean
}
export interface ReductionOptions {
  /** Keep the reduced axes with size 1. Default false. */
  readonly keepdims?: boolean
}

export function reductionOf(x: Tensor, axes: readonly number[], { keepdims = false }: ReductionOptions, name: string): Reduction {
  return { axes: [...new Set(axes.map((axis) => normaliseAxis(axis, x.shape.length, name)))].sort((a, b) => a - b), keepdims }
}

export function reducedShape(inputs: Inputs, { axes, keepdims }: Reduction, name: string): readonly TensorType[] {
  const x = required(inputs, 0, name)
  const shape = x.shape.flatMap((dim, axis): Dim[] => (axes.includes(axis) ? (keepdims ? [1] : []) : [dim]))
  return [{ dtype: x.dtype, shape }]
}

/** A reduced tensor with its axes back, as size 1, so that it broadcasts against what was reduced. */
export function withReducedAxes(reduced: Tensor, { axes, keepdims }: Reduction): Tensor {
  return keepdims ? reduced : unsqueeze(reduced, axes)
}

export function reductionForm({ axes, keepdims }: Reduction): OnnxForm {
  return { attributes: { keepdims: { int: keepdims ? 1 : 0 } }, operands: [axes] }
}

export function evaluateReduction(
  [x]: readonly (Value | undefined)[],
  { axes, keepdims }: Reduction,
  start: number,
  fold: (total: number, element: number) => number,
): Value {
  if (x === undefined) throw new Error('internal: an operand is missing')
  const kept = x.dims.map((dim, axis) => (axes.includes(axis) ? 1 : dim))
  const strides = stridesOf(kept).map((stride, axis) => (axes.includes(axis) ? 0 : stride))
  const data = new Float64Array(kept.reduce((product, dim) => product * dim, 1)).fill(start)
  forEachOffset(x.dims, [strides], (position, offsets) => {
    const target = at(offsets, 0)
    data[target] = fold(at(data, target), at(x.data, position))
  })
  return { dtype: x.dtype, dims: keepdims ? kept : x.dims.filter((_, axis) => !axes.includes(axis)), data }
}
