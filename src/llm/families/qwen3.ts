/** Qwen 3, the dense models: Llama with an RMSNorm over each head of queries and keys.   Yang et al. 2025. */
import { z } from 'zod'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { checkHeads, checkRope, gatedDecoder, gatedFields, positionLimit, windowFields, windowOf } from '../gated-decoder.ts'

/** What the family reads of config.json; other keys are ignored. Defaults are Qwen3Config's. */
export const qwen3Config = z
  .object({
    model_type: z.literal('qwen3'),
    ...gatedFields,
    num_key_value_heads: z.int().positive().nullable().default(32),
    head_dim: z.int().positive().nullable().default(128),
    max_position_embeddings: positionLimit.default(32_768),
    attention_bias: z.boolean().default(false),
    ...windowFields,
  })
  .superRefine(checkHeads)
  .superRefine(checkRope)
export type Qwen3Config = z.infer<typeof qwen3Config>

/**
 * @example
 * const decoder = qwen3(qwen3Config.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function qwen3(config: Qwen3Config, lookup: WeightLookup): Decoder {
  return gatedDecoder(config, lookup, {
    projectionBias: config.attention_bias,
    outputBias: config.attention_bias,
    headNorms: true,
    window: (layer) => windowOf(config, layer),
  })
}
