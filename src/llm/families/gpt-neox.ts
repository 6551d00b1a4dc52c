/** GPT-NeoX, and what is built like it: Pythia, Dolly, RedPajama. Rotary positions on a part of each head; attention and feed-forward layer beside each other.   Black et al. 2022. */
import { z } from 'zod'
import { add } from '../../graph/operators/add.ts'
import { activate, activationName } from '../activations.ts'
import { causalDecoder } from '../causal-decoder.ts'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { familyWeights } from '../family-weights.ts'
import { checkHeads, positionLimit } from '../gated-decoder.ts'
import { ropeScaling, rotaryFor } from '../rope-scaling.ts'
import { splitFusedHeads } from '../self-attention.ts'

/** What the family reads of config.json; other keys are ignored. Defaults are GPTNeoXConfig's. */
export const gptNeoxConfig = z
  .object({
    model_type: z.literal('gpt_neox'),
    vocab_size: z.int().positive().default(50_432),
    hidden_size: z.int().positive().default(6144),
    num_hidden_layers: z.int().positive().default(44),
    num_attention_heads: z.int().positive().default(64),
    intermediate_size: z.int().positive().default(24_576),
    hidden_act: activationName.default('gelu'),
    max_position_embeddings: positionLimit.default(2048),
    layer_norm_eps: z.number().positive().default(1e-5),
    use_parallel_residual: z.boolean().default(true),
    attention_bias: z.boolean().default(true),
    tie_word_embeddings: z.boolean().default(false),
    rotary_pct: z.number().positive().max(1).default(0.25),
    rotary_emb_base: z.number().positive().default(10_000),
    rope_parameters: ropeScaling.nullish(),
    rope_scaling: ropeScaling.nullish(),
  })
  .superRefine(checkHeads)
export type GptNeoxConfig = z.infer<typeof gptNeoxConfig>

const prefixes = { prefix: 'gpt_neox.', others: [''], probe: 'embed_in.weight' }

/**
 * @example
 * const decoder = gptNeox(gptNeoxConfig.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function gptNeox(config: GptNeoxConfig, lookup: WeightLookup): Decoder {
  const { hidden_size: width, num_attention_heads: heads, max_position_embeddings: maxPositions } = config
  const headDim = width / heads
  const rotary = rotaryFor({
    theta: config.rotary_emb_base,
    headDim,
    maxPositions,
    partial: config.rotary_pct,
    scaling: config.rope_parameters ?? config.rope_scaling,
  })
  const spec = { heads, kvHeads: heads, headDim, scale: 1 / Math.sqrt(headDim), rotary }
  const weights = familyWeights(lookup, prefixes)
  const epsilon = config.layer_norm_eps
  const bias = config.attention_bias

  return causalDecoder({
    weights,
    embeddings: 'gpt_neox.embed_in.weight',
    head: config.tie_word_embeddings ? undefined : 'embed_out.weight',
    hiddenSize: width,
    vocabularySize: config.vocab_size,
    layers: config.num_hidden_layers,
    kvHeads: heads,
    headDim,
    maxPositions,
    layer(x, index, attend) {
      const name = `gpt_neox.layers.${index}`
      const h = weights.layerNorm(x, `${name}.input_layernorm`, { epsilon })
      const fused = weights.linear(h, `${name}.attention.query_key_value`, 3 * width, { bias })
      const attended = weights.linear(attend(splitFusedHeads(fused, heads, headDim), spec), `${name}.attention.dense`, width, { bias })
      const residual = add(x, attended)
      const fed = weights.layerNorm(config.use_parallel_residual ? x : residual, `${name}.post_attention_layernorm`, { epsilon })
      const inner = activate(config.hidden_act, weights.linear(fed, `${name}.mlp.dense_h_to_4h`, config.intermediate_size, { bias: true }))
      return add(residual, weights.linear(inner, `${name}.mlp.dense_4h_to_h`, width, { bias: true }))
    },
    after: (x) => weights.layerNorm(x, 'gpt_neox.final_layer_norm', { epsilon }),
  })
}
