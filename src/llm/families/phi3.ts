/** Phi-3, 3.5 and Phi-4-mini: Llama with fused projections, two sets of angles for short and long sequences, and heads turned in part.   Abdin et al. 2024; Ding et al. 2024. */
import { z } from 'zod'
import { add } from '../../graph/operators/add.ts'
import { split } from '../../graph/operators/split.ts'
import { gated } from '../activations.ts'
import { causalDecoder } from '../causal-decoder.ts'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { familyWeights } from '../family-weights.ts'
import { checkHeads, checkRope, gatedFields, modelPrefixes, narrower, positionLimit } from '../gated-decoder.ts'
import { rotaryFor } from '../rope-scaling.ts'

/** What the family reads of config.json; other keys are ignored. Defaults are Phi3Config's. */
export const phi3Config = z
  .object({
    model_type: z.literal('phi3'),
    ...gatedFields,
    max_position_embeddings: positionLimit.default(4096),
    original_max_position_embeddings: positionLimit.default(4096),
    partial_rotary_factor: z.number().positive().max(1).default(1),
    rms_norm_eps: z.number().positive().default(1e-5),
    sliding_window: z.int().positive().nullish(),
  })
  .superRefine(checkHeads)
  .superRefine(checkRope)
export type Phi3Config = z.infer<typeof phi3Config>

/**
 * @example
 * const decoder = phi3(phi3Config.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function phi3(config: Phi3Config, lookup: WeightLookup): Decoder {
  const { hidden_size: width, intermediate_size: inner, num_attention_heads: heads, rms_norm_eps: epsilon } = config
  const kvHeads = config.num_key_value_heads ?? heads
  const headDim = config.head_dim ?? width / heads
  const maxPositions = config.max_position_embeddings
  const rotary = rotaryFor({
    theta: config.rope_theta,
    headDim,
    maxPositions,
    partial: config.partial_rotary_factor,
    scaling: config.rope_parameters ?? config.rope_scaling,
    originalPositions: config.original_max_position_embeddings,
  })
  const window = narrower(config.sliding_window, maxPositions)
  const spec = { heads, kvHeads, headDim, scale: 1 / Math.sqrt(headDim), rotary, window }
  const weights = familyWeights(lookup, modelPrefixes)

  return causalDecoder({
    weights,
    embeddings: 'model.embed_tokens.weight',
    head: config.tie_word_embeddings ? undefined : 'lm_head.weight',
    hiddenSize: width,
    vocabularySize: config.vocab_size,
    layers: config.num_hidden_layers,
    kvHeads,
    headDim,
    maxPositions,
    longAfter: rotary.long?.after,
    layer(x, index, attend) {
      const name = `model.layers.${index}`
      const h = weights.rmsNorm(x, `${name}.input_layernorm`, { epsilon })
      const sizes = [heads * headDim, kvHeads * headDim, kvHeads * headDim]
      const fused = weights.linear(h, `${name}.self_attn.qkv_proj`, (heads + 2 * kvHeads) * headDim)
      const [query, key, value] = split(fused, sizes, -1)
      if (query === undefined || key === undefined || value === undefined) throw new Error('internal: three parts')
      const residual = add(x, weights.linear(attend({ query, key, value }, spec), `${name}.self_attn.o_proj`, width))
      const fed = weights.rmsNorm(residual, `${name}.post_attention_layernorm`, { epsilon })
      const [gate, up] = split(weights.linear(fed, `${name}.mlp.gate_up_proj`, 2 * inner), [inner, inner], -1)
      if (gate === undefined || up === undefined) throw new Error('internal: two halves')
      return add(residual, weights.linear(gated(config.hidden_act, gate, up), `${name}.mlp.down_proj`, width))
    },
    after: (x) => weights.rmsNorm(x, 'model.norm', { epsilon }),
  })
}
