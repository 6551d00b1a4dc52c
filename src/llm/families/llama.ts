/** Llama 1 to 3.2, and what is built like it: SmolLM2, TinyLlama, Vicuna, Alpaca, WizardLM.   Touvron et al. 2023; Grattafiori et al. 2024. */
import { z } from 'zod'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { checkHeads, checkRope, gatedDecoder, gatedFields } from '../gated-decoder.ts'

/** What the family reads of config.json; other keys are ignored. Defaults are LlamaConfig's. */
export const llamaConfig = z
  .object({
    model_type: z.literal('llama'),
    ...gatedFields,
    attention_bias: z.boolean().default(false),
    mlp_bias: z.boolean().default(false),
  })
  .superRefine(checkHeads)
  .superRefine(checkRope)
export type LlamaConfig = z.infer<typeof llamaConfig>

/**
 * @example
 * const decoder = llama(llamaConfig.parse(config), (name, shape) => checkpointWeight(name, shape))
 * const { hidden } = decoder.decode(decoder.embed(ids), { positions })
 */
export function llama(config: LlamaConfig, lookup: WeightLookup): Decoder {
  return gatedDecoder(config, lookup, {
    projectionBias: config.attention_bias,
    outputBias: config.attention_bias,
    feedForwardBias: config.mlp_bias,
  })
}
