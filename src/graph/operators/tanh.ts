import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { mul } from './mul.ts'
import { sub } from './sub.ts'

const apply = defineOperator<undefined>({
  name: 'Tanh',
  shape: (inputs) => floatingShape(inputs, 'Tanh'),
  gradient: ({ outputs: [y], upstream: [g], needs }) => [needs[0] && g && y ? mul(g, sub(1, mul(y, y))) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.tanh(x)),
})

/** Y = tanh(X).  dX = g (1 - Y^2). */
export function tanh(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
