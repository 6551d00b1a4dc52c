import { sumTo } from '../broadcast.ts'
import { binaryShape, evaluateBinary } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { type Operand, operands, scalar, type Tensor } from '../tensor.ts'
import { cast } from './cast.ts'
import { equal } from './equal.ts'
import { less } from './less.ts'
import { mul } from './mul.ts'
import { where } from './where.ts'

const apply = defineOperator<undefined>({
  name: 'Min',
  shape: (inputs) => binaryShape(inputs, 'Min'),
  gradient({ inputs: [a, b], upstream: [g], needs }) {
    if (a === undefined || b === undefined || g === undefined) return []
    const share = (own: Tensor, other: Tensor): Tensor =>
      sumTo(mul(g, where(equal(own, other), scalar(0.5, g.dtype), cast(less(own, other), g.dtype))), own.shape)
    return [needs[0] ? share(a, b) : undefined, needs[1] ? share(b, a) : undefined]
  },
  evaluate: (inputs) => evaluateBinary(inputs, (x, y) => Math.min(x, y)),
})

/** The smaller of two elements, broadcast. A tie splits the gradient evenly, as torch.minimum has it. A number takes the other operand's type. */
export function minimum(a: Operand, b: Operand): Tensor {
  return only(apply(operands(a, b), undefined))
}
