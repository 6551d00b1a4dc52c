import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { scalar, type Tensor } from '../tensor.ts'
import { and } from './and.ts'
import { greater } from './greater.ts'
import { less } from './less.ts'
import { mul } from './mul.ts'
import { where } from './where.ts'

export interface HardSigmoidOptions {
  /** The slope. Default 1/6, as PyTorch has it (ONNX: 0.2). */
  readonly alpha?: number
  /** The value at 0. Default 0.5. */
  readonly beta?: number
}

const apply = defineOperator<Required<HardSigmoidOptions>>({
  name: 'HardSigmoid',
  shape: (inputs) => floatingShape(inputs, 'HardSigmoid'),
  gradient({ outputs: [y], upstream: [g], needs, attributes: { alpha } }) {
    if (!needs[0] || y === undefined || g === undefined) return []
    return [where(and(greater(y, 0), less(y, 1)), mul(g, alpha), scalar(0, g.dtype))]
  },
  evaluate: (inputs, { alpha, beta }) => evaluateUnary(inputs, (x) => Math.max(0, Math.min(1, alpha * x + beta))),
  onnx: ({ alpha, beta }) => ({ attributes: { alpha: { float: alpha }, beta: { float: beta } } }),
})

/** Y = max(0, min(1, alpha X + beta)).  dX = alpha g where 0 < Y < 1; 0 elsewhere. */
export function hardSigmoid(x: Tensor, { alpha = 1 / 6, beta = 0.5 }: HardSigmoidOptions = {}): Tensor {
  return only(apply([x], { alpha, beta }))
}
