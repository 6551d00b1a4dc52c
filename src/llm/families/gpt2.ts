/** GPT-2: learned positions, LayerNorm, weights of linear layers as [in, out].   Radford et al. 2019. */
import { z } from 'zod'
import { add } from '../../graph/operators/add.ts'
import { gather } from '../../graph/operators/gather.ts'
import { split } from '../../graph/operators/split.ts'
import { activate, activationName } from '../activations.ts'
import { causalDecoder } from '../causal-decoder.ts'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { familyWeights } from '../family-weights.ts'
import { positionLimit } from '../gated-decoder.ts'

/** What the family reads of config.json; other keys are ignored. Defaults are GPT2Config's. */
export const gpt2Config = z
  .object({
    model_type: z.literal('gpt2'),
    vocab_size: z.int().positive().default(50_257),
    n_positions: positionLimit.default(1024),
    n_embd: z.int().positive().default(768),
    n_layer: z.int().positive().default(12),
    n_head: z.int().positive().default(12),
    n_inner: z.int().positive().nullish(),
    activation_function: activationName.default('gelu_new'),
    layer_norm_epsilon: z.number().positive().default(1e-5),
    scale_attn_weights: z.boolean().default(true),
    scale_attn_by_inverse_layer_idx: z.boolean().default(false),
    tie_word_embeddings: z.boolean().default(true),
  })
  .refine(({ n_embd: width, n_head: heads }) => width % heads === 0, { path: ['n_head'], message: 'a divisor of n_embd' })
export type Gpt2Config = z.infer<typeof gpt2Config>

/** Published checkpoints are of the model without its head: their names have no prefix. */
const prefixes = { prefix: 'transformer.', others: [''], probe: 'wte.weight' }

/**
 * @example
 * const decoder = gpt2(gpt2Config.parse(config), (name, shape) => checkpointWeight(name, shape))
 */
export function gpt2(config: Gpt2Config, lookup: WeightLookup): Decoder {
  const { n_embd: width, n_head: heads, n_positions: maxPositions } = config
  const inner = config.n_inner ?? 4 * width
  const headDim = width / heads
  const weights = familyWeights(lookup, prefixes)
  const epsilon = config.layer_norm_epsilon
  const conv = { bias: true, layout: 'in-out' } as const

  return causalDecoder({
    weights,
    embeddings: 'transformer.wte.weight',
    head: config.tie_word_embeddings ? undefined : 'lm_head.weight',
    hiddenSize: width,
    vocabularySize: config.vocab_size,
    layers: config.n_layer,
    kvHeads: heads,
    headDim,
    maxPositions,
    before: (embeds, positions) => add(embeds, gather(weights.tensor('transformer.wpe.weight', [maxPositions, width]), positions)),
    layer(x, index, attend) {
      const name = `transformer.h.${index}`
      const scale = (config.scale_attn_weights ? headDim ** -0.5 : 1) / (config.scale_attn_by_inverse_layer_idx ? index + 1 : 1)
      const h = weights.layerNorm(x, `${name}.ln_1`, { epsilon })
      const [query, key, value] = split(weights.linear(h, `${name}.attn.c_attn`, 3 * width, conv), [width, width, width], -1)
      if (query === undefined || key === undefined || value === undefined) throw new Error('internal: three parts')
      const attended = attend({ query, key, value }, { heads, kvHeads: heads, headDim, scale })
      const residual = add(x, weights.linear(attended, `${name}.attn.c_proj`, width, conv))
      const fed = weights.linear(weights.layerNorm(residual, `${name}.ln_2`, { epsilon }), `${name}.mlp.c_fc`, inner, conv)
      return add(residual, weights.linear(activate(config.activation_function, fed), `${name}.mlp.c_proj`, width, conv))
    },
    after: (x) => weights.layerNorm(x, 'transformer.ln_f', { epsilon }),
  })
}
