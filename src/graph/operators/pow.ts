import { sumTo } from '../broadcast.ts'
import { binaryShape, evaluateBinary } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { type Operand, operands, scalar, type Tensor } from '../tensor.ts'
import { equal } from './equal.ts'
import { greater } from './greater.ts'
import { log } from './log.ts'
import { mul } from './mul.ts'
import { sub } from './sub.ts'
import { where } from './where.ts'

const apply = defineOperator<undefined>({
  name: 'Pow',
  shape: (inputs) => binaryShape(inputs, 'Pow'),
  gradient({ inputs: [x, e], outputs: [y], upstream: [g], needs }) {
    if (x === undefined || e === undefined || y === undefined || g === undefined) return []
    return [
      needs[0] ? sumTo(mul(g, mul(e, pow(x, lowered(e)))), x.shape) : undefined,
      // ln X has no value for X <= 0: there the exponent gets no gradient.
      needs[1]
        ? sumTo(mul(g, where(greater(x, 0), mul(y, log(where(greater(x, 0), x, scalar(1, x.dtype)))), scalar(0, x.dtype))), e.shape)
        : undefined,
    ]
  },
  evaluate: (inputs) => evaluateBinary(inputs, (x, y) => x ** y),
})

/** Y = X^E elementwise, broadcast.  dX = g E X^(E-1), dE = g Y ln X (0 where X <= 0). Where E = 0, dX = 0 also at X = 0. */
export function pow(x: Operand, exponent: Operand): Tensor {
  return only(apply(operands(x, exponent), undefined))
}

/** E - 1, but 1 where E is 0: X^-1 has no value at 0, and the factor E makes the product 0 whatever the power is. A constant exponent other than 0 needs no such care. */
function lowered(exponent: Tensor): Tensor {
  const { node } = exponent
  const safe = node.kind === 'constant' && node.value.data.every((element) => Number(element) !== 0)
  return safe ? sub(exponent, 1) : where(equal(exponent, 0), scalar(1, exponent.dtype), sub(exponent, 1))
}
