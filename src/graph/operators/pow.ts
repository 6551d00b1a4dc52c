import { sumTo } from '../broadcast.ts'
import { binaryShape, evaluateBinary } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { type Operand, operands, scalar, type Tensor } from '../tensor.ts'
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
      needs[0] ? sumTo(mul(g, mul(e, pow(x, sub(e, 1)))), x.shape) : undefined,
      // ln X has no value for X <= 0: there the exponent gets no gradient.
      needs[1]
        ? sumTo(mul(g, where(greater(x, 0), mul(y, log(where(greater(x, 0), x, scalar(1, x.dtype)))), scalar(0, x.dtype))), e.shape)
        : undefined,
    ]
  },
  evaluate: (inputs) => evaluateBinary(inputs, (x, y) => x ** y),
})

/** Y = X^E elementwise, broadcast.  dX = g E X^(E-1), dE = g Y ln X (0 where X <= 0). */
export function pow(x: Operand, exponent: Operand): Tensor {
  return only(apply(operands(x, exponent), undefined))
}
