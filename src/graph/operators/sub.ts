import { sumTo } from '../broadcast.ts'
import { binaryShape, evaluateBinary } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { type Operand, operands, type Tensor } from '../tensor.ts'
import { neg } from './neg.ts'

const apply = defineOperator<undefined>({
  name: 'Sub',
  shape: (inputs) => binaryShape(inputs, 'Sub'),
  gradient({ inputs: [a, b], upstream: [g], needs }) {
    if (a === undefined || b === undefined) return []
    return [needs[0] ? g && sumTo(g, a.shape) : undefined, needs[1] ? g && sumTo(neg(g), b.shape) : undefined]
  },
  evaluate: (inputs) => evaluateBinary(inputs, (x, y) => x - y),
})

/** Y = A - B, broadcast. A number takes the other operand's type. */
export function sub(a: Operand, b: Operand): Tensor {
  return only(apply(operands(a, b), undefined))
}
