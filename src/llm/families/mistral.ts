/** Mistral: Llama with a sliding window.   Jiang et al. 2023. */
import { z } from 'zod'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { checkHeads, checkRope, gatedDecoder, gatedFields, positionLimit } from '../gated-decoder.ts'

/** What the family reads of config.json; other keys are ignored. Defaults are MistralConfig's. */
export const mistralConfig = z
  .object({
    model_type: z.literal('mistral'),
    ...gatedFields,
    num_key_value_heads: z.int().positive().nullable().default(8),
    max_position_embeddings: positionLimit.default(131_072),
    /** null: every token sees all before it. */
    sliding_window: z.int().positive().nullable().default(4096),
  })
  .superRefine(checkHeads)
  .superRefine(checkRope)
export type MistralConfig = z.infer<typeof mistralConfig>

/**
 * @example
 * const decoder = mistral(mistralConfig.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function mistral(config: MistralConfig, lookup: WeightLookup): Decoder {
  return gatedDecoder(config, lookup, { window: () => config.sliding_window ?? undefined })
}
