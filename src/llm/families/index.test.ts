import { describe, expect, test } from 'vitest'
import { ModalignError } from '../../errors.ts'
import { size } from '../../graph/dim.ts'
import { input, type Tensor } from '../../graph/tensor.ts'
import type { Decoder, WeightLookup } from '../decoder.ts'
import { sourceContext } from '../source-tokens.ts'
import { buildDecoder, families } from './index.ts'

/** What config.json of published models says, as far as it matters here, and how many parameters their makers count. */
const published: readonly { readonly model: string; readonly parameters: number; readonly config: Readonly<Record<string, unknown>> }[] = [
  {
    model: 'meta-llama/Llama-3.2-1B',
    parameters: 1_235_814_400,
    config: {
      model_type: 'llama',
      hidden_size: 2048,
      intermediate_size: 8192,
      num_hidden_layers: 16,
      num_attention_heads: 32,
      num_key_value_heads: 8,
      head_dim: 64,
      vocab_size: 128_256,
      max_position_embeddings: 131_072,
      rms_norm_eps: 1e-5,
      rope_theta: 500_000,
      tie_word_embeddings: true,
      attention_bias: false,
      mlp_bias: false,
      hidden_act: 'silu',
      pretraining_tp: 1,
      rope_scaling: { factor: 32, high_freq_factor: 4, low_freq_factor: 1, original_max_position_embeddings: 8192, rope_type: 'llama3' },
    },
  },
  {
    model: 'mistralai/Mistral-7B-v0.1',
    parameters: 7_241_732_096,
    config: {
      model_type: 'mistral',
      hidden_size: 4096,
      intermediate_size: 14_336,
      num_hidden_layers: 32,
      num_attention_heads: 32,
      num_key_value_heads: 8,
      vocab_size: 32_000,
      max_position_embeddings: 32_768,
      rms_norm_eps: 1e-5,
      rope_theta: 10_000,
      sliding_window: 4096,
      tie_word_embeddings: false,
    },
  },
  {
    model: 'Qwen/Qwen2.5-0.5B',
    parameters: 494_032_768,
    config: {
      model_type: 'qwen2',
      hidden_size: 896,
      intermediate_size: 4864,
      num_hidden_layers: 24,
      num_attention_heads: 14,
      num_key_value_heads: 2,
      vocab_size: 151_936,
      max_position_embeddings: 32_768,
      max_window_layers: 24,
      rms_norm_eps: 1e-6,
      rope_theta: 1_000_000,
      sliding_window: 32_768,
      use_sliding_window: false,
      use_mrope: false,
      tie_word_embeddings: true,
    },
  },
  {
    model: 'Qwen/Qwen3-0.6B',
    parameters: 596_049_920,
    config: {
      model_type: 'qwen3',
      hidden_size: 1024,
      intermediate_size: 3072,
      num_hidden_layers: 28,
      num_attention_heads: 16,
      num_key_value_heads: 8,
      head_dim: 128,
      vocab_size: 151_936,
      max_position_embeddings: 40_960,
      max_window_layers: 28,
      rms_norm_eps: 1e-6,
      rope_scaling: null,
      rope_theta: 1_000_000,
      sliding_window: null,
      use_sliding_window: false,
      attention_bias: false,
      tie_word_embeddings: true,
    },
  },
  {
    model: 'microsoft/Phi-3-mini-4k-instruct',
    parameters: 3_821_079_552,
    config: {
      model_type: 'phi3',
      hidden_size: 3072,
      intermediate_size: 8192,
      num_hidden_layers: 32,
      num_attention_heads: 32,
      num_key_value_heads: 32,
      vocab_size: 32_064,
      max_position_embeddings: 4096,
      original_max_position_embeddings: 4096,
      rms_norm_eps: 1e-5,
      rope_scaling: null,
      rope_theta: 10_000,
      sliding_window: 2047,
      tie_word_embeddings: false,
      attention_bias: false,
    },
  },
  {
    model: 'google/gemma-2-2b',
    parameters: 2_614_341_888,
    config: {
      model_type: 'gemma2',
      hidden_size: 2304,
      intermediate_size: 9216,
      num_hidden_layers: 26,
      num_attention_heads: 8,
      num_key_value_heads: 4,
      head_dim: 256,
      vocab_size: 256_000,
      max_position_embeddings: 8192,
      query_pre_attn_scalar: 256,
      sliding_window: 4096,
      rope_theta: 10_000,
      attn_logit_softcapping: 50,
      final_logit_softcapping: 30,
      hidden_act: 'gelu_pytorch_tanh',
      hidden_activation: 'gelu_pytorch_tanh',
      cache_implementation: 'hybrid',
      attention_bias: false,
    },
  },
  {
    model: 'google/gemma-3-1b-it',
    parameters: 999_885_952,
    config: {
      model_type: 'gemma3_text',
      hidden_size: 1152,
      intermediate_size: 6912,
      num_hidden_layers: 26,
      num_attention_heads: 4,
      num_key_value_heads: 1,
      head_dim: 256,
      vocab_size: 262_144,
      max_position_embeddings: 32_768,
      query_pre_attn_scalar: 256,
      sliding_window: 512,
      sliding_window_pattern: 6,
      rope_local_base_freq: 10_000,
      rope_scaling: null,
      rope_theta: 1_000_000,
      attn_logit_softcapping: null,
      final_logit_softcapping: null,
    },
  },
  {
    model: 'openai-community/gpt2',
    parameters: 124_439_808,
    config: {
      model_type: 'gpt2',
      activation_function: 'gelu_new',
      layer_norm_epsilon: 1e-5,
      n_ctx: 1024,
      n_embd: 768,
      n_head: 12,
      n_layer: 12,
      n_positions: 1024,
      vocab_size: 50_257,
    },
  },
  {
    model: 'EleutherAI/pythia-70m',
    parameters: 70_426_624,
    config: {
      model_type: 'gpt_neox',
      hidden_act: 'gelu',
      hidden_size: 512,
      intermediate_size: 2048,
      layer_norm_eps: 1e-5,
      max_position_embeddings: 2048,
      num_attention_heads: 8,
      num_hidden_layers: 6,
      rotary_emb_base: 10_000,
      rotary_pct: 0.25,
      tie_word_embeddings: false,
      use_parallel_residual: true,
      vocab_size: 50_304,
    },
  },
  {
    model: 'facebook/opt-125m',
    parameters: 125_239_296,
    config: {
      model_type: 'opt',
      activation_function: 'relu',
      do_layer_norm_before: true,
      _remove_final_layer_norm: false,
      ffn_dim: 3072,
      hidden_size: 768,
      max_position_embeddings: 2048,
      num_attention_heads: 12,
      num_hidden_layers: 12,
      vocab_size: 50_272,
      word_embed_proj_dim: 768,
    },
  },
  {
    model: 'facebook/opt-350m',
    parameters: 331_196_416,
    config: {
      model_type: 'opt',
      activation_function: 'relu',
      do_layer_norm_before: false,
      ffn_dim: 4096,
      hidden_size: 1024,
      max_position_embeddings: 2048,
      num_attention_heads: 16,
      num_hidden_layers: 24,
      vocab_size: 50_272,
      word_embed_proj_dim: 512,
    },
  },
  {
    model: 'bigscience/bloomz-560m',
    parameters: 559_214_592,
    config: {
      model_type: 'bloom',
      hidden_size: 1024,
      n_head: 16,
      n_layer: 24,
      n_inner: null,
      offset_alibi: 100,
      seq_length: 2048,
      vocab_size: 250_880,
      layer_norm_epsilon: 1e-5,
      apply_residual_connection_post_layernorm: false,
      pretraining_tp: 1,
      slow_but_exact: false,
    },
  },
  {
    model: 'google-t5/t5-small',
    parameters: 60_506_624,
    config: {
      model_type: 't5',
      d_ff: 2048,
      d_kv: 64,
      d_model: 512,
      decoder_start_token_id: 0,
      feed_forward_proj: 'relu',
      layer_norm_epsilon: 1e-6,
      n_positions: 512,
      num_heads: 8,
      num_layers: 6,
      pad_token_id: 0,
      relative_attention_num_buckets: 32,
      vocab_size: 32_128,
    },
  },
  {
    model: 'google/flan-t5-small',
    parameters: 76_961_152,
    config: {
      model_type: 't5',
      d_ff: 1024,
      d_kv: 64,
      d_model: 512,
      decoder_start_token_id: 0,
      feed_forward_proj: 'gated-gelu',
      layer_norm_epsilon: 1e-6,
      n_positions: 512,
      num_decoder_layers: 8,
      num_heads: 6,
      num_layers: 8,
      pad_token_id: 0,
      relative_attention_max_distance: 128,
      relative_attention_num_buckets: 32,
      tie_word_embeddings: false,
      vocab_size: 32_128,
    },
  },
]

