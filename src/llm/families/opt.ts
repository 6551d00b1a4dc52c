/** OPT: learned positions that begin at row 2, LayerNorm before or (350M) after each block.   Zhang et al. 2022. */
import { z } from 'zod'
import { add } from '../../graph/operators/add.ts'
import { gather } from '../../graph/operators/gather.ts'
import type { Tensor } from '../../graph/tensor.ts'
import { activate, activationName } from '../activations.ts'
import { causalDecoder } from '../causal-decoder.ts'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { familyWeights } from '../family-weights.ts'
import { checkHeads, positionLimit } from '../gated-decoder.ts'

/** What the family reads of config.json; other keys are ignored. Defaults are OPTConfig's. */
export const optConfig = z
  .object({
    model_type: z.literal('opt'),
    vocab_size: z.int().positive().default(50_272),
    hidden_size: z.int().positive().default(768),
    num_hidden_layers: z.int().positive().default(12),
    ffn_dim: z.int().positive().default(3072),
    max_position_embeddings: positionLimit.default(2048),
    do_layer_norm_before: z.boolean().default(true),
    /** Checkpoints tuned before Transformers 4.20 have no final norm. */
    _remove_final_layer_norm: z.boolean().default(false),
    word_embed_proj_dim: z.int().positive().nullish(),
    num_attention_heads: z.int().positive().default(12),
    activation_function: activationName.default('relu'),
    enable_bias: z.boolean().default(true),
    layer_norm_elementwise_affine: z.literal(true).default(true),
    tie_word_embeddings: z.boolean().default(true),
  })
  .superRefine(checkHeads)
export type OptConfig = z.infer<typeof optConfig>

const prefixes = { prefix: 'model.decoder.', others: ['decoder.', ''], probe: 'embed_tokens.weight' }
/** Two rows of the table stand for padding. */
const positionOffset = 2
const epsilon = 1e-5

/**
 * @example
 * const decoder = opt(optConfig.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function opt(config: OptConfig, lookup: WeightLookup): Decoder {
  const { hidden_size: width, num_attention_heads: heads, max_position_embeddings: maxPositions, do_layer_norm_before: first } = config
  // The 350M model's embeddings are narrower than its layers.
  const embeddingWidth = config.word_embed_proj_dim ?? width
  const headDim = width / heads
  const spec = { heads, kvHeads: heads, headDim, scale: headDim ** -0.5 }
  const weights = familyWeights(lookup, prefixes)
  const bias = config.enable_bias
  const normalise = (x: Tensor, name: string, wanted: boolean): Tensor => (wanted ? weights.layerNorm(x, name, { epsilon }) : x)

  return causalDecoder({
    weights,
    embeddings: 'model.decoder.embed_tokens.weight',
    head: config.tie_word_embeddings ? undefined : 'lm_head.weight',
    hiddenSize: embeddingWidth,
    vocabularySize: config.vocab_size,
    layers: config.num_hidden_layers,
    kvHeads: heads,
    headDim,
    maxPositions,
    before(embeds, positions) {
      const table = weights.tensor('model.decoder.embed_positions.weight', [maxPositions + positionOffset, width])
      const x = embeddingWidth === width ? embeds : weights.linear(embeds, 'model.decoder.project_in', width)
      return add(x, gather(table, add(positions, positionOffset)))
    },
    layer(x, index, attend) {
      const name = `model.decoder.layers.${index}`
      const h = normalise(x, `${name}.self_attn_layer_norm`, first)
      const projected = (part: string): Tensor => weights.linear(h, `${name}.self_attn.${part}`, width, { bias })
      const attended = attend({ query: projected('q_proj'), key: projected('k_proj'), value: projected('v_proj') }, spec)
      const residual = add(x, weights.linear(attended, `${name}.self_attn.out_proj`, width, { bias }))
      const between = normalise(residual, `${name}.self_attn_layer_norm`, !first)
      const fed = weights.linear(normalise(between, `${name}.final_layer_norm`, first), `${name}.fc1`, config.ffn_dim, { bias })
      const sum = add(between, weights.linear(activate(config.activation_function, fed), `${name}.fc2`, width, { bias }))
      return normalise(sum, `${name}.final_layer_norm`, !first)
    },
    after(x) {
      const normal = normalise(x, 'model.decoder.final_layer_norm', first && !config._remove_final_layer_norm)
      return embeddingWidth === width ? normal : weights.linear(normal, 'model.decoder.project_out', embeddingWidth)
    },
  })
}
