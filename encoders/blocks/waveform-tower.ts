/** wav2vec 2.0 and its kin: convolutions over raw samples, then a transformer.   Baevski et al. 2020; HuBERT: Hsu et al. 2021; WavLM: Chen et al. 2022. */
import { z } from 'zod'
import { ModalignError } from '../../src/errors.ts'
import { scaledDotProductAttention } from '../../src/graph/composites/attention.ts'
import { addDims, type Dim, multiplyDims, size, subtractDims } from '../../src/graph/dim.ts'
import { add } from '../../src/graph/operators/add.ts'
import { conv } from '../../src/graph/operators/conv.ts'
import { div } from '../../src/graph/operators/div.ts'
import { mul } from '../../src/graph/operators/mul.ts'
import { reduceSum } from '../../src/graph/operators/reduce-sum.ts'
import { reshape } from '../../src/graph/operators/reshape.ts'
import { slice } from '../../src/graph/operators/slice.ts'
import { sqrt } from '../../src/graph/operators/sqrt.ts'
import { sub } from '../../src/graph/operators/sub.ts'
import { transpose } from '../../src/graph/operators/transpose.ts'
import { dimAt, fixedDim, input, type Tensor } from '../../src/graph/tensor.ts'
import { type ActivationName, activate, activationName } from '../../src/llm/activations.ts'
import type { WeightLookup } from '../../src/llm/decoder.ts'
import { type FamilyWeights, familyWeights } from '../../src/llm/family-weights.ts'
import type { AudioPreprocessing } from '../../src/media/waveform-preprocess.ts'
import type { TensorValue } from '../../src/tensors.ts'
import { convolvedSteps, type SoundTokens } from '../sound-tokens.ts'
import { count, epsilonField } from './config-fields.ts'
import { namedTensor, type PublishedSound } from './sound-family.ts'
import type { SoundTower } from './sound-graph.ts'
import { type LayerChoice, layerIndex } from './vision-tower.ts'

const positionConvolution = 'encoder.pos_conv_embed.conv'
const step = z.int().min(1).max(1024)

/** What the families' configs share; defaults are Transformers'. */
export const waveformFields = {
  hidden_size: count.default(768),
  num_hidden_layers: count.default(12),
  num_attention_heads: count.default(12),
  intermediate_size: count.default(3072),
  hidden_act: activationName.default('gelu'),
  layer_norm_eps: epsilonField.default(1e-5),
  feat_extract_norm: z.enum(['group', 'layer']).default('group'),
  feat_extract_activation: activationName.default('gelu'),
  conv_dim: z.array(count).min(1).max(64).default([512, 512, 512, 512, 512, 512, 512]),
  conv_kernel: z.array(step).default([10, 3, 3, 3, 3, 2, 2]),
  conv_stride: z.array(step).default([5, 2, 2, 2, 2, 2, 2]),
  conv_bias: z.boolean().default(false),
  num_conv_pos_embeddings: z.int().min(1).max(4096).default(128),
  num_conv_pos_embedding_groups: z.int().min(1).max(4096).default(16),
  do_stable_layer_norm: z.boolean().default(false),
  /** A convolution behind the last layer, in models tuned to translate. */
  add_adapter: z.literal(false).default(false),
  /** Small layers within the others, one set for each language. */
  adapter_attn_dim: z.null().default(null),
} as const

const shared = z.object(waveformFields)
export type WaveformConfig = z.infer<typeof shared>

/** The sizes that have to agree. */
export function checkWaveformConfig(
  config: WaveformConfig,
  { addIssue }: { addIssue(issue: { code: 'custom'; path: string[]; message: string }): void },
): void {
  const refuse = (field: string, message: string): void => addIssue({ code: 'custom', path: [field], message })
  if (config.conv_kernel.length !== config.conv_dim.length) refuse('conv_kernel', 'another length than conv_dim')
  if (config.conv_stride.length !== config.conv_dim.length) refuse('conv_stride', 'another length than conv_dim')
  if (config.hidden_size % config.num_attention_heads !== 0) refuse('num_attention_heads', 'not a divisor of hidden_size')
  if (config.hidden_size % config.num_conv_pos_embedding_groups !== 0)
    refuse('num_conv_pos_embedding_groups', 'not a divisor of hidden_size')
}

