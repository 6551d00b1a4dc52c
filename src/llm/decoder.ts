/** What a decoder family gives: functions that add its layers to a graph. One decoder serves training and cached generation. */
import type { Tensor } from '../graph/tensor.ts'

/** Where frozen (or trainable) weights come from, by the names that checkpoints use. @throws WEIGHT_MISSING, WEIGHT_SHAPE */
export type WeightLookup = (name: string, shape: readonly number[]) => Tensor

/** Keys and values of earlier tokens, for one layer: [batch, kvHeads, past, headDim]. */
export interface LayerCache {
  readonly key: Tensor
  readonly value: Tensor
}

/** The past of a batch whose rows have lengths of their own. */
export interface DecoderCache {
  readonly layers: readonly LayerCache[]
  /** int32 [batch]: the last place of the cache in use after this call. */
  readonly lastPlaces: Tensor
  /** int32, rank 0: places of the cache that the longest row uses after this call. */
  readonly totalLength: Tensor
}

export interface DecodeContext {
  /** int64 [batch, tokens]: where each token stands in its own sequence. */
  readonly positions: Tensor
  /** int64 [batch, tokens]: tokens see only tokens of their own segment (packed sequences). Absent: one segment a row. Not with a cache. */
  readonly segments?: Tensor
  /** Generation. Absent: the whole sequence is here. */
  readonly cache?: DecoderCache
}

export interface Decoded {
  /** After the final norm: [batch, tokens, hiddenSize]. */
  readonly hidden: Tensor
  /** Keys and values of all tokens so far: with a cache, what the next call's cache is. */
  readonly cache: readonly LayerCache[]
}

export interface Decoder {
  /** The name of the token embeddings among the weights. */
  readonly embeddingsName: string
  readonly hiddenSize: number
  readonly vocabularySize: number
  readonly layers: number
  readonly kvHeads: number
  readonly headDim: number
  readonly maxPositions: number
  /** ids int64 [...] -> [..., hiddenSize]. */
  embed(ids: Tensor): Tensor
  /** inputsEmbeds [batch, tokens, hiddenSize]. Tokens after a sequence's end may hold anything: no earlier token sees them. */
  decode(inputsEmbeds: Tensor, context: DecodeContext): Decoded
  /** The output matrix [vocabularySize, hiddenSize]: logits = hidden head^T. */
  readonly head: Tensor
}