/** Every weight that a model asks for while it is built and applied once. */
function asked(config: unknown): { readonly decoder: Decoder; readonly weights: ReadonlyMap<string, readonly number[]> } {
  const weights = new Map<string, readonly number[]>()
  const tensors = new Map<string, Tensor>()
  const lookup: WeightLookup = (name, shape) => {
    weights.set(name, shape)
    const known = tensors.get(name) ?? input(name, 'float32', shape)
    tensors.set(name, known)
    return known
  }
  const decoder = buildDecoder(config, lookup)
  const [batch, tokens] = [size('batch'), size('tokens')]
  const positions = input('positions', 'int64', [batch, tokens])
  decoder.decode(decoder.embed(input('ids', 'int64', [batch, tokens])), { positions, ...sourceContext(decoder, batch) })
  return { decoder, weights }
}

describe('published configs', () => {
  test.each(published)('$model has $parameters parameters', ({ config, parameters }) => {
    const { weights } = asked(config)
    expect([...weights.values()].reduce((sum, shape) => sum + shape.reduce((product, dim) => product * dim, 1), 0)).toBe(parameters)
  })

  test('Gemma 3 with a vision tower says little of its language model', () => {
    const text = {
      hidden_size: 2560,
      intermediate_size: 10_240,
      model_type: 'gemma3_text',
      num_hidden_layers: 34,
      rope_scaling: { factor: 8, rope_type: 'linear' },
      sliding_window: 1024,
    }
    const { decoder, weights } = asked({ model_type: 'gemma3', text_config: text, vision_config: { hidden_size: 1152 } })
    expect(decoder).toMatchObject({
      hiddenSize: 2560,
      layers: 34,
      kvHeads: 4,
      headDim: 256,
      vocabularySize: 262_208,
      maxPositions: 131_072,
    })
    // 3.88 billion parameters without the tower.
    expect([...weights.values()].reduce((sum, [a = 1, b = 1]) => sum + a * b, 0)).toBe(3_880_263_168)
  })

  test('Phi-3.5 and Phi-4-mini', () => {
    const factors = Array.from({ length: 48 }, (_, index) => 1 + index)
    const phi = { ...published.find(({ config }) => config.model_type === 'phi3')?.config, max_position_embeddings: 131_072 }
    const long = { type: 'longrope', short_factor: factors, long_factor: factors }
    expect(buildDecoder({ ...phi, rope_scaling: long }, (name, shape) => input(name, 'float32', shape))).toMatchObject({ longAfter: 4096 })
    // Its first files had another name for it.
    expect(buildDecoder({ ...phi, rope_scaling: { ...long, type: 'su' } }, (name, shape) => input(name, 'float32', shape))).toMatchObject({
      longAfter: 4096,
    })
  })
})

