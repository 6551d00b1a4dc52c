/** What a decoder family gives: functions that add its layers to a graph. One decoder serves training and cached generation. */
import { matmulTransposed } from '../graph/composites/linear.ts'
import { mul } from '../graph/operators/mul.ts'
import { tanh } from '../graph/operators/tanh.ts'
import type { Parameter } from '../graph/parameters.ts'
import type { Tensor } from '../graph/tensor.ts'

/**
 * Where frozen (or trainable) weights come from, by the names that checkpoints use. A plain function will do; who rewrites models gives more:
 *
 * * an adapter (LoRA) wraps a lookup and gives `linear`, which sees every linear layer of every family;
 * * a quantised checkpoint gives `linear`, which multiplies by blocks instead of by the tensor that the call would have returned.
 *
 * @throws WEIGHT_MISSING, WEIGHT_SHAPE
 * @example
 * const adapted: WeightLookup = Object.assign((name: string, shape: readonly number[]) => lookup(name, shape), {
 *   linear: (x: Tensor, layer: LinearLayer, plain: () => Tensor) => (targets.has(layer.module) ? add(plain(), delta(x, layer)) : plain()),
 * })
 */
export interface WeightLookup {
  (name: string, shape: readonly number[]): Tensor
  /** Whether there is a tensor of this name. Absent: the names are those that Transformers writes today. */
  readonly has?: ((name: string) => boolean) | undefined
  /**
   * Makes the product of a linear layer, x [..., inFeatures] -> [..., outFeatures]; the bias is added to what it returns. `plain` makes the usual product, and asks for
   * the weight only then. Embedding tables and the output matrix (`Decoder.head`) are no linear layers.
   */
  readonly linear?: ((x: Tensor, layer: LinearLayer, plain: () => Tensor) => Tensor) | undefined
}

/** One linear layer of a model. */
export interface LinearLayer {
  /** The module's path as Transformers names it, whatever prefix this checkpoint has: `model.layers.0.self_attn.q_proj`. What adapter files name. */
  readonly module: string
  /** The name of the weight in this checkpoint. */
  readonly weight: string
  readonly inFeatures: number
  readonly outFeatures: number
  /** How the weight lies: [out, in] as torch.nn.Linear has it, or [in, out] as GPT-2's Conv1D. */
  readonly layout: LinearLayout
}
export type LinearLayout = 'out-in' | 'in-out'

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

/**
 * Encoder-decoders read one sequence a row like every other family: its first tokens are the encoder's, the others the decoder's. The last of the encoder's places is
 * also where the decoder begins, with its start token, so that the state at every place predicts the next token here too.
 */
export interface SourceTokens {
  /** int64 [batch]: how many tokens at a row's start are the encoder's. */
  readonly lengths: Tensor
  /** int64 [sourceTokens]: the places among this call's tokens that the encoder reads, 0, 1, 2, ... up to the longest row's; none in calls that only add tokens. */
  readonly encoderPlaces: Tensor
  /** int64 [targetTokens]: the places that the decoder reads: the last ones, from where the first row's decoder begins. Earlier states are 0. */
  readonly decoderPlaces: Tensor
}

/** Dropout of a step: see `adapters/dropout.ts`. */
export interface DropoutInputs {
  /** int32 [batch, tokens, width]. */
  readonly field: Tensor
  /** int32, rank 0. */
  readonly threshold: Tensor
  /** float32, rank 0. */
  readonly scale: Tensor
}

export interface DecodeContext {
  /** int64 [batch, tokens]: where each token stands in its own sequence. */
  readonly positions: Tensor
  /** int64 [batch, tokens]: tokens see only tokens of their own segment (packed sequences). Absent: one segment a row. Not with a cache, nor with `source`. */
  readonly segments?: Tensor
  /** Generation. Absent: the whole sequence is here. */
  readonly cache?: DecoderCache
  /** Encoder-decoders need it; the others take none. */
  readonly source?: SourceTokens
  /** Training of adapters with dropout. Absent: nothing is dropped. */
  readonly dropout?: DropoutInputs
}

export interface Decoded {
  /** After the final norm: [batch, tokens, hiddenSize]. */
  readonly hidden: Tensor
  /** Keys and values of all tokens so far: with a cache, what the next call's cache is. */
  readonly cache: readonly LayerCache[]
}

/** What of a decoder is trained: see `adapt`. */
export interface TrainedParts {
  /** Graph inputs of the decoder that training updates. */
  readonly parameters: readonly Parameter[]
  /** [tokens, hiddenSize]: whoever builds a batch gives them the first places of every sequence. */
  readonly softPrompt?: Tensor
  /** `decode` takes `dropout`, with a field of this width at least. */
  readonly dropout?: { readonly rate: number; readonly width: number }
  /** What generation uses; the same object until the values change. */
  readonly present: () => PresentValues
}

/** A model with the present values of what is trained. */
export interface PresentValues {
  /** The decoder with these values as weights in memory. */
  readonly decoder: Decoder
  /** The soft prompt's values, [tokens, hiddenSize]; empty where there is none. */
  readonly softPrompt: Float32Array
}

/** Builds a model's decoder, its weights looked up otherwise. */
export type BuildDecoder = (change?: (lookup: WeightLookup) => WeightLookup) => Decoder

export interface Decoder {
  /** Absent: the model is frozen as it was published. */
  readonly trained?: TrainedParts
  /** The name of the token embeddings among the weights. */
  readonly embeddingsName: string
  /** What `embed` multiplies the table's rows by. Absent: 1. */
  readonly embeddingScale?: number
  /** Channels of a token's embedding, and of `hidden`. */
  readonly hiddenSize: number
  readonly vocabularySize: number
  /** Pairs of keys and values in the cache: one for each layer; an encoder-decoder has one more after each for the layer's look at the source, which has a length of its own. */
  readonly layers: number
  readonly kvHeads: number
  readonly headDim: number
  readonly maxPositions: number
  /** Sequences of more tokens than this have other rotary angles, from their first token on: what a cache holds of a row that grows beyond it must be read again. */
  readonly longAfter?: number
  /** Encoder-decoders: `decode` needs `source`. */
  readonly hasEncoder?: boolean
  /** ids int64 [...] -> [..., hiddenSize]. */
  embed(ids: Tensor): Tensor
  /** inputsEmbeds [batch, tokens, hiddenSize]. Tokens after a sequence's end may hold anything: no earlier token sees them. */
  decode(inputsEmbeds: Tensor, context: DecodeContext): Decoded
  /** The output matrix [vocabularySize, hiddenSize]: see {@link logitsOf}. */
  readonly head: Tensor
  /** Logits are bent into (-logitSoftcap, logitSoftcap). */
  readonly logitSoftcap?: number
}

/** logits = hidden head^T, softly capped where the model has a cap.  hidden [..., hiddenSize] -> [..., vocabularySize]. */
export function logitsOf({ head, logitSoftcap }: Pick<Decoder, 'head' | 'logitSoftcap'>, hidden: Tensor): Tensor {
  const logits = matmulTransposed(hidden, head)
  return logitSoftcap === undefined ? logits : mul(tanh(mul(logits, 1 / logitSoftcap)), logitSoftcap)
}
