import { defineOperator, only } from '../operator.ts'
import { evaluateReduction, type Reduction, type ReductionOptions, reducedShape, reductionForm, reductionOf } from '../reduction.ts'
import type { Tensor } from '../tensor.ts'

const apply = defineOperator<Reduction>({
  name: 'ReduceProd',
  shape: (inputs, attributes) => reducedShape(inputs, attributes, 'ReduceProd'),
  gradient: 'none',
  evaluate: (inputs, attributes) => [evaluateReduction(inputs, attributes, 1, (total, element) => total * element)],
  onnx: reductionForm,
})

/** Product over axes: for sizes. No gradient. */
export function reduceProd(x: Tensor, axes: readonly number[], options: ReductionOptions = {}): Tensor {
  return axes.length === 0 ? x : only(apply([x], reductionOf(x, axes, options, 'ReduceProd')))
}
