import type { Architecture } from '../architecture.ts'
import { decoderConfig, defined, gatedLayer, gatedStack, numberOf } from './shared.ts'

const { attn_q: _q, attn_k: _k, attn_v: _v, ffn_gate: _gate, ffn_up: _up, ...layer } = gatedLayer

/** Phi-3: q, k and v in one matrix, gate and up in another. `rope_factors_*` hold longrope's factors; see `ropeFactors`. */
export const phi3: Architecture = {
  ...gatedStack({ ...layer, attn_qkv: 'self_attn.qkv_proj', ffn_up: 'mlp.gate_up_proj' }),
  config: (metadata) => {
    const config = decoderConfig(metadata, 'phi3')
    const rotated = metadata.optionalNumber('phi3.rope.dimension_count')
    return {
      model_type: 'phi3',
      ...config,
      ...defined({
        partial_rotary_factor: rotated === undefined ? undefined : rotated / numberOf(config, 'head_dim'),
        original_max_position_embeddings: metadata.optionalNumber('phi3.rope.scaling.original_context_length'),
        sliding_window: metadata.optionalNumber('phi3.attention.sliding_window') || undefined,
      }),
    }
  },
  others: ['rope_factors_long.weight', 'rope_factors_short.weight'],
}