/** One token for `receptive` samples, another for every `stride` more. */
export function convolutionOf({ conv_kernel, conv_stride }: WaveformConfig): { readonly stride: number; readonly receptive: number } {
  let [stride, receptive] = [1, 1]
  for (const [index, kernel] of conv_kernel.entries()) {
    receptive += (kernel - 1) * stride
    stride *= conv_stride[index] ?? 1
  }
  return { stride, receptive }
}

export function waveformTokens(config: WaveformConfig): SoundTokens {
  const { stride, receptive } = convolutionOf(config)
  return convolvedSteps(stride, receptive)
}

/** Windows of 30 s at most: attention's cost grows with the square of a window. */
export function waveformPreprocessing(normalize: boolean): AudioPreprocessing {
  const samples = 30 * 16_000
  return {
    kind: 'waveform',
    sampleRateHz: 16_000,
    normalize,
    windows: { kind: 'consecutive', samples, step: samples, fill: 'none', most: 1_000 },
  }
}

/** How exports of the families lie in folders, and what they call their features. */
export const publishedWaveform: PublishedSound = {
  files: ['onnx/model.onnx', 'model.onnx', 'onnx/model_quantized.onnx', 'onnx/model_fp16.onnx', 'onnx/model_q4.onnx'],
  output: namedTensor('last_hidden_state'),
  convolution: { strideSamples: 320, receptiveSamples: 400 },
}

/** What a family adds to the scores of a layer's attention: x [windows, tokens, width] -> [windows, heads, tokens, tokens]. */
export type AttentionBias = (x: Tensor, weights: FamilyWeights, layer: number) => Tensor

export interface WaveformPlan {
  /** The prefix of Transformers' models with a head. */
  readonly prefix: string
  /** Default: none. */
  readonly bias?: AttentionBias
  /** The norm before the projection to the transformer's width (HuBERT may lack it). Default true. */
  readonly projectionNorm?: boolean
}

/**
 * Sounds come as rows of `stride` samples, filled with zeros to whole rows and to `spare` more than there are tokens, so that sizes are whole numbers of rows; `first_frames` counts
 * the first convolution's windows that lie within the sound. Whatever looks at zeros is cut off again, and the first norm's statistics leave it out.
 */
export function waveformTower(
  config: WaveformConfig,
  layer: LayerChoice,
  { prefix, bias, projectionNorm = true }: WaveformPlan,
): SoundTower {
  const { hidden_size: width, num_hidden_layers: layers, layer_norm_eps: epsilon, do_stable_layer_norm: stable } = config
  const { stride, receptive } = convolutionOf(config)
  const spare = Math.ceil((receptive - 1) / stride)
  const taken = layerIndex(layer, layers)
  const rows = size('sample_rows')
  const grouped = config.feat_extract_norm === 'group'
  const frames = subtractDims(multiplyDims(stride / (config.conv_stride[0] ?? 1), rows), firstLoss(config))
  return {
    width,
    inputs: [
      input('samples', 'float32', [size('windows'), rows, stride]),
      ...(grouped ? [input('first_frames', 'float32', [size('windows'), 1, frames])] : []),
    ],
    feeds: (windows) => feedsOf(windows, config, spare),
    forward([samples, firstFrames], lookup: WeightLookup) {
      if (samples === undefined) throw new Error('internal: an input is missing')
      const weights = familyWeights(lookup, { prefix, others: [''], probe: 'feature_projection.projection.weight' })
      const extracted = convolved(samples, firstFrames, weights, { config, prefix, tokens: subtractDims(dimAt(samples.shape, 1), spare) })
      const at = (name: string): string => `${prefix}${name}`
      const projected = projectionNorm ? weights.layerNorm(extracted, at('feature_projection.layer_norm'), { epsilon }) : extracted
      const embedded = weights.linear(projected, at('feature_projection.projection'), width, { bias: true })
      const parametrized = lookup.has?.(weights.stored(at(`${positionConvolution}.parametrizations.weight.original0`))) ?? true
      const placed = add(embedded, positions(embedded, weights, at(positionConvolution), config, parametrized))
      let x = stable ? placed : weights.layerNorm(placed, at('encoder.layer_norm'), { epsilon })
      for (let index = 0; index < (taken === 'last' ? layers : taken); index++)
        x = transformerLayer(x, weights, at(`encoder.layers.${index}`), config, (states) => bias?.(states, weights, index))
      return stable && taken === 'last' ? weights.layerNorm(x, at('encoder.layer_norm'), { epsilon }) : x
    },
  }
}

