/** Activations that ONNX has no single standard operator for; each knows its own gradient, which recomputes rather than keeps. */
import { defineComposite, only, required } from '../operator.ts'
import { add } from '../operators/add.ts'
import { mul } from '../operators/mul.ts'
import { sigmoid } from '../operators/sigmoid.ts'
import { sub } from '../operators/sub.ts'
import type { Tensor } from '../tensor.ts'

/** d/dx [x s(ax)] = s + a x s (1 - s), with s = sigmoid(a x). */
const applyQuickGelu = defineComposite<{ readonly alpha: number }>({
  name: 'QuickGelu',
  expand(inputs, { alpha }) {
    const x = required(inputs, 0, 'QuickGelu')
    return [mul(x, sigmoid(alpha === 1 ? x : mul(x, alpha)))]
  },
  gradient({ inputs: [x], upstream: [g], needs, attributes: { alpha } }) {
    if (!needs[0] || x === undefined || g === undefined) return []
    const scaled = alpha === 1 ? x : mul(x, alpha)
    const s = sigmoid(scaled)
    return [mul(g, mul(s, add(mul(scaled, sub(1, s)), 1)))]
  },
})

/** Y = X sigmoid(1.702 X): the approximation of GELU that CLIP uses.   Hendrycks & Gimpel 2016. */
export function quickGelu(x: Tensor, alpha = 1.702): Tensor {
  return only(applyQuickGelu([x], { alpha }))
}

/** Y = X sigmoid(X), also called swish.   Elfwing, Uchibe & Doya 2017. */
export function silu(x: Tensor): Tensor {
  return quickGelu(x, 1)
}

/** With s = sigmoid(gate) and a = gate s:  dUp = g a,  dGate = g up (s + a (1 - s)). */
const applySwiglu = defineComposite<undefined>({
  name: 'SwiGLU',
  expand: (inputs) => [mul(silu(required(inputs, 0, 'SwiGLU')), required(inputs, 1, 'SwiGLU'))],
  gradient({ inputs: [gate, up], upstream: [g], needs }) {
    if (gate === undefined || up === undefined || g === undefined) return []
    const s = sigmoid(gate)
    const a = mul(gate, s)
    return [needs[0] ? mul(mul(g, up), add(s, mul(a, sub(1, s)))) : undefined, needs[1] ? mul(g, a) : undefined]
  },
})

/** Y = silu(gate) up.  Both of one shape.   Shazeer 2020. */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  return only(applySwiglu([gate, up], undefined))
}
