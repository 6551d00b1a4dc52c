/**
 * The decoder that Llama, Mistral and Qwen share: RMSNorm before each block, rotary positions, grouped heads, a gated feed-forward layer.   Touvron et al. 2023; weight
 * names as Transformers has them.
 */
import { z } from 'zod'
import { add } from '../graph/operators/add.ts'
import { reshape } from '../graph/operators/reshape.ts'
import { dimAt, type Tensor } from '../graph/tensor.ts'
import { activationName, gated } from './activations.ts'
import { causalDecoder } from './causal-decoder.ts'
import type { Decoder, WeightLookup } from './decoder.ts'
import { type FamilyWeights, familyWeights } from './family-weights.ts'
import { type RopeScaling, ropeScaling, rotaryFor } from './rope-scaling.ts'

/** The tables of angles grow with the positions: a billion of them is a damaged file, not a model. */
const largestPositions = 2 ** 21
export const positionLimit = z.int().positive().max(largestPositions)

/** Where the angles' base and their scaling stand: Transformers 5 writes `rope_parameters`, earlier ones `rope_theta` and `rope_scaling`. */
export const ropeFields = {
  rope_theta: z.number().positive().default(10_000),
  rope_parameters: ropeScaling.nullish(),
  rope_scaling: ropeScaling.nullish(),
}

/** What all of these families read of config.json; other keys are ignored. Defaults are LlamaConfig's, which the others write out. */
export const gatedFields = {
  hidden_size: z.int().positive(),
  intermediate_size: z.int().positive(),
  num_hidden_layers: z.int().positive(),
  num_attention_heads: z.int().positive(),
  num_key_value_heads: z.int().positive().nullish(),
  head_dim: z.int().positive().nullish(),
  vocab_size: z.int().positive(),
  max_position_embeddings: positionLimit.default(2048),
  rms_norm_eps: z.number().positive().default(1e-6),
  ...ropeFields,
  hidden_act: activationName.default('silu'),
  tie_word_embeddings: z.boolean().default(false),
}

interface HeadFields {
  readonly hidden_size: number
  readonly num_attention_heads: number
  readonly num_key_value_heads?: number | null | undefined
  readonly head_dim?: number | null | undefined
}

/** A zod refinement: heads divide the width, and groups the heads. */
export function checkHeads(
  { hidden_size: width, num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: headDim }: HeadFields,
  { addIssue }: { readonly addIssue: (issue: { code: 'custom'; path: string[]; message: string }) => void },
): void {
  const refuse = (field: string, message: string): void => addIssue({ code: 'custom', path: [field], message })
  if (headDim == null && width % heads !== 0)
    refuse('num_attention_heads', `a divisor of hidden_size, ${width}, where head_dim is not given`)
  else if ((headDim ?? width / heads) % 2 !== 0) refuse('head_dim', 'an even number: rotary positions turn pairs of channels')
  if (heads % (kvHeads ?? heads) !== 0) refuse('num_key_value_heads', `a divisor of num_attention_heads, ${heads}`)
}

interface RopeConfig extends HeadFields {
  readonly partial_rotary_factor?: number
  readonly rope_parameters?: RopeScaling | null | undefined
  readonly rope_scaling?: RopeScaling | null | undefined
}

/** A zod refinement: angles are scaled pair by pair. */
export function checkRope(config: RopeConfig, { addIssue }: Parameters<typeof checkHeads>[1]): void {
  const field = config.rope_parameters == null ? 'rope_scaling' : 'rope_parameters'
  const scaling = config[field]
  if (scaling?.rope_type !== 'longrope') return
  const headDim = config.head_dim ?? config.hidden_size / config.num_attention_heads
  const pairs = Math.trunc(headDim * (scaling.partial_rotary_factor ?? config.partial_rotary_factor ?? 1)) / 2
  for (const list of ['short_factor', 'long_factor'] as const) {
    if (scaling[list].length !== pairs)
      addIssue({ code: 'custom', path: [field, list], message: `${pairs} numbers, one for each pair of channels` })
  }
}

/** Which layers see a window, as Transformers 5 writes it. */
export const layerTypes = z
  .array(z.enum(['full_attention', 'sliding_attention']))
  .readonly()
  .nullish()

/** Qwen's windows: off unless `use_sliding_window`, and only from a layer on. */
export const windowFields = {
  use_sliding_window: z.boolean().default(false),
  sliding_window: z.int().positive().nullable().default(4096),
  max_window_layers: z.int().min(0).default(28),
  layer_types: layerTypes,
}

export function windowOf(config: z.infer<z.ZodObject<typeof windowFields>>, layer: number): number | undefined {
  if (!config.use_sliding_window || config.sliding_window === null) return undefined
  const sliding = config.layer_types?.[layer] ?? (layer >= config.max_window_layers ? 'sliding_attention' : 'full_attention')
  return sliding === 'sliding_attention' ? config.sliding_window : undefined
}

