import type { Architecture } from '../architecture.ts'
import { decoderConfig, gatedLayer, gatedStack } from './shared.ts'

export const qwen3: Architecture = {
  ...gatedStack({ ...gatedLayer, attn_q_norm: 'self_attn.q_norm', attn_k_norm: 'self_attn.k_norm' }),
  config: (metadata) => ({ model_type: 'qwen3', ...decoderConfig(metadata, 'qwen3') }),
}
