import type { Architecture } from '../architecture.ts'
import { decimal, decoderConfig, defined, gatedLayer, gatedStack, numberOf } from './shared.ts'

const { ffn_norm: _, ...layer } = gatedLayer
export const gemmaLayer = {
  ...layer,
  post_attention_norm: 'post_attention_layernorm',
  ffn_norm: 'pre_feedforward_layernorm',
  post_ffw_norm: 'post_feedforward_layernorm',
} as const

/** llama.cpp adds 1 to Gemma's norms when it converts them. */
export const gemmaLayout: NonNullable<Architecture['layout']> = (tensor) => (tensor.endsWith('norm.weight') ? { plus: -1 } : {})

export const gemma2: Architecture = {
  ...gatedStack(gemmaLayer),
  layout: gemmaLayout,
  config: (metadata) => {
    const config = decoderConfig(metadata, 'gemma2')
    // The 27B model scales by its width over its heads, the others by the size of a head; llama.cpp knows it by its layers, too.
    const wide = numberOf(config, 'num_hidden_layers') === 46
    return {
      model_type: 'gemma2',
      ...config,
      ...defined({
        sliding_window: metadata.optionalNumber('gemma2.attention.sliding_window'),
        attn_logit_softcapping: decimal(metadata.optionalNumber('gemma2.attn_logit_softcapping')),
        final_logit_softcapping: decimal(metadata.optionalNumber('gemma2.final_logit_softcapping')),
      }),
      query_pre_attn_scalar: wide
        ? numberOf(config, 'hidden_size') / numberOf(config, 'num_attention_heads')
        : numberOf(config, 'head_dim'),
      hidden_activation: 'gelu_pytorch_tanh',
    }
  },
}
