import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { erfOf } from '../special.ts'
import type { Tensor } from '../tensor.ts'
import { exp } from './exp.ts'
import { mul } from './mul.ts'
import { neg } from './neg.ts'

const apply = defineOperator<undefined>({
  name: 'Erf',
  shape: (inputs) => floatingShape(inputs, 'Erf'),
  gradient: ({ inputs: [x], upstream: [g], needs }) => [
    needs[0] && g && x ? mul(g, mul(exp(neg(mul(x, x))), 2 / Math.sqrt(Math.PI))) : undefined,
  ],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => erfOf(x)),
})

/** Y = erf(X).  dX = g 2/sqrt(pi) exp(-X^2). */
export function erf(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