/** The first convolution of `n * stride` samples has `n * stride / firstStride - firstLoss` windows. */
function firstLoss({ conv_kernel: [kernel = 1], conv_stride: [first = 1] }: WaveformConfig): number {
  return Math.ceil((kernel - first) / first)
}

function feedsOf(windows: TensorValue, config: WaveformConfig, spare: number): Record<string, TensorValue> {
  const [count = 0, length = 0] = windows.dims
  const { stride, receptive } = convolutionOf(config)
  const rows = Math.floor((length - receptive) / stride) + 1 + spare
  if (windows.dtype !== 'float32' || rows <= spare)
    throw new ModalignError({ code: 'AUDIO_TOO_SHORT', got: `${length} samples`, expected: `at least ${receptive}` })
  const data = new Float32Array(count * rows * stride)
  for (let window = 0; window < count; window++)
    data.set(windows.data.subarray(window * length, (window + 1) * length), window * rows * stride)
  const samples: TensorValue = { dtype: 'float32', dims: [count, rows, stride], data }
  if (config.feat_extract_norm === 'layer') return { samples }
  const [kernel = 1, first = 1] = [config.conv_kernel[0], config.conv_stride[0]]
  const [all, real] = [(rows * stride) / first - firstLoss(config), Math.floor((length - kernel) / first) + 1]
  const marks = Float32Array.from({ length: count * all }, (_, at) => (at % all < real ? 1 : 0))
  return { samples, first_frames: { dtype: 'float32', dims: [count, 1, all], data: marks } }
}

/** samples [windows, rows, stride] -> [windows, tokens, channels]. */
function convolved(
  samples: Tensor,
  firstFrames: Tensor | undefined,
  weights: FamilyWeights,
  { config, prefix, tokens }: { readonly config: WaveformConfig; readonly prefix: string; readonly tokens: Dim },
): Tensor {
  const { conv_dim: channels, conv_kernel: kernels, conv_stride: strides, conv_bias: biased } = config
  const wanted = framesNeeded(config, tokens)
  const total = multiplyDims(dimAt(samples.shape, 1), fixedDim(samples.shape, 2, 'samples'))
  const whole = reshape(samples, [dimAt(samples.shape, 0), 1, total])
  // The statistics of the first norm are over the whole sound; everything else needs what the tokens see, and no more.
  let x = firstFrames === undefined ? slice(whole, [{ axis: 2, end: wanted[0] ?? tokens }]) : whole
  for (const [index, out] of channels.entries()) {
    const name = `${prefix}feature_extractor.conv_layers.${index}`
    const kernel = weights.tensor(`${name}.conv.weight`, [out, fixedDim(x.shape, 1, name), kernels[index] ?? 1])
    const made = conv(x, kernel, biased ? weights.tensor(`${name}.conv.bias`, [out]) : undefined, { strides: [strides[index] ?? 1] })
    x = activate(config.feat_extract_activation, normal(made, index, name))
  }
  return transpose(x, [0, 2, 1])

  function normal(made: Tensor, index: number, name: string): Tensor {
    // Both norms have PyTorch's default epsilon, whatever the config says of the transformer's.
    const epsilon = 1e-5
    if (config.feat_extract_norm === 'layer')
      return transpose(weights.layerNorm(transpose(made, [0, 2, 1]), `${name}.layer_norm`, { epsilon }), [0, 2, 1])
    if (index > 0 || firstFrames === undefined) return made
    const some = slice(normalisedOverTime(made, firstFrames, epsilon), [{ axis: 2, end: wanted[1] ?? tokens }])
    const affine = (part: string): Tensor =>
      reshape(weights.tensor(`${name}.layer_norm.${part}`, [channels[0] ?? 1]), [channels[0] ?? 1, 1])
    return add(mul(some, affine('weight')), affine('bias'))
  }
}

