import type { Architecture, Stack } from '../architecture.ts'
import { decimal, defined, vocabularySize } from './shared.ts'

/** Self-attention and feed-forward layer of either stack; `feedForward` is the place of the second among the sublayers. */
function stack(name: string, feedForward: number, gated: boolean): Stack {
  const own = 'layer.0.SelfAttention'
  const open = `layer.${feedForward}.DenseReluDense`
  return {
    prefix: `${name}.block.`,
    names: {
      attn_norm: 'layer.0.layer_norm',
      attn_q: `${own}.q`,
      attn_k: `${own}.k`,
      attn_v: `${own}.v`,
      attn_o: `${own}.o`,
      attn_rel_b: `${own}.relative_attention_bias`,
      ffn_norm: `layer.${feedForward}.layer_norm`,
      ffn_up: gated ? `${open}.wi_1` : `${open}.wi`,
      ...(gated ? { ffn_gate: `${open}.wi_0` } : {}),
      ffn_down: `${open}.wo`,
    },
  }
}

const source = 'layer.1.EncDecAttention'
const lookingAtTheSource = {
  cross_attn_norm: 'layer.1.layer_norm',
  cross_attn_q: `${source}.q`,
  cross_attn_k: `${source}.k`,
  cross_attn_v: `${source}.v`,
  cross_attn_o: `${source}.o`,
} as const

/** T5, T5 1.1 and Flan-T5. The file does not say up to where distances count: llama.cpp and all published models take 128. */
export const t5: Architecture = {
  names: {
    token_embd: 'shared',
    'enc.output_norm': 'encoder.final_layer_norm',
    'dec.output_norm': 'decoder.final_layer_norm',
    output: 'lm_head',
  },
  stacks: ({ feed_forward_proj: kind }) => {
    const gated = kind === 'gated-gelu'
    const decoder = stack('decoder', 2, gated)
    return { 'enc.blk': stack('encoder', 1, gated), 'dec.blk': { ...decoder, names: { ...decoder.names, ...lookingAtTheSource } } }
  },
  config: (metadata) => ({
    model_type: 't5',
    ...defined({
      d_model: metadata.number('t5.embedding_length'),
      d_kv: metadata.number('t5.attention.key_length'),
      d_ff: metadata.number('t5.feed_forward_length'),
      num_layers: metadata.number('t5.block_count'),
      num_decoder_layers: metadata.optionalNumber('t5.decoder_block_count'),
      num_heads: metadata.number('t5.attention.head_count'),
      n_positions: metadata.number('t5.context_length'),
      relative_attention_num_buckets: metadata.number('t5.attention.relative_buckets_count'),
      layer_norm_epsilon: decimal(metadata.optionalNumber('t5.attention.layer_norm_rms_epsilon')),
      decoder_start_token_id: metadata.optionalNumber('t5.decoder_start_token_id'),
      vocab_size: vocabularySize(metadata, 't5'),
    }),
    relative_attention_max_distance: 128,
    feed_forward_proj: metadata.hasTensor('enc.blk.0.ffn_gate.weight') ? 'gated-gelu' : 'relu',
    tie_word_embeddings: !metadata.hasTensor('output.weight'),
  }),
}
