/** Gemma 3: five layers that see a window, then one that sees all, each kind with angles of its own; norms of queries and keys.   Gemma Team 2025. */
import { z } from 'zod'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { checkHeads, positionLimit } from '../gated-decoder.ts'
import { gemmaDecoder, gemmaFields } from '../gemma-decoder.ts'
import { ropeScaling, rotaryFor } from '../rope-scaling.ts'

const softcap = z.number().positive().nullable()

const textFields = {
  ...gemmaFields,
  vocab_size: z.int().positive().default(262_208),
  max_position_embeddings: positionLimit.default(131_072),
  final_logit_softcapping: softcap.default(null),
  attn_logit_softcapping: softcap.default(null),
  use_bidirectional_attention: z.literal(false).nullish(),
  /** Every so many layers one sees all. */
  sliding_window_pattern: z.int().positive().default(6),
  rope_theta: z.number().positive().default(1_000_000),
  rope_local_base_freq: z.number().positive().default(10_000),
  rope_scaling: ropeScaling.nullish(),
  rope_parameters: z.object({ full_attention: ropeScaling.nullish(), sliding_attention: ropeScaling.nullish() }).nullish(),
}

/** What the family reads of config.json; other keys are ignored. Defaults are Gemma3TextConfig's. */
export const gemma3TextConfig = z.object({ model_type: z.literal('gemma3_text'), ...textFields }).superRefine(checkHeads)
export type Gemma3TextConfig = z.infer<typeof gemma3TextConfig>

/** The checkpoints with a vision tower: their language model is what counts here. */
export const gemma3Config = z.object({
  model_type: z.literal('gemma3'),
  text_config: z.object({ model_type: z.literal('gemma3_text').default('gemma3_text'), ...textFields }).superRefine(checkHeads),
})
export type Gemma3Config = z.infer<typeof gemma3Config>

/**
 * @example
 * const decoder = gemma3Text(gemma3TextConfig.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function gemma3Text(config: Gemma3TextConfig, lookup: WeightLookup): Decoder {
  const shape = { headDim: config.head_dim, maxPositions: config.max_position_embeddings }
  const { rope_parameters: both } = config
  const everywhere = rotaryFor({ ...shape, theta: config.rope_theta, scaling: both?.full_attention ?? config.rope_scaling })
  const nearby = rotaryFor({ ...shape, theta: config.rope_local_base_freq, scaling: both?.sliding_attention })
  const sliding = (layer: number): boolean =>
    (config.layer_types?.[layer] ?? ((layer + 1) % config.sliding_window_pattern === 0 ? 'full_attention' : 'sliding_attention')) ===
    'sliding_attention'
  return gemmaDecoder(config, lookup, {
    sliding,
    rotary: (layer) => (sliding(layer) ? nearby : everywhere),
    headNorms: true,
    attentionSoftcap: config.attn_logit_softcapping ?? undefined,
    logitSoftcap: config.final_logit_softcapping ?? undefined,
  })
}

/**
 * @example
 * const decoder = gemma3(gemma3Config.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function gemma3(config: Gemma3Config, lookup: WeightLookup): Decoder {
  return gemma3Text(config.text_config, lookup)
}
