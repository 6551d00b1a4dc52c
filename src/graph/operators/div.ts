import { sumTo } from '../broadcast.ts'
import { binaryShape, evaluateBinary } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { type Operand, operands, type Tensor } from '../tensor.ts'
import { mul } from './mul.ts'
import { neg } from './neg.ts'

const apply = defineOperator<undefined>({
  name: 'Div',
  shape: (inputs) => binaryShape(inputs, 'Div'),
  gradient({ inputs: [a, b], outputs: [y], upstream: [g], needs }) {
    if (a === undefined || b === undefined) return []
    return [needs[0] ? g && sumTo(div(g, b), a.shape) : undefined, needs[1] ? g && y && sumTo(neg(div(mul(g, y), b)), b.shape) : undefined]
  },
  evaluate: (inputs) => evaluateBinary(inputs, (x, y) => x / y),
})

/** Y = A / B elementwise, broadcast.  dA = g / B, dB = -g Y / B. A number takes the other operand's type. */
export function div(a: Operand, b: Operand): Tensor {
  return only(apply(operands(a, b), undefined))
}