describe('configs that cannot be read', () => {
  const llama = published[0]?.config ?? {}
  const failure = (config: unknown): unknown => {
    try {
      buildDecoder(config, (name, shape) => input(name, 'float32', shape), 'config.json')
      return undefined
    } catch (error) {
      return error instanceof ModalignError ? error.details : error
    }
  }

  test.each([{ model_type: 'mamba' }, { model_type: 'constructor' }, { model_type: 7 }, {}, null, 'llama'])(
    'an unknown family: %j',
    (config) => {
      expect(failure(config)).toMatchObject({
        code: 'LLM_FAMILY_UNKNOWN',
        file: 'config.json',
        field: '/model_type',
        expected: `one of ${Object.keys(families).join(', ')}`,
      })
    },
  )

  test.each<[string, unknown, string]>([
    ['another kind of scaling', { ...llama, rope_scaling: { rope_type: 'xpos', factor: 2 } }, '/rope_scaling/rope_type'],
    ['scaling without its factor', { ...llama, rope_scaling: { type: 'linear' } }, '/rope_scaling/factor'],
    ['another activation', { ...llama, hidden_act: 'mish' }, '/hidden_act'],
    ['half a channel a head', { ...llama, head_dim: 63 }, '/head_dim'],
    ['heads that make no groups', { ...llama, num_key_value_heads: 5 }, '/num_key_value_heads'],
    ['a billion positions', { ...llama, max_position_embeddings: 1e9 }, '/max_position_embeddings'],
    ['no size', { ...llama, hidden_size: undefined }, '/hidden_size'],
    ['a gate of an unknown kind', { model_type: 't5', feed_forward_proj: 'gated-mish' }, '/feed_forward_proj'],
    ['attention in both directions', { model_type: 'gemma3_text', use_bidirectional_attention: true }, '/use_bidirectional_attention'],
    ['a head in pieces', { model_type: 'gpt2', n_head: 7 }, '/n_head'],
    ['norms without weights', { model_type: 'opt', layer_norm_elementwise_affine: false }, '/layer_norm_elementwise_affine'],
    [
      'factors for other channels',
      {
        ...published.find(({ config }) => config.model_type === 'phi3')?.config,
        rope_scaling: { type: 'longrope', short_factor: [1, 2], long_factor: [1, 2] },
      },
      '/rope_scaling/short_factor',
    ],
  ])('%s', (_, config, field) => {
    expect(failure(config)).toMatchObject({ code: 'LLM_CONFIG', file: 'config.json', field })
  })
})
