import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { greater } from './greater.ts'
import { mul } from './mul.ts'
import { where } from './where.ts'

const apply = defineOperator<{ readonly alpha: number }>({
  name: 'LeakyRelu',
  shape: (inputs) => floatingShape(inputs, 'LeakyRelu'),
  gradient: ({ inputs: [x], upstream: [g], needs, attributes: { alpha } }) => [
    needs[0] && g && x ? where(greater(x, 0), g, mul(g, alpha)) : undefined,
  ],
  evaluate: (inputs, { alpha }) => evaluateUnary(inputs, (x) => (x > 0 ? x : alpha * x)),
  onnx: ({ alpha }) => ({ attributes: { alpha: { float: alpha } } }),
})

/** Y = X where X > 0, alpha X elsewhere.  dX = g or alpha g; alpha g at 0, as PyTorch has it. */
export function leakyRelu(x: Tensor, alpha = 0.01): Tensor {
  return only(apply([x], { alpha }))
}
