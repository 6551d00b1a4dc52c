import type { Architecture } from '../architecture.ts'
import { gemmaLayer, gemmaLayout } from './gemma2.ts'
import { decimal, decoderConfig, defined, gatedStack, numberOf } from './shared.ts'

/** The text half of Gemma 3: five local layers, then a global one whose positions have a larger base. */
export const gemma3: Architecture = {
  ...gatedStack({ ...gemmaLayer, attn_q_norm: 'self_attn.q_norm', attn_k_norm: 'self_attn.k_norm' }),
  layout: gemmaLayout,
  config: (metadata) => {
    const { rope_scaling: scaling, ...config } = decoderConfig(metadata, 'gemma3')
    const layers = numberOf(config, 'num_hidden_layers')
    const wide = layers === 62
    return {
      model_type: 'gemma3_text',
      ...config,
      ...defined({
        rope_scaling: scaling,
        sliding_window: metadata.optionalNumber('gemma3.attention.sliding_window'),
        rope_local_base_freq: decimal(metadata.optionalNumber('gemma3.rope.freq_base_swa')) ?? 10_000,
        final_logit_softcapping: decimal(metadata.optionalNumber('gemma3.final_logit_softcapping')),
      }),
      sliding_window_pattern: 6,
      layer_types: Array.from({ length: layers }, (_, index) => ((index + 1) % 6 === 0 ? 'full_attention' : 'sliding_attention')),
      query_pre_attn_scalar: wide
        ? numberOf(config, 'hidden_size') / numberOf(config, 'num_attention_heads')
        : numberOf(config, 'head_dim'),
      hidden_activation: 'gelu_pytorch_tanh',
    }
  },
}
