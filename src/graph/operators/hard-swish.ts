import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { scalar, type Tensor } from '../tensor.ts'
import { add } from './add.ts'
import { greater } from './greater.ts'
import { less } from './less.ts'
import { mul } from './mul.ts'
import { where } from './where.ts'

const apply = defineOperator<undefined>({
  name: 'HardSwish',
  shape: (inputs) => floatingShape(inputs, 'HardSwish'),
  gradient({ inputs: [x], upstream: [g], needs }) {
    if (!needs[0] || x === undefined || g === undefined) return []
    const between = mul(g, add(mul(x, 1 / 3), 0.5))
    return [where(less(x, 3), where(greater(x, -3), between, scalar(0, g.dtype)), g)]
  },
  evaluate: (inputs) => evaluateUnary(inputs, (x) => x * Math.max(0, Math.min(1, x / 6 + 0.5))),
})

/** Y = X max(0, min(1, X/6 + 1/2)).  dX = g (X/3 + 1/2) between -3 and 3, 0 below, g above. Howard et al. 2019. */
export function hardSwish(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
