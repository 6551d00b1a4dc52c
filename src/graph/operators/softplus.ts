import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { mul } from './mul.ts'
import { sigmoid } from './sigmoid.ts'

const apply = defineOperator<undefined>({
  name: 'Softplus',
  shape: (inputs) => floatingShape(inputs, 'Softplus'),
  gradient: ({ inputs: [x], upstream: [g], needs }) => [needs[0] && g && x ? mul(g, sigmoid(x)) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)))),
})

/** Y = ln(1 + exp(X)).  dX = g sigmoid(X). */
export function softplus(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
