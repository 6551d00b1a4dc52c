/**
 * The Llama family: RMSNorm before each block, rotary positions, grouped heads, a gated feed-forward layer.   Touvron et al. 2023; config and weight names as
 * Transformers' LlamaForCausalLM has them.
 */
import { z } from 'zod'
import { swiglu } from '../../graph/composites/activations.ts'
import { scaledDotProductAttention } from '../../graph/composites/attention.ts'
import { matmulTransposed } from '../../graph/composites/linear.ts'
import { rmsNormalization } from '../../graph/composites/rms-normalization.ts'
import { rotaryEmbedding } from '../../graph/composites/rotary-embedding.ts'
import { add } from '../../graph/operators/add.ts'
import { gather } from '../../graph/operators/gather.ts'
import { reshape } from '../../graph/operators/reshape.ts'
import { transpose } from '../../graph/operators/transpose.ts'
import { dimAt, type Tensor } from '../../graph/tensor.ts'
import { causalMask } from '../attention-mask.ts'
import { cachedAttention } from '../cached-attention.ts'
import type { DecodeContext, Decoded, Decoder, LayerCache, WeightLookup } from '../decoder.ts'
import { rotaryTables } from '../rotary.ts'

/** The tables of angles grow with the positions: a billion of them is a damaged file, not a model. */
const largestPositions = 2 ** 21

/** What the family reads of config.json; other keys are ignored. Defaults are LlamaConfig's. */
export const llamaConfig = z
  .object({
    model_type: z.literal('llama'),
    hidden_size: z.int().positive(),
    intermediate_size: z.int().positive(),
    num_hidden_layers: z.int().positive(),
    num_attention_heads: z.int().positive(),
    num_key_value_heads: z.int().positive().nullish(),
    head_dim: z.int().positive().nullish(),
    vocab_size: z.int().positive(),
    max_position_embeddings: z.int().positive().max(largestPositions).default(2048),
    rms_norm_eps: z.number().positive().default(1e-6),
    rope_theta: z.number().positive().default(10_000),
    /** Where Transformers 5 writes the angles' base. */
    rope_parameters: z
      .object({ rope_theta: z.number().positive().optional(), rope_type: z.literal('default').default('default') })
      .optional(),
    rope_scaling: z.null().optional(),
    hidden_act: z.literal('silu').default('silu'),
    tie_word_embeddings: z.boolean().default(false),
    attention_bias: z.boolean().default(false),
    mlp_bias: z.boolean().default(false),
  })
  .superRefine(({ hidden_size: width, num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: headDim }, { addIssue }) => {
    const refuse = (field: string, message: string): void => addIssue({ code: 'custom', path: [field], message })
    if (headDim == null && width % heads !== 0)
      refuse('num_attention_heads', `a divisor of hidden_size, ${width}, where head_dim is not given`)
    else if ((headDim ?? width / heads) % 2 !== 0) refuse('head_dim', 'an even number: rotary positions turn pairs of channels')
    if (heads % (kvHeads ?? heads) !== 0) refuse('num_key_value_heads', `a divisor of num_attention_heads, ${heads}`)
  })
export type LlamaConfig = z.infer<typeof llamaConfig>

/**
 * @example
 * const decoder = llama(llamaConfig.parse(config), (name, shape) => checkpointWeight(name, shape))
 * const { hidden } = decoder.decode(decoder.embed(ids), { positions })
 */
