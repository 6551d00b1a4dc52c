/** The activations of feed-forward layers, by the names that config.json has for them. */
import { z } from 'zod'
import { quickGelu, silu, swiglu } from '../graph/composites/activations.ts'
import { gelu } from '../graph/operators/gelu.ts'
import { mul } from '../graph/operators/mul.ts'
import { relu } from '../graph/operators/relu.ts'
import { tanh } from '../graph/operators/tanh.ts'
import type { Tensor } from '../graph/tensor.ts'

const activations = {
  silu: (x) => silu(x),
  swish: (x) => silu(x),
  relu: (x) => relu(x),
  gelu: (x) => gelu(x),
  gelu_new: (x) => gelu(x, 'tanh'),
  gelu_fast: (x) => gelu(x, 'tanh'),
  gelu_pytorch_tanh: (x) => gelu(x, 'tanh'),
  quick_gelu: (x) => quickGelu(x),
  tanh: (x) => tanh(x),
} as const satisfies Readonly<Record<string, (x: Tensor) => Tensor>>

export const activationName = z.enum(['silu', 'swish', 'relu', 'gelu', 'gelu_new', 'gelu_fast', 'gelu_pytorch_tanh', 'quick_gelu', 'tanh'])
export type ActivationName = z.infer<typeof activationName>

export function activate(name: ActivationName, x: Tensor): Tensor {
  return activations[name](x)
}

/** act(gate) up.  Shazeer 2020. */
export function gated(name: ActivationName, gate: Tensor, up: Tensor): Tensor {
  return name === 'silu' || name === 'swish' ? swiglu(gate, up) : mul(activate(name, gate), up)
}
