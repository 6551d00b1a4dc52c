import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { mul } from './mul.ts'
import { sub } from './sub.ts'

const apply = defineOperator<undefined>({
  name: 'Sigmoid',
  shape: (inputs) => floatingShape(inputs, 'Sigmoid'),
  gradient: ({ outputs: [y], upstream: [g], needs }) => [needs[0] && g && y ? mul(g, mul(y, sub(1, y))) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => 1 / (1 + Math.exp(-x))),
})

/** Y = 1 / (1 + exp(-X)).  dX = g Y (1 - Y). */
export function sigmoid(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