/** A window as wide as the context hides nothing. */
export function narrower(window: number | null | undefined, maxPositions: number): number | undefined {
  return window != null && window < maxPositions ? window : undefined
}

export type GatedConfig = z.infer<z.ZodObject<typeof gatedFields>>

/** Prefixes of published checkpoints: of the model with its head, of the model without, and of vision models around it. */
export const modelPrefixes = {
  prefix: 'model.',
  others: ['', 'language_model.model.', 'model.language_model.'],
  probe: 'embed_tokens.weight',
} as const

export interface GatedOptions {
  /** Biases of q, k and v. */
  readonly projectionBias?: boolean
  readonly outputBias?: boolean
  readonly feedForwardBias?: boolean
  /** RMSNorm over each head's channels of queries and keys. */
  readonly headNorms?: boolean
  /** Sliding window of a layer; undefined: none. */
  readonly window?: (layer: number) => number | undefined
}

export function gatedDecoder(config: GatedConfig, lookup: WeightLookup, options: GatedOptions): Decoder {
  const { hidden_size: width, intermediate_size: inner, num_attention_heads: heads, vocab_size: vocabularySize } = config
  const kvHeads = config.num_key_value_heads ?? heads
  const headDim = config.head_dim ?? width / heads
  const maxPositions = config.max_position_embeddings
  const rotary = rotaryFor({ theta: config.rope_theta, headDim, maxPositions, scaling: config.rope_parameters ?? config.rope_scaling })
  const spec = { heads, kvHeads, headDim, scale: 1 / Math.sqrt(headDim), rotary }
  const weights = familyWeights(lookup, modelPrefixes)
  const normalise = (x: Tensor, name: string): Tensor => weights.rmsNorm(x, name, { epsilon: config.rms_norm_eps })
  const headNorm = (x: Tensor, name: string): Tensor => (options.headNorms ? normHeads(x, headDim, (heads) => normalise(heads, name)) : x)

  return causalDecoder({
    weights,
    embeddings: 'model.embed_tokens.weight',
    head: config.tie_word_embeddings ? undefined : 'lm_head.weight',
    hiddenSize: width,
    vocabularySize,
    layers: config.num_hidden_layers,
    kvHeads,
    headDim,
    maxPositions,
    longAfter: rotary.long?.after,
    layer(x, index, attend) {
      const name = `model.layers.${index}`
      const own = `${name}.self_attn`
      const h = normalise(x, `${name}.input_layernorm`)
      const bias = options.projectionBias ?? false
      const query = headNorm(weights.linear(h, `${own}.q_proj`, heads * headDim, { bias }), `${own}.q_norm`)
      const key = headNorm(weights.linear(h, `${own}.k_proj`, kvHeads * headDim, { bias }), `${own}.k_norm`)
      const value = weights.linear(h, `${own}.v_proj`, kvHeads * headDim, { bias })
      const attended = attend({ query, key, value }, { ...spec, window: narrower(options.window?.(index), maxPositions) })
      const residual = add(x, weights.linear(attended, `${own}.o_proj`, width, { bias: options.outputBias ?? false }))
      const fed = feedForward(weights, normalise(residual, `${name}.post_attention_layernorm`), `${name}.mlp`, {
        inner,
        activation: config.hidden_act,
        bias: options.feedForwardBias ?? false,
      })
      return add(residual, fed)
    },
    after: (x) => normalise(x, 'model.norm'),
  })
}

/** Y = W_down (act(W_gate X) * W_up X). */
export function feedForward(
  weights: FamilyWeights,
  x: Tensor,
  name: string,
  { inner, activation, bias }: { readonly inner: number; readonly activation: z.infer<typeof activationName>; readonly bias: boolean },
): Tensor {
  const width = dimAt(x.shape, -1)
  if (typeof width !== 'number') throw new Error('internal: channels are a number')
  const gate = weights.linear(x, `${name}.gate_proj`, inner, { bias })
  const up = weights.linear(x, `${name}.up_proj`, inner, { bias })
  return weights.linear(gated(activation, gate, up), `${name}.down_proj`, width, { bias })
}

/** A norm over the channels of each head: x [batch, tokens, heads*headDim]. */
export function normHeads(x: Tensor, headDim: number, normalise: (heads: Tensor) => Tensor): Tensor {
  const [batch, tokens, width] = [dimAt(x.shape, 0), dimAt(x.shape, 1), dimAt(x.shape, 2)]
  if (typeof width !== 'number') throw new Error('internal: channels are a number')
  return reshape(normalise(reshape(x, [batch, tokens, width / headDim, headDim])), x.shape)
}
