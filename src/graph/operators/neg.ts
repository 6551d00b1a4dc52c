import { evaluateUnary, unaryShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'

const apply = defineOperator<undefined>({
  name: 'Neg',
  shape: (inputs) => unaryShape(inputs, 'Neg'),
  gradient: ({ upstream: [g], needs }) => [needs[0] && g ? neg(g) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => -x),
})

/** Y = -X. */
export function neg(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
