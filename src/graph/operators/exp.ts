import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { mul } from './mul.ts'

const apply = defineOperator<undefined>({
  name: 'Exp',
  shape: (inputs) => floatingShape(inputs, 'Exp'),
  gradient: ({ outputs: [y], upstream: [g], needs }) => [needs[0] && g && y ? mul(g, y) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.exp(x)),
})

/** Y = exp(X).  dX = g Y. */
export function exp(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
