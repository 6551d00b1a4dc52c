import { floatingShape } from '../elementwise.ts'
import { evaluateAlongAxis } from '../indexing.ts'
import { defineOperator, only } from '../operator.ts'
import { normaliseAxis, type Tensor } from '../tensor.ts'
import { exp } from './exp.ts'
import { mul } from './mul.ts'
import { reduceSum } from './reduce-sum.ts'
import { sub } from './sub.ts'

const apply = defineOperator<{ readonly axis: number }>({
  name: 'LogSoftmax',
  shape: (inputs) => floatingShape(inputs, 'LogSoftmax'),
  gradient({ outputs: [y], upstream: [g], needs, attributes: { axis } }) {
    if (!needs[0] || y === undefined || g === undefined) return []
    return [sub(g, mul(exp(y), reduceSum(g, [axis], { keepdims: true })))]
  },
  evaluate: ([x], { axis }) => [
    evaluateAlongAxis(x, axis, (row) => {
      const largest = Math.max(...row)
      const logTotal = largest + Math.log(row.reduce((sum, v) => sum + Math.exp(v - largest), 0))
      return row.map((v) => v - logTotal)
    }),
  ],
  onnx: ({ axis }) => ({ attributes: { axis: { int: axis } } }),
})

/** Y = X - ln(sum(exp(X))) along one axis (default the last).  dX = g - exp(Y) sum(g). */
export function logSoftmax(x: Tensor, axis = -1): Tensor {
  return only(apply([x], { axis: normaliseAxis(axis, x.shape.length, 'LogSoftmax') }))
}
