/** The decoder that Gemma 2 and 3 share: scaled embeddings, norms before and after each block with weights kept as w - 1, layers that see a window or all.   Gemma Team 2024, 2025. */
import { z } from 'zod'
import { add } from '../graph/operators/add.ts'
import type { Tensor } from '../graph/tensor.ts'
import { type ActivationName, activationName } from './activations.ts'
import { causalDecoder } from './causal-decoder.ts'
import type { Decoder, WeightLookup } from './decoder.ts'
import { familyWeights } from './family-weights.ts'
import { feedForward, layerTypes, modelPrefixes, narrower, normHeads } from './gated-decoder.ts'
import type { Rotary } from './rope-scaling.ts'

/** What both read of config.json; other keys are ignored. Defaults are those of Gemma2Config and Gemma3TextConfig. */
export const gemmaFields = {
  hidden_size: z.int().positive().default(2304),
  intermediate_size: z.int().positive().default(9216),
  num_hidden_layers: z.int().positive().default(26),
  num_attention_heads: z.int().positive().default(8),
  num_key_value_heads: z.int().positive().default(4),
  head_dim: z.int().positive().default(256),
  hidden_activation: activationName.nullable().default('gelu_pytorch_tanh'),
  rms_norm_eps: z.number().positive().default(1e-6),
  tie_word_embeddings: z.boolean().default(true),
  attention_bias: z.boolean().default(false),
  query_pre_attn_scalar: z.number().positive().default(256),
  sliding_window: z.int().positive().nullable().default(4096),
  layer_types: layerTypes,
}
export type GemmaConfig = z.infer<z.ZodObject<typeof gemmaFields>> & {
  readonly vocab_size: number
  readonly max_position_embeddings: number
}

export interface GemmaOptions {
  /** Whether a layer sees the window alone. */
  readonly sliding: (layer: number) => boolean
  readonly rotary: (layer: number) => Rotary
  /** RMSNorm over each head's channels of queries and keys. */
  readonly headNorms: boolean
  readonly attentionSoftcap: number | undefined
  readonly logitSoftcap: number | undefined
}

export function gemmaDecoder(config: GemmaConfig, lookup: WeightLookup, options: GemmaOptions): Decoder {
  const { hidden_size: width, num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: headDim, attention_bias: bias } = config
  const weights = familyWeights(lookup, modelPrefixes)
  const normalise = (x: Tensor, name: string): Tensor => weights.rmsNorm(x, name, { epsilon: config.rms_norm_eps, offset: 1 })
  const headNorm = (x: Tensor, name: string): Tensor => (options.headNorms ? normHeads(x, headDim, (own) => normalise(own, name)) : x)
  const window = narrower(config.sliding_window, config.max_position_embeddings)
  const activation: ActivationName = config.hidden_activation ?? 'gelu_pytorch_tanh'

  return causalDecoder({
    weights,
    embeddings: 'model.embed_tokens.weight',
    embeddingScale: Math.fround(Math.sqrt(width)),
    head: config.tie_word_embeddings ? undefined : 'lm_head.weight',
    logitSoftcap: options.logitSoftcap,
    hiddenSize: width,
    vocabularySize: config.vocab_size,
    layers: config.num_hidden_layers,
    kvHeads,
    headDim,
    maxPositions: config.max_position_embeddings,
    layer(x, index, attend) {
      const name = `model.layers.${index}`
      const own = `${name}.self_attn`
      const h = normalise(x, `${name}.input_layernorm`)
      const attended = attend(
        {
          query: headNorm(weights.linear(h, `${own}.q_proj`, heads * headDim, { bias }), `${own}.q_norm`),
          key: headNorm(weights.linear(h, `${own}.k_proj`, kvHeads * headDim, { bias }), `${own}.k_norm`),
          value: weights.linear(h, `${own}.v_proj`, kvHeads * headDim, { bias }),
        },
        {
          heads,
          kvHeads,
          headDim,
          scale: config.query_pre_attn_scalar ** -0.5,
          rotary: options.rotary(index),
          window: options.sliding(index) ? window : undefined,
          softcap: options.attentionSoftcap,
        },
      )
      const output = weights.linear(attended, `${own}.o_proj`, width, { bias })
      const residual = add(x, normalise(output, `${name}.post_attention_layernorm`))
      const fed = feedForward(weights, normalise(residual, `${name}.pre_feedforward_layernorm`), `${name}.mlp`, {
        inner: config.intermediate_size,
        activation,
        bias: false,
      })
      return add(residual, normalise(fed, `${name}.post_feedforward_layernorm`))
    },
    after: (x) => normalise(x, 'model.norm'),
  })
}
