import { evaluateUnary, unaryShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { mul } from './mul.ts'
import { sign } from './sign.ts'

const apply = defineOperator<undefined>({
  name: 'Abs',
  shape: (inputs) => unaryShape(inputs, 'Abs'),
  gradient: ({ inputs: [x], upstream: [g], needs }) => [needs[0] && g && x ? mul(g, sign(x)) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.abs(x)),
})

/** Y = |X|.  dX = g sign(X); 0 at 0. */
export function abs(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
