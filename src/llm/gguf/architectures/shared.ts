/** What the architectures say alike. */
import { ModalignError } from '../../../errors.ts'
import type { JsonObject, JsonValue } from '../../../io/json.ts'
import type { Architecture, Layout } from '../architecture.ts'
import type { GgufMetadata } from '../metadata.ts'

/** A float32 of the file as the decimal that was written: 1e-5, not 0.000009999999747378752. */
export function decimal(value: number | undefined): number | undefined {
  return value === undefined ? undefined : Number(value.toPrecision(7))
}

/** Keys of `architecture.*`, as most decoders have them. */
export function decoderConfig(metadata: GgufMetadata, architecture: string): JsonObject {
  const key = (name: string): string => `${architecture}.${name}`
  const heads = metadata.sameInAllLayers(key('attention.head_count')) ?? metadata.number(key('attention.head_count'))
  const width = metadata.number(key('embedding_length'))
  return defined({
    hidden_size: width,
    intermediate_size: metadata.sameInAllLayers(key('feed_forward_length')),
    num_hidden_layers: metadata.number(key('block_count')),
    num_attention_heads: heads,
    num_key_value_heads: metadata.sameInAllLayers(key('attention.head_count_kv')) ?? heads,
    head_dim: metadata.optionalNumber(key('attention.key_length')) ?? width / heads,
    max_position_embeddings: metadata.number(key('context_length')),
    rms_norm_eps: decimal(metadata.optionalNumber(key('attention.layer_norm_rms_epsilon'))),
    rope_theta: decimal(metadata.optionalNumber(key('rope.freq_base'))) ?? 10_000,
    rope_scaling: linearScaling(metadata, architecture),
    vocab_size: vocabularySize(metadata, architecture),
    tie_word_embeddings: !metadata.hasTensor('output.weight'),
  })
}

export function vocabularySize(metadata: GgufMetadata, architecture: string): number {
  const tokens = metadata.texts('tokenizer.ggml.tokens')
  return metadata.optionalNumber(`${architecture}.vocab_size`) ?? tokens?.length ?? metadata.number(`${architecture}.vocab_size`)
}

/** @throws ModalignError `GGUF_ROPE_SCALING` for a kind that is not rebuilt here. */
function linearScaling(metadata: GgufMetadata, architecture: string): JsonValue | undefined {
  const field = `${architecture}.rope.scaling.type`
  const type = metadata.optionalText(field)
  const factor = decimal(metadata.optionalNumber(`${architecture}.rope.scaling.factor`))
  if (type === undefined || type === 'none' || type === 'longrope') return undefined
  if (type === 'linear' && factor !== undefined) return { rope_type: 'linear', factor }
  if (type === 'yarn' && factor !== undefined) {
    const original = metadata.optionalNumber(`${architecture}.rope.scaling.original_context_length`)
    const more = (name: string): number | undefined => decimal(metadata.optionalNumber(`${architecture}.rope.scaling.yarn_${name}`))
    return defined({
      rope_type: 'yarn',
      factor,
      original_max_position_embeddings: original,
      attention_factor: more('attn_factor'),
      beta_fast: more('beta_fast'),
      beta_slow: more('beta_slow'),
    })
  }
  throw new ModalignError({ code: 'GGUF_ROPE_SCALING', file: metadata.file, field, got: type, expected: 'none, linear, yarn or longrope' })
}

export function defined(value: Readonly<Record<string, JsonValue | undefined>>): JsonObject {
  return Object.fromEntries(Object.entries(value).flatMap(([key, item]) => (item === undefined ? [] : [[key, item]])))
}

/**
 * Undoes llama.cpp's order of q's and k's rows in architectures whose rotary positions turn neighbouring channels there: channel (half, i) of a head lies as (i, half).
 */
export function pairedChannels(headDim: number): Layout {
  const half = headDim / 2
  return { rows: { group: headDim, source: (row) => (row < half ? 2 * row : 2 * (row - half) + 1) } }
}

export function numberOf(config: JsonObject, key: string): number {
  const value = config[key]
  if (typeof value !== 'number') throw new Error(`internal: ${key} is a number`)
  return value
}

const gatedNames = {
  token_embd: 'model.embed_tokens',
  output_norm: 'model.norm',
  output: 'lm_head',
} as const

/** The layers of decoders built like Llama. */
export const gatedLayer = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
} as const

/** Llama's modules with these names in their layers. */
export function gatedStack(names: Readonly<Record<string, string>> = gatedLayer): Pick<Architecture, 'names' | 'stacks'> {
  return { names: gatedNames, stacks: () => ({ blk: { prefix: 'model.layers.', names } }) }
}
