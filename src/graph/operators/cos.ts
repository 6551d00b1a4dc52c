import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { mul } from './mul.ts'
import { neg } from './neg.ts'
import { sin } from './sin.ts'

const apply = defineOperator<undefined>({
  name: 'Cos',
  shape: (inputs) => floatingShape(inputs, 'Cos'),
  gradient: ({ inputs: [x], upstream: [g], needs }) => [needs[0] && g && x ? neg(mul(g, sin(x))) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.cos(x)),
})

/** Y = cos(X).  dX = -g sin(X). */
export function cos(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
