import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { div } from './div.ts'
import { mul } from './mul.ts'

const apply = defineOperator<undefined>({
  name: 'Sqrt',
  shape: (inputs) => floatingShape(inputs, 'Sqrt'),
  gradient: ({ outputs: [y], upstream: [g], needs }) => [needs[0] && g && y ? div(g, mul(y, 2)) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.sqrt(x)),
})

/** Y = sqrt(X).  dX = g / (2 Y). */
export function sqrt(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
