import type { JsonObject } from '../../../io/json.ts'
import type { Architecture, Layout } from '../architecture.ts'
import { decimal, defined, numberOf, vocabularySize } from './shared.ts'

/** The file has all heads' q, then k, then v; Transformers each head's q, k and v together. */
export function interleavedHeads(config: JsonObject, width: string, heads: string): Layout {
  const rows = numberOf(config, width)
  const headDim = rows / numberOf(config, heads)
  return {
    rows: {
      group: 3 * rows,
      source: (row) => {
        const [head, within] = [Math.floor(row / (3 * headDim)), row % (3 * headDim)]
        return Math.floor(within / headDim) * rows + head * headDim + (within % headDim)
      },
    },
  }
}

export const gptneox: Architecture = {
  names: { token_embd: 'gpt_neox.embed_in', output_norm: 'gpt_neox.final_layer_norm', output: 'embed_out' },
  stacks: () => ({
    blk: {
      prefix: 'gpt_neox.layers.',
      names: {
        attn_norm: 'input_layernorm',
        attn_qkv: 'attention.query_key_value',
        attn_output: 'attention.dense',
        ffn_norm: 'post_attention_layernorm',
        ffn_up: 'mlp.dense_h_to_4h',
        ffn_down: 'mlp.dense_4h_to_h',
      },
    },
  }),
  layout: (tensor, config) => (tensor.startsWith('attn_qkv.') ? interleavedHeads(config, 'hidden_size', 'num_attention_heads') : {}),
  config: (metadata) => {
    const width = metadata.number('gptneox.embedding_length')
    const heads = metadata.number('gptneox.attention.head_count')
    const rotated = metadata.optionalNumber('gptneox.rope.dimension_count') ?? width / heads
    return {
      model_type: 'gpt_neox',
      ...defined({
        hidden_size: width,
        num_hidden_layers: metadata.number('gptneox.block_count'),
        num_attention_heads: heads,
        intermediate_size: metadata.number('gptneox.feed_forward_length'),
        max_position_embeddings: metadata.number('gptneox.context_length'),
        layer_norm_eps: decimal(metadata.optionalNumber('gptneox.attention.layer_norm_epsilon')),
        rotary_emb_base: decimal(metadata.optionalNumber('gptneox.rope.freq_base')),
        use_parallel_residual: metadata.flag('gptneox.use_parallel_residual'),
        vocab_size: vocabularySize(metadata, 'gptneox'),
      }),
      rotary_pct: rotated / (width / heads),
      attention_bias: metadata.hasTensor('blk.0.attn_qkv.bias'),
      tie_word_embeddings: !metadata.hasTensor('output.weight'),
    }
  },
}
