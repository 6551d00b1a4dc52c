import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { mul } from './mul.ts'
import { neg } from './neg.ts'

const apply = defineOperator<undefined>({
  name: 'Reciprocal',
  shape: (inputs) => floatingShape(inputs, 'Reciprocal'),
  gradient: ({ outputs: [y], upstream: [g], needs }) => [needs[0] && g && y ? neg(mul(g, mul(y, y))) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => 1 / x),
})

/** Y = 1 / X.  dX = -g Y^2. */
export function reciprocal(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
