/** What every decoder-only family shares: embeddings in, layers one after another with their caches, a final norm, an output matrix. */
import { gatherRows } from '../graph/composites/block-quantised.ts'
import { mul } from '../graph/operators/mul.ts'
import type { Tensor } from '../graph/tensor.ts'
import type { DecodeContext, Decoder, LayerCache } from './decoder.ts'
import type { FamilyWeights } from './family-weights.ts'
import { type AttentionSpec, type Projected, selfAttention } from './self-attention.ts'

/** The attention of the layer under way: it knows the call's context and the layer's cache. */
export type Attend = (projected: Projected, spec: AttentionSpec) => Tensor

export interface CausalDecoderParts {
  readonly weights: FamilyWeights
  /** Transformers' name of the token embeddings. */
  readonly embeddings: string
  readonly embeddingScale?: number
  /** Transformers' name of the output matrix. Absent: the embeddings are it. */
  readonly head?: string | undefined
  readonly logitSoftcap?: number | undefined
  readonly hiddenSize: number
  readonly vocabularySize: number
  readonly layers: number
  readonly kvHeads: number
  readonly headDim: number
  readonly maxPositions: number
  /** See `Decoder.longAfter`. */
  readonly longAfter?: number | undefined
  /** What comes before the first layer: learned positions, norms. Default: nothing. */
  readonly before?: (inputsEmbeds: Tensor, positions: Tensor) => Tensor
  /** One layer: x [batch, tokens, channels] -> the same shape. It calls `attend` once. */
  readonly layer: (x: Tensor, index: number, attend: Attend) => Tensor
  /** What comes after the last layer: the final norm. */
  readonly after: (x: Tensor) => Tensor
}

export function causalDecoder(parts: CausalDecoderParts): Decoder {
  const { weights, hiddenSize, vocabularySize, layers, kvHeads, headDim, maxPositions, longAfter, embeddingScale, logitSoftcap } = parts
  const table = weights.tensor(parts.embeddings, [vocabularySize, hiddenSize])
  return {
    embeddingsName: weights.stored(parts.embeddings),
    hiddenSize,
    vocabularySize,
    layers,
    kvHeads,
    headDim,
    maxPositions,
    embed: (ids) => (embeddingScale === undefined ? gatherRows(table, ids) : mul(gatherRows(table, ids), embeddingScale)),
    decode(inputsEmbeds, context) {
      let x = parts.before?.(inputsEmbeds, context.positions) ?? inputsEmbeds
      const cache: LayerCache[] = []
      for (let index = 0; index < layers; index++) x = parts.layer(x, index, attention(context, context.cache?.layers[index], cache))
      return { hidden: parts.after(x), cache }
    },
    head: parts.head === undefined ? table : weights.tensor(parts.head, [vocabularySize, hiddenSize]),
    ...(embeddingScale === undefined ? {} : { embeddingScale }),
    ...(longAfter === undefined ? {} : { longAfter }),
    ...(logitSoftcap === undefined ? {} : { logitSoftcap }),
  }
}

function attention(context: DecodeContext, past: LayerCache | undefined, made: LayerCache[]): Attend {
  return (projected, spec) => {
    const { output, cache } = selfAttention(projected, spec, context, past)
    made.push(cache)
    return output
  }
}
