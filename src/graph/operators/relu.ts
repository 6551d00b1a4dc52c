import { evaluateUnary, unaryShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { scalar, type Tensor } from '../tensor.ts'
import { greater } from './greater.ts'
import { where } from './where.ts'

const apply = defineOperator<undefined>({
  name: 'Relu',
  shape: (inputs) => unaryShape(inputs, 'Relu'),
  gradient: ({ inputs: [x], upstream: [g], needs }) => [needs[0] && g && x ? where(greater(x, 0), g, scalar(0, g.dtype)) : undefined],
  evaluate: (inputs) => evaluateUnary(inputs, (x) => Math.max(x, 0)),
})

/** Y = max(X, 0).  dX = g where X > 0; 0 at 0, as PyTorch has it. */
export function relu(x: Tensor): Tensor {
  return only(apply([x], undefined))
}
