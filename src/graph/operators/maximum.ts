import { sumTo } from '../broadcast.ts'
import { binaryShape, evaluateBinary } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { type Operand, operands, scalar, type Tensor } from '../tensor.ts'
import { cast } from './cast.ts'
import { equal } from './equal.ts'
import { greater } from './greater.ts'
import { mul } from './mul.ts'
import { where } from './where.ts'

const apply = defineOperator<undefined>({
  name: 'Max',
  shape: (inputs) => binaryShape(inputs, 'Max'),
  gradient({ inputs: [a, b], upstream: [g], needs }) {
    if (a === undefined || b === undefined || g === undefined) return []
    const share = (own: Tensor, other: Tensor): Tensor =>
      sumTo(mul(g, where(equal(own, other), scalar(0.5, g.dtype), cast(greater(own, other), g.dtype))), own.shape)
    return [needs[0] ? share(a, b) : undefined, needs[1] ? share(b, a) : undefined]
  },
  evaluate: (inputs) => evaluateBinary(inputs, (x, y) => Math.max(x, y)),
})

/** The larger of two elements, broadcast. A tie splits the gradient evenly, as torch.maximum has it. A number takes the other operand's type. */
export function maximum(a: Operand, b: Operand): Tensor {
  return only(apply(operands(a, b), undefined))
}