export function llama(config: LlamaConfig, weight: WeightLookup): Decoder {
  const { hidden_size: width, intermediate_size: inner, num_attention_heads: heads, vocab_size: vocabulary } = config
  const kvHeads = config.num_key_value_heads ?? heads
  const headDim = config.head_dim ?? width / heads
  const scale = 1 / Math.sqrt(headDim)
  const rotary = rotaryTables(config.max_position_embeddings, headDim, config.rope_parameters?.rope_theta ?? config.rope_theta)
  const embeddingsName = 'model.embed_tokens.weight'
  const embeddings = weight(embeddingsName, [vocabulary, width])

  const normalise = (x: Tensor, name: string): Tensor =>
    rmsNormalization(x, weight(`${name}.weight`, [width]), { epsilon: config.rms_norm_eps })
  const project = (x: Tensor, name: string, out: number, into: number, bias: boolean): Tensor => {
    const product = matmulTransposed(x, weight(`${name}.weight`, [out, into]))
    return bias ? add(product, weight(`${name}.bias`, [out])) : product
  }

  function attention(
    x: Tensor,
    name: string,
    context: DecodeContext,
    mask: Tensor | undefined,
    past: LayerCache | undefined,
  ): { output: Tensor; cache: LayerCache } {
    const bias = config.attention_bias
    const query = project(x, `${name}.q_proj`, heads * headDim, width, bias)
    const key = project(x, `${name}.k_proj`, kvHeads * headDim, width, bias)
    const value = project(x, `${name}.v_proj`, kvHeads * headDim, width, bias)
    const { positions } = context
    if (past !== undefined && context.cache !== undefined) {
      const { lastPlaces, totalLength } = context.cache
      const attended = cachedAttention(
        { query, key, value, pastKey: past.key, pastValue: past.value, positions, lastPlaces, totalLength, rotary },
        { heads, kvHeads, scale },
      )
      return {
        output: project(attended.output, `${name}.o_proj`, width, heads * headDim, bias),
        cache: { key: attended.key, value: attended.value },
      }
    }
    const [batch, tokens] = [dimAt(x.shape, 0), dimAt(x.shape, 1)]
    const byHead = (t: Tensor, count: number): Tensor => transpose(reshape(t, [batch, tokens, count, headDim]), [0, 2, 1, 3])
    const rotated = (t: Tensor): Tensor => rotaryEmbedding(t, positions, rotary.cos, rotary.sin)
    const [k, v] = [rotated(byHead(key, kvHeads)), byHead(value, kvHeads)]
    const o = scaledDotProductAttention(rotated(byHead(query, heads)), k, v, { scale, ...(mask === undefined ? {} : { mask }) })
    const joined = reshape(transpose(o, [0, 2, 1, 3]), [batch, tokens, heads * headDim])
    return { output: project(joined, `${name}.o_proj`, width, heads * headDim, bias), cache: { key: k, value: v } }
  }

  function feedForward(x: Tensor, name: string): Tensor {
    const gate = project(x, `${name}.gate_proj`, inner, width, config.mlp_bias)
    const up = project(x, `${name}.up_proj`, inner, width, config.mlp_bias)
    return project(swiglu(gate, up), `${name}.down_proj`, width, inner, config.mlp_bias)
  }

  function decode(inputsEmbeds: Tensor, context: DecodeContext): Decoded {
    const mask = context.cache === undefined ? causalMask(dimAt(inputsEmbeds.shape, 1), context.segments) : undefined
    let x = inputsEmbeds
    const cache: LayerCache[] = []
    for (let layer = 0; layer < config.num_hidden_layers; layer++) {
      const name = `model.layers.${layer}`
      const attended = attention(normalise(x, `${name}.input_layernorm`), `${name}.self_attn`, context, mask, context.cache?.layers[layer])
      cache.push(attended.cache)
      x = add(x, attended.output)
      x = add(x, feedForward(normalise(x, `${name}.post_attention_layernorm`), `${name}.mlp`))
    }
    return { hidden: normalise(x, 'model.norm'), cache }
  }

  return {
    embeddingsName,
    hiddenSize: width,
    vocabularySize: vocabulary,
    layers: config.num_hidden_layers,
    kvHeads,
    headDim,
    maxPositions: config.max_position_embeddings,
    embed: (ids) => gather(embeddings, ids),
    decode,
    head: config.tie_word_embeddings ? embeddings : weight('lm_head.weight', [vocabulary, width]),
  }
}