/** Group normalisation with one channel a group: (x - mean) / sqrt(variance + epsilon) over the times that `marks` has as 1. */
function normalisedOverTime(x: Tensor, marks: Tensor, epsilon: number): Tensor {
  const number = reduceSum(marks, [-1], { keepdims: true })
  const mean = div(reduceSum(mul(x, marks), [-1], { keepdims: true }), number)
  const centred = mul(sub(x, mean), marks)
  const variance = div(reduceSum(mul(centred, centred), [-1], { keepdims: true }), number)
  return div(centred, sqrt(add(variance, epsilon)))
}

/** How many samples, and how many outputs of each convolution, the tokens see. */
function framesNeeded({ conv_kernel, conv_stride }: WaveformConfig, tokens: Dim): readonly Dim[] {
  const needed: Dim[] = [tokens]
  for (let index = conv_kernel.length - 1; index >= 0; index--) {
    const after = needed[0] ?? tokens
    needed.unshift(addDims(multiplyDims(subtractDims(after, 1), conv_stride[index] ?? 1), conv_kernel[index] ?? 1))
  }
  return needed
}

/** A convolution over the tokens, whose weight is kept as a direction and a length for each tap (Salimans & Kingma 2016). */
function positions(x: Tensor, weights: FamilyWeights, name: string, config: WaveformConfig, parametrized: boolean): Tensor {
  const { hidden_size: width, num_conv_pos_embeddings: kernel, num_conv_pos_embedding_groups: groups } = config
  const shape = [width, width / groups, kernel]
  // The names changed when PyTorch made weight norm a parametrization.
  const [lengthName, directionName] = parametrized
    ? ['parametrizations.weight.original0', 'parametrizations.weight.original1']
    : ['weight_g', 'weight_v']
  const direction = weights.tensor(`${name}.${directionName}`, shape)
  const norm = sqrt(reduceSum(mul(direction, direction), [0, 1], { keepdims: true }))
  const taps = mul(direction, div(weights.tensor(`${name}.${lengthName}`, [1, 1, kernel]), norm))
  const half = Math.floor(kernel / 2)
  // An even kernel gives one output more than there are tokens, and the last is dropped.
  const pads = [half, half - (kernel % 2 === 0 ? 1 : 0)]
  const made = conv(transpose(x, [0, 2, 1]), taps, weights.tensor(`${name}.bias`, [width]), { groups, pads })
  return activate(config.feat_extract_activation, transpose(made, [0, 2, 1]))
}

function transformerLayer(
  x: Tensor,
  weights: FamilyWeights,
  name: string,
  config: WaveformConfig,
  bias: (x: Tensor) => Tensor | undefined,
): Tensor {
  const { layer_norm_eps: epsilon, do_stable_layer_norm: stable } = config
  const norm = (states: Tensor, part: string): Tensor => weights.layerNorm(states, `${name}.${part}`, { epsilon })
  const attend = (states: Tensor): Tensor => attention(states, weights, `${name}.attention`, config.num_attention_heads, bias(states))
  const feed = (states: Tensor): Tensor => feedForward(states, weights, `${name}.feed_forward`, config.intermediate_size, config.hidden_act)
  if (stable) {
    const middle = add(x, attend(norm(x, 'layer_norm')))
    return add(middle, feed(norm(middle, 'final_layer_norm')))
  }
  const middle = norm(add(x, attend(x)), 'layer_norm')
  return norm(add(middle, feed(middle)), 'final_layer_norm')
}

function attention(x: Tensor, weights: FamilyWeights, name: string, heads: number, mask: Tensor | undefined): Tensor {
  const [windows, tokens, width] = [dimAt(x.shape, 0), dimAt(x.shape, 1), fixedDim(x.shape, 2, name)]
  const byHead = (part: string): Tensor =>
    transpose(reshape(weights.linear(x, `${name}.${part}`, width, { bias: true }), [windows, tokens, heads, width / heads]), [0, 2, 1, 3])
  const attended = scaledDotProductAttention(byHead('q_proj'), byHead('k_proj'), byHead('v_proj'), mask === undefined ? {} : { mask })
  return weights.linear(reshape(transpose(attended, [0, 2, 1, 3]), x.shape), `${name}.out_proj`, width, { bias: true })
}

function feedForward(x: Tensor, weights: FamilyWeights, name: string, inner: number, act: ActivationName): Tensor {
  const middle = activate(act, weights.linear(x, `${name}.intermediate_dense`, inner, { bias: true }))
  return weights.linear(middle, `${name}.output_dense`, fixedDim(x.shape, 2, name), { bias: true })
}
