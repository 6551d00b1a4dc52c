import { sumTo } from '../broadcast.ts'
import { binaryShape, evaluateBinary } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { type Operand, operands, type Tensor } from '../tensor.ts'

const apply = defineOperator<undefined>({
  name: 'Mul',
  shape: (inputs) => binaryShape(inputs, 'Mul'),
  gradient({ inputs: [a, b], upstream: [g], needs }) {
    if (a === undefined || b === undefined) return []
    return [needs[0] ? g && sumTo(mul(g, b), a.shape) : undefined, needs[1] ? g && sumTo(mul(g, a), b.shape) : undefined]
  },
  evaluate: (inputs) => evaluateBinary(inputs, (x, y) => x * y),
})

/** Y = A B elementwise, broadcast.  dA = g B, dB = g A. A number takes the other operand's type. */
export function mul(a: Operand, b: Operand): Tensor {
  return only(apply(operands(a, b), undefined))
}
