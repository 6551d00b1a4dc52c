import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import type { Tensor } from '../tensor.ts'

const apply = defineOperator<undefined>({
  name: 'Floor',
  shape: (inputs) => floatingShape(inputs, 'Floor'),
  gradient: 'none',
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.floor(x)),
})

/** The next integer below. A step function: no gradient. */
export function floor(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
