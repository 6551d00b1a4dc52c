import { evaluateUnary, floatingShape } from '../elementwise.ts'
import { defineOperator, only } from '../operator.ts'
import { erfOf } from '../special.ts'
import type { Tensor } from '../tensor.ts'
import { add } from './add.ts'
import { erf } from './erf.ts'
import { exp } from './exp.ts'
import { mul } from './mul.ts'
import { sub } from './sub.ts'
import { tanh } from './tanh.ts'

type Approximation = 'none' | 'tanh'

const slope = Math.sqrt(2 / Math.PI)
const cubic = 0.044715

const apply = defineOperator<{ readonly approximate: Approximation }>({
  name: 'Gelu',
  shape: (inputs) => floatingShape(inputs, 'Gelu'),
  gradient({ inputs: [x], upstream: [g], needs, attributes: { approximate } }) {
    if (!needs[0] || x === undefined || g === undefined) return []
    return [mul(g, approximate === 'tanh' ? tanhDerivative(x) : erfDerivative(x))]
  },
  evaluate: (inputs, { approximate }) =>
    evaluateUnary(
      inputs,
      approximate === 'tanh'
        ? (x) => 0.5 * x * (1 + Math.tanh(slope * (x + cubic * x ** 3)))
        : (x) => 0.5 * x * (1 + erfOf(x * Math.SQRT1_2)),
    ),
  onnx: ({ approximate }) => ({ attributes: { approximate: { string: approximate } } }),
})

/**
 * Y = X P(X) with P the distribution function of the normal distribution, or its tanh approximation. Hendrycks & Gimpel 2016.
 * dX = g (P(X) + X p(X)), p its density.
 */
export function gelu(x: Tensor, approximate: Approximation = 'none'): Tensor {
  return only(apply([x], { approximate }))
}

function erfDerivative(x: Tensor): Tensor {
  const distribution = mul(add(erf(mul(x, Math.SQRT1_2)), 1), 0.5)
  const density = mul(exp(mul(mul(x, x), -0.5)), 1 / Math.sqrt(2 * Math.PI))
  return add(distribution, mul(x, density))
}

function tanhDerivative(x: Tensor): Tensor {
  const square = mul(x, x)
  const t = tanh(mul(mul(x, add(mul(square, cubic), 1)), slope))
  const inner = mul(add(mul(square, 3 * cubic), 1), slope)
  return mul(add(add(t, 1), mul(mul(x, sub(1, mul(t, t))), inner)), 0.5)
}
