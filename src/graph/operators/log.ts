import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { div } from './div.ts'

const apply = defineOperator<undefined>({
  name: 'Log',
  shape: (inputs) => floatingShape(inputs, 'Log'),
  gradient: ({ inputs: [x], upstream: [g], needs }) => [needs[0] && g && x ? div(g, x) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.log(x)),
})

/** Y = ln(X).  dX = g / X. */
export function log(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
