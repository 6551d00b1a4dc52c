import { evaluateBinary, logicalShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { type Operand, operands, type Tensor } from '../tensor.ts'

const apply = defineOperator<undefined>({
  name: 'And',
  shape: (inputs) => logicalShape(inputs, 'And'),
  gradient: 'none',
  evaluate: (inputs) => evaluateBinary(inputs, (x, y) => (x !== 0 && y !== 0 ? 1 : 0), 'bool'),
})

/** Both true elementwise, broadcast, as bool: no gradient. */
export function and(a: Operand, b: Operand): Tensor {
  return only(apply(operands(a, b), undefined))
}
