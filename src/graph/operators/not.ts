import { evaluateUnary, requireBool, unaryShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'

const apply = defineOperator<undefined>({
  name: 'Not',
  shape(inputs) {
    requireBool(inputs, 0, 'Not')
    return unaryShape(inputs, 'Not')
  },
  gradient: 'none',
  evaluate: (inputs) => evaluateUnary(inputs, (x) => (x === 0 ? 1 : 0)),
})

/** Negation of a bool tensor. */
export function not(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
