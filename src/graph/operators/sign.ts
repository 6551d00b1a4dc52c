import { evaluateUnary, unaryShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'

const apply = defineOperator<undefined>({
  name: 'Sign',
  shape: (inputs) => unaryShape(inputs, 'Sign'),
  gradient: 'none',
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.sign(x)),
})

/** -1, 0 or 1. A step function: no gradient. */
export function sign(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
