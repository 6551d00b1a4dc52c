/** BLOOM and BLOOMZ: scores biased by distance instead of positions, a norm on the embeddings.   BigScience 2022; Press, Smith & Lewis 2022. */
import { z } from 'zod'
import { add } from '../../graph/operators/add.ts'
import { activate } from '../activations.ts'
import { causalDecoder } from '../causal-decoder.ts'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { familyWeights } from '../family-weights.ts'
import { positionLimit } from '../gated-decoder.ts'
import { splitFusedHeads } from '../self-attention.ts'

/** What the family reads of config.json; other keys are ignored. Defaults are BloomConfig's. `n_embed`, `num_hidden_layers` and `num_attention_heads` are older names. */
export const bloomConfig = z
  .object({
    model_type: z.literal('bloom'),
    vocab_size: z.int().positive().default(250_880),
    hidden_size: z.int().positive().optional(),
    n_embed: z.int().positive().optional(),
    n_layer: z.int().positive().optional(),
    num_hidden_layers: z.int().positive().optional(),
    n_head: z.int().positive().optional(),
    num_attention_heads: z.int().positive().optional(),
    layer_norm_epsilon: z.number().positive().default(1e-5),
    apply_residual_connection_post_layernorm: z.boolean().default(false),
    tie_word_embeddings: z.boolean().default(true),
    /** Of the training; the model knows no limit. */
    seq_length: positionLimit.default(2048),
  })
  .transform(({ hidden_size, n_embed, n_layer, num_hidden_layers, n_head, num_attention_heads, ...others }) => ({
    ...others,
    hidden_size: n_embed ?? hidden_size ?? 64,
    n_layer: n_layer ?? num_hidden_layers ?? 2,
    n_head: n_head ?? num_attention_heads ?? 8,
  }))
  .refine(({ hidden_size: width, n_head: heads }) => width % heads === 0, { path: ['n_head'], message: 'a divisor of hidden_size' })
export type BloomConfig = z.infer<typeof bloomConfig>

const prefixes = { prefix: 'transformer.', others: [''], probe: 'word_embeddings.weight' }

/**
 * @example
 * const decoder = bloom(bloomConfig.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function bloom(config: BloomConfig, lookup: WeightLookup): Decoder {
  const { hidden_size: width, n_head: heads } = config
  const headDim = width / heads
  const spec = { heads, kvHeads: heads, headDim, scale: 1 / Math.sqrt(headDim), alibiSlopes: alibiSlopes(heads) }
  const weights = familyWeights(lookup, prefixes)
  const epsilon = config.layer_norm_epsilon
  const normalFirst = config.apply_residual_connection_post_layernorm

  return causalDecoder({
    weights,
    embeddings: 'transformer.word_embeddings.weight',
    head: config.tie_word_embeddings ? undefined : 'lm_head.weight',
    hiddenSize: width,
    vocabularySize: config.vocab_size,
    layers: config.n_layer,
    kvHeads: heads,
    headDim,
    maxPositions: config.seq_length,
    before: (embeds) => weights.layerNorm(embeds, 'transformer.word_embeddings_layernorm', { epsilon }),
    layer(x, index, attend) {
      const name = `transformer.h.${index}`
      const h = weights.layerNorm(x, `${name}.input_layernorm`, { epsilon })
      const fused = weights.linear(h, `${name}.self_attention.query_key_value`, 3 * width, { bias: true })
      const attended = attend(splitFusedHeads(fused, heads, headDim), spec)
      const residual = add(normalFirst ? h : x, weights.linear(attended, `${name}.self_attention.dense`, width, { bias: true }))
      const fed = weights.layerNorm(residual, `${name}.post_attention_layernorm`, { epsilon })
      const inner = activate('gelu_pytorch_tanh', weights.linear(fed, `${name}.mlp.dense_h_to_4h`, 4 * width, { bias: true }))
      return add(normalFirst ? fed : residual, weights.linear(inner, `${name}.mlp.dense_4h_to_h`, width, { bias: true }))
    },
    after: (x) => weights.layerNorm(x, 'transformer.ln_f', { epsilon }),
  })
}

/** 2^(-8i/n) for n heads a power of two; otherwise those of the next smaller power, and every other one of the next larger. */
export function alibiSlopes(heads: number): readonly number[] {
  const power = 2 ** Math.floor(Math.log2(heads))
  const geometric = (count: number, of: number, step: number): readonly number[] =>
    Array.from({ length: count }, (_, index) => 2 ** ((-8 * (step * index + 1)) / of))
  return [...geometric(power, power, 1), ...geometric(heads - power, 2 * power, 2)]
}
