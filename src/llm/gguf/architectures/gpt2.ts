import type { Architecture } from '../architecture.ts'
import { decimal, defined, vocabularySize } from './shared.ts'

export const gpt2: Architecture = {
  names: { token_embd: 'transformer.wte', position_embd: 'transformer.wpe', output_norm: 'transformer.ln_f', output: 'lm_head' },
  stacks: () => ({
    blk: {
      prefix: 'transformer.h.',
      names: {
        attn_norm: 'ln_1',
        attn_qkv: 'attn.c_attn',
        attn_output: 'attn.c_proj',
        ffn_norm: 'ln_2',
        ffn_up: 'mlp.c_fc',
        ffn_down: 'mlp.c_proj',
      },
    },
  }),
  layout: (tensor) => (/^(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$/.test(tensor) ? { transposed: true } : {}),
  config: (metadata) => ({
    model_type: 'gpt2',
    ...defined({
      n_embd: metadata.number('gpt2.embedding_length'),
      n_layer: metadata.number('gpt2.block_count'),
      n_head: metadata.number('gpt2.attention.head_count'),
      // llama.cpp's converter writes four times the width as the length, whatever it is.
      n_inner: metadata.rows('blk.0.ffn_up.weight'),
      n_positions: metadata.number('gpt2.context_length'),
      layer_norm_epsilon: decimal(metadata.optionalNumber('gpt2.attention.layer_norm_epsilon')),
      vocab_size: vocabularySize(metadata, 'gpt2'),
    }),
    // Files converted long ago have the embeddings a second time as the output.
    tie_word_embeddings: !metadata.hasTensor('output.weight'),
  }),
}
