import { defineOperator, only } from '../operator.ts'
import {
  evaluateReduction,
  type Reduction,
  type ReductionOptions,
  reducedShape,
  reductionForm,
  reductionOf,
  withReducedAxes,
} from '../reduction.ts'
import type { Tensor } from '../tensor.ts'
import { cast } from './cast.ts'
import { div } from './div.ts'
import { equal } from './equal.ts'
import { mul } from './mul.ts'
import { reduceSum } from './reduce-sum.ts'

const apply = defineOperator<Reduction>({
  name: 'ReduceMax',
  shape: (inputs, attributes) => reducedShape(inputs, attributes, 'ReduceMax'),
  gradient({ inputs: [x], outputs: [y], upstream: [g], needs, attributes }) {
    if (!needs[0] || x === undefined || y === undefined || g === undefined) return []
    const largest = cast(equal(x, withReducedAxes(y, attributes)), g.dtype)
    const ties = reduceSum(largest, attributes.axes, { keepdims: true })
    return [mul(largest, div(withReducedAxes(g, attributes), ties))]
  },
  evaluate: (inputs, attributes) => [evaluateReduction(inputs, attributes, Number.NEGATIVE_INFINITY, Math.max)],
  onnx: reductionForm,
})

/** Largest element over axes. Ties share the gradient evenly, as torch.amax has it. */
export function reduceMax(x: Tensor, axes: readonly number[], options: ReductionOptions = {}): Tensor {
  return axes.length === 0 ? x : only(apply([x], reductionOf(x, axes, options, 'ReduceMax')))
}
