/** Qwen 1.5, 2 and 2.5: Llama with biases of queries, keys and values.   Yang et al. 2024. */
import { z } from 'zod'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { checkHeads, checkRope, gatedDecoder, gatedFields, positionLimit, windowFields, windowOf } from '../gated-decoder.ts'

/** What the family reads of config.json; other keys are ignored. Defaults are Qwen2Config's. */
export const qwen2Config = z
  .object({
    model_type: z.literal('qwen2'),
    ...gatedFields,
    num_key_value_heads: z.int().positive().nullable().default(32),
    max_position_embeddings: positionLimit.default(32_768),
    ...windowFields,
  })
  .superRefine(checkHeads)
  .superRefine(checkRope)
export type Qwen2Config = z.infer<typeof qwen2Config>

/**
 * @example
 * const decoder = qwen2(qwen2Config.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function qwen2(config: Qwen2Config, lookup: WeightLookup): Decoder {
  return gatedDecoder(config, lookup, { projectionBias: true, window: (layer) => windowOf(config, layer) })
}
