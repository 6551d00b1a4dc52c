import { evaluateBinary, logicalShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { type Operand, operands, type Tensor } from '../tensor.ts'

const apply = defineOperator<undefined>({
  name: 'Or',
  shape: (inputs) => logicalShape(inputs, 'Or'),
  gradient: 'none',
  evaluate: (inputs) => evaluateBinary(inputs, (x, y) => (x !== 0 || y !== 0 ? 1 : 0), 'bool'),
})

/** Either true elementwise, broadcast, as bool: no gradient. */
export function or(a: Operand, b: Operand): Tensor {
  return only(apply(operands(a, b), undefined))
}
