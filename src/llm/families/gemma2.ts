/** Gemma 2: every other layer sees a window; attention scores and logits have soft caps.   Gemma Team 2024. */
import { z } from 'zod'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { checkHeads, checkRope, positionLimit, ropeFields } from '../gated-decoder.ts'
import { gemmaDecoder, gemmaFields } from '../gemma-decoder.ts'
import { rotaryFor } from '../rope-scaling.ts'

const softcap = z.number().positive().nullable()

/** What the family reads of config.json; other keys are ignored. Defaults are Gemma2Config's. */
export const gemma2Config = z
  .object({
    model_type: z.literal('gemma2'),
    ...gemmaFields,
    ...ropeFields,
    vocab_size: z.int().positive().default(256_000),
    max_position_embeddings: positionLimit.default(8192),
    final_logit_softcapping: softcap.default(30),
    attn_logit_softcapping: softcap.default(50),
    /** Token embedders made of Gemma 2 see what comes later; they generate nothing. */
    use_bidirectional_attention: z.literal(false).nullish(),
  })
  .superRefine(checkHeads)
  .superRefine(checkRope)
export type Gemma2Config = z.infer<typeof gemma2Config>

/**
 * @example
 * const decoder = gemma2(gemma2Config.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function gemma2(config: Gemma2Config, lookup: WeightLookup): Decoder {
  const rotary = rotaryFor({
    theta: config.rope_theta,
    headDim: config.head_dim,
    maxPositions: config.max_position_embeddings,
    scaling: config.rope_parameters ?? config.rope_scaling,
  })
  return gemmaDecoder(config, lookup, {
    sliding: (layer) => (config.layer_types?.[layer] ?? (layer % 2 === 0 ? 'sliding_attention' : 'full_attention')) === 'sliding_attention',
    rotary: () => rotary,
    headNorms: false,
    attentionSoftcap: config.attn_logit_softcapping ?? undefined,
    logitSoftcap: config.final_logit_softcapping ?? undefined,
  })
}
