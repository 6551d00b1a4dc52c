import type { Architecture } from '../architecture.ts'
import { interleavedHeads } from './gptneox.ts'
import { decimal, defined, vocabularySize } from './shared.ts'

export const bloom: Architecture = {
  names: {
    token_embd: 'transformer.word_embeddings',
    token_embd_norm: 'transformer.word_embeddings_layernorm',
    output_norm: 'transformer.ln_f',
    output: 'lm_head',
  },
  stacks: () => ({
    blk: {
      prefix: 'transformer.h.',
      names: {
        attn_norm: 'input_layernorm',
        attn_qkv: 'self_attention.query_key_value',
        attn_output: 'self_attention.dense',
        ffn_norm: 'post_attention_layernorm',
        ffn_up: 'mlp.dense_h_to_4h',
        ffn_down: 'mlp.dense_4h_to_h',
      },
    },
  }),
  layout: (tensor, config) => (tensor.startsWith('attn_qkv.') ? interleavedHeads(config, 'hidden_size', 'n_head') : {}),
  config: (metadata) => ({
    model_type: 'bloom',
    ...defined({
      hidden_size: metadata.number('bloom.embedding_length'),
      n_layer: metadata.number('bloom.block_count'),
      n_head: metadata.number('bloom.attention.head_count'),
      seq_length: metadata.optionalNumber('bloom.context_length'),
      layer_norm_epsilon: decimal(metadata.optionalNumber('bloom.attention.layer_norm_epsilon')),
      vocab_size: vocabularySize(metadata, 'bloom'),
    }),
    tie_word_embeddings: !metadata.hasTensor('output.weight'),
  }),
}
