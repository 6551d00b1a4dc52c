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
import { expand } from './expand.ts'

const apply = defineOperator<Reduction>({
  name: 'ReduceSum',
  shape: (inputs, attributes) => reducedShape(inputs, attributes, 'ReduceSum'),
  gradient: ({ inputs: [x], upstream: [g], needs, attributes }) => [
    needs[0] && g && x ? expand(withReducedAxes(g, attributes), x.shape) : undefined,
  ],
  evaluate: (inputs, attributes) => [evaluateReduction(inputs, attributes, 0, (total, element) => total + element)],
  onnx: reductionForm,
})

/** Sum over axes. */
export function reduceSum(x: Tensor, axes: readonly number[], options: ReductionOptions = {}): Tensor {
  return axes.length === 0 ? x : only(apply([x], reductionOf(x, axes, options, 'ReduceSum')))
}
