import { floatingShape } from '../elementwise.ts'
import { evaluateAlongAxis } from '../indexing.ts'
import { defineOperator, only } from '../operator.ts'
import { normaliseAxis, type Tensor } from '../tensor.ts'
import { mul } from './mul.ts'
import { reduceSum } from './reduce-sum.ts'
import { sub } from './sub.ts'

const apply = defineOperator<{ readonly axis: number }>({
  name: 'Softmax',
  shape: (inputs) => floatingShape(inputs, 'Softmax'),
  gradient({ outputs: [y], upstream: [g], needs, attributes: { axis } }) {
    if (!needs[0] || y === undefined || g === undefined) return []
    return [mul(y, sub(g, reduceSum(mul(g, y), [axis], { keepdims: true })))]
  },
  evaluate: ([x], { axis }) => [
    evaluateAlongAxis(x, axis, (row) => {
      const largest = Math.max(...row)
      const exponentials = row.map((v) => Math.exp(v - largest))
      const total = exponentials.reduce((sum, v) => sum + v, 0)
      return exponentials.map((v) => v / total)
    }),
  ],
  onnx: ({ axis }) => ({ attributes: { axis: { int: axis } } }),
})

/** Y = exp(X) / sum(exp(X)) along one axis (default the last).  dX = Y (g - sum(g Y)). */
export function softmax(x: Tensor, axis = -1): Tensor {
  return only(apply([x], { axis: normaliseAxis(axis, x.shape.length, 'Softmax') }))
}
