import { productOf } from '../dim.ts'
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
import { dimAt, type Tensor } from '../tensor.ts'
import { div } from './div.ts'
import { expand } from './expand.ts'
import { sizeOf } from './shape.ts'

const apply = defineOperator<Reduction>({
  name: 'ReduceMean',
  shape: (inputs, attributes) => reducedShape(inputs, attributes, 'ReduceMean'),
  gradient({ inputs: [x], upstream: [g], needs, attributes }) {
    if (!needs[0] || x === undefined || g === undefined) return []
    const count = productOf(attributes.axes.map((axis) => dimAt(x.shape, axis)))
    const share = div(withReducedAxes(g, attributes), typeof count === 'number' ? count : sizeOf(x, attributes.axes, g.dtype))
    return [expand(share, x.shape)]
  },
  evaluate([x], attributes) {
    const sum = evaluateReduction([x], attributes, 0, (total, element) => total + element)
    const count = (x?.data.length ?? 0) / sum.data.length
    return [{ ...sum, data: sum.data.map((total) => total / count) }]
  },
  onnx: reductionForm,
})

/** Arithmetic mean over axes. */
export function reduceMean(x: Tensor, axes: readonly number[], options: ReductionOptions = {}): Tensor {
  return axes.length === 0 ? x : only(apply([x], reductionOf(x, axes, options, 'ReduceMean')))
}
