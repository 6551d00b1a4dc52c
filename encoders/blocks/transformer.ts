/** Transformer layers with a norm before each block, as vision models have them.   Dosovitskiy et al. 2021. */
import { scaledDotProductAttention } from '../../src/graph/composites/attention.ts'
import { add } from '../../src/graph/operators/add.ts'
import { mul } from '../../src/graph/operators/mul.ts'
import { reshape } from '../../src/graph/operators/reshape.ts'
import { split } from '../../src/graph/operators/split.ts'
import { transpose } from '../../src/graph/operators/transpose.ts'
import { dimAt, fixedDim, type Tensor } from '../../src/graph/tensor.ts'
import { type ActivationName, activate, gated } from '../../src/llm/activations.ts'
import type { FamilyWeights } from '../../src/llm/family-weights.ts'

/** Modules of one layer, by the names that the family's checkpoints have. */
export interface LayerModules {
  readonly norm1: string
  readonly query: string
  readonly key: string
  readonly value: string
  readonly output: string
  readonly norm2: string
  /** `gate` and `up` as two layers, as one after the other in `gateUp`, or `up` alone. */
  readonly gate?: string
  readonly up?: string
  readonly gateUp?: string
  readonly down: string
  /** Factors of the two branches (Touvron et al. 2021), [width] each. */
  readonly scale1?: string
  readonly scale2?: string
}

export interface LayerShape {
  readonly heads: number
  /** Channels inside the feed-forward block. */
  readonly inner: number
  readonly epsilon: number
  readonly activation: ActivationName
  /** Which linear layers have a bias. Default: all. */
  readonly biases?: {
    readonly query?: boolean
    readonly key?: boolean
    readonly value?: boolean
    readonly output?: boolean
    readonly mlp?: boolean
  }
  /** Turns queries and keys [images, heads, tokens, headDim] by their places. */
  readonly rotate?: (x: Tensor) => Tensor
}

/** x [images, tokens, width] -> the same. */
export function transformerLayer(x: Tensor, weights: FamilyWeights, modules: LayerModules, shape: LayerShape): Tensor {
  const { epsilon, biases = {} } = shape
  const width = fixedDim(x.shape, -1, 'hidden state')
  const scaled = (branch: Tensor, name: string | undefined): Tensor =>
    name === undefined ? branch : mul(branch, weights.tensor(name, [width]))

  const normal = weights.layerNorm(x, modules.norm1, { epsilon })
  const project = (module: string, bias = true): Tensor => weights.linear(normal, module, width, { bias })
  const attended = selfAttention(
    [project(modules.query, biases.query), project(modules.key, biases.key), project(modules.value, biases.value)],
    shape,
  )
  const middle = add(x, scaled(weights.linear(attended, modules.output, width, { bias: biases.output ?? true }), modules.scale1))
  const inner = weights.layerNorm(middle, modules.norm2, { epsilon })
  return add(middle, scaled(feedForward(inner, weights, modules, shape), modules.scale2))
}

/** Queries, keys and values [images, tokens, width] -> [images, tokens, width]. */
export function selfAttention(
  [query, key, value]: readonly [Tensor, Tensor, Tensor],
  { heads, rotate }: Pick<LayerShape, 'heads' | 'rotate'>,
): Tensor {
  const [images, tokens, width] = [dimAt(query.shape, 0), dimAt(query.shape, 1), fixedDim(query.shape, 2, 'queries')]
  const byHead = (t: Tensor): Tensor => transpose(reshape(t, [images, tokens, heads, width / heads]), [0, 2, 1, 3])
  const turned = (t: Tensor): Tensor => rotate?.(byHead(t)) ?? byHead(t)
  return reshape(transpose(scaledDotProductAttention(turned(query), turned(key), byHead(value)), [0, 2, 1, 3]), [images, tokens, width])
}

function feedForward(x: Tensor, weights: FamilyWeights, modules: LayerModules, { inner, activation, biases }: LayerShape): Tensor {
  const bias = biases?.mlp ?? true
  const width = fixedDim(x.shape, -1, 'hidden state')
  return weights.linear(innerActivation(), modules.down, width, { bias })

  function innerActivation(): Tensor {
    if (modules.gateUp !== undefined) {
      const [gate, up] = split(weights.linear(x, modules.gateUp, 2 * inner, { bias }), [inner, inner], -1)
      if (gate === undefined || up === undefined) throw new Error('internal: two halves')
      return gated(activation, gate, up)
    }
    if (modules.up === undefined) throw new Error('internal: a layer without its feed-forward block')
    const up = weights.linear(x, modules.up, inner, { bias })
    return modules.gate === undefined ? activate(activation, up) : gated(activation, weights.linear(x, modules.gate, inner, { bias }), up)
  }
}
