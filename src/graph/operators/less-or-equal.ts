import { binaryShape, evaluateBinary } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { type Operand, operands, type Tensor } from '../tensor.ts'

const apply = defineOperator<undefined>({
  name: 'LessOrEqual',
  shape: (inputs) => binaryShape(inputs, 'LessOrEqual', 'bool'),
  gradient: 'none',
  evaluate: (inputs) => evaluateBinary(inputs, (x, y) => (x <= y ? 1 : 0), 'bool'),
})

/** A <= B elementwise, broadcast, as bool: no gradient. */
export function lessOrEqual(a: Operand, b: Operand): Tensor {
  return only(apply(operands(a, b), undefined))
}
