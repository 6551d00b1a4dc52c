import type { Architecture } from '../architecture.ts'
import { decoderConfig, gatedStack, numberOf, pairedChannels } from './shared.ts'

/** Llama, and what has its graph: Mistral, SmolLM2, TinyLlama, Vicuna. `rope_freqs` holds Llama 3's factors of each frequency; see `ropeFactors`. */
export const llama: Architecture = {
  ...gatedStack(),
  config: (metadata) => ({
    model_type: 'llama',
    ...decoderConfig(metadata, 'llama'),
    attention_bias: metadata.hasTensor('blk.0.attn_q.bias'),
    mlp_bias: metadata.hasTensor('blk.0.ffn_down.bias'),
  }),
  layout: (tensor, config) => (/^attn_[qk]\./.test(tensor) ? pairedChannels(numberOf(config, 'head_dim')) : {}),
  others: ['rope_freqs.weight'],
}
