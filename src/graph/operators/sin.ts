import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { cos } from './cos.ts'
import { mul } from './mul.ts'

const apply = defineOperator<undefined>({
  name: 'Sin',
  shape: (inputs) => floatingShape(inputs, 'Sin'),
  gradient: ({ inputs: [x], upstream: [g], needs }) => [needs[0] && g && x ? mul(g, cos(x)) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.sin(x)),
})

/** Y = sin(X).  dX = g cos(X). */
export function sin(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
