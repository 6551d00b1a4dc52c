/** The Audio Spectrogram Transformer (Gong et al. 2021), as Transformers' ASTModel has it. */
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import { size } from '../src/graph/dim.ts'
import { add } from '../src/graph/operators/add.ts'
import { conv } from '../src/graph/operators/conv.ts'
import { reshape } from '../src/graph/operators/reshape.ts'
import { slice } from '../src/graph/operators/slice.ts'
import { transpose } from '../src/graph/operators/transpose.ts'
import { dimAt, input, type Tensor } from '../src/graph/tensor.ts'
import { activationName } from '../src/llm/activations.ts'
import { familyWeights } from '../src/llm/family-weights.ts'
import { kaldiFbank } from '../src/media/log-mel.ts'
import type { AudioPreprocessing } from '../src/media/waveform-preprocess.ts'
import { count, epsilonField } from './blocks/config-fields.ts'
import { defineSoundFamily, namedTensor } from './blocks/sound-family.ts'
import type { SoundTower } from './blocks/sound-graph.ts'
import { transformerLayer } from './blocks/transformer.ts'
import { type LayerChoice, layerIndex, withPrefix } from './blocks/vision-tower.ts'
import { fixedSteps } from './sound-tokens.ts'

const edge = z.int().min(1).max(1024)
const astConfig = z
  .object({
    model_type: z.literal('audio-spectrogram-transformer'),
    hidden_size: count.default(768),
    num_hidden_layers: count.default(12),
    num_attention_heads: count.default(12),
    intermediate_size: count.default(3072),
    hidden_act: activationName.default('gelu'),
    layer_norm_eps: epsilonField.default(1e-12),
    patch_size: edge.default(16),
    qkv_bias: z.boolean().default(true),
    frequency_stride: edge.default(10),
    time_stride: edge.default(10),
    max_length: count.default(1024),
    num_mel_bins: count.default(128),
  })
  .refine(({ hidden_size, num_attention_heads }) => hidden_size % num_attention_heads === 0, {
    path: ['num_attention_heads'],
    message: 'not a divisor of hidden_size',
  })
type AstConfig = z.infer<typeof astConfig>

/** Patches over time and over frequency. */
function patchesOf({ max_length, num_mel_bins, patch_size, time_stride, frequency_stride }: AstConfig): {
  readonly times: number
  readonly bands: number
} {
  return {
    times: Math.floor((max_length - patch_size) / time_stride) + 1,
    bands: Math.floor((num_mel_bins - patch_size) / frequency_stride) + 1,
  }
}

/** Samples from one patch to the next. @throws {ModalignError} `ENCODER_PREPROCESSING` */
function samplesPerPatch(preprocessing: AudioPreprocessing, { max_length, num_mel_bins, time_stride }: AstConfig): number {
  if (preprocessing.kind === 'log-mel' && preprocessing.mel.length === max_length && preprocessing.mel.mel.bins === num_mel_bins)
    return time_stride * preprocessing.mel.hop
  throw new ModalignError({
    code: 'ENCODER_PREPROCESSING',
    got:
      preprocessing.kind === 'log-mel'
        ? `${preprocessing.mel.length ?? 'any number of'} frames of ${preprocessing.mel.mel.bins} bands`
        : preprocessing.kind,
    expected: `${max_length} frames of ${num_mel_bins} mel bands, by config.json`,
  })
}

/** mel [windows, frames, bands] -> [windows, times * bands of patches, width], time by time. */
function tower(config: AstConfig, layer: LayerChoice): SoundTower {
  const { hidden_size: width, num_hidden_layers: layers, layer_norm_eps: epsilon, patch_size: patch } = config
  const { times, bands } = patchesOf(config)
  const taken = layerIndex(layer, layers)
  return {
    width,
    columns: bands,
    inputs: [input('input_values', 'float32', [size('windows'), config.max_length, config.num_mel_bins])],
    feeds: (windows) => ({ input_values: windows }),
    forward([mel], lookup) {
      if (mel === undefined) throw new Error('internal: an input is missing')
      const prefix = 'audio_spectrogram_transformer.'
      const weights = familyWeights(lookup, { prefix, others: [''], probe: 'embeddings.cls_token' })
      const at = (name: string): string => `${prefix}${name}`
      const windows = dimAt(mel.shape, 0)
      const picture = reshape(transpose(mel, [0, 2, 1]), [windows, 1, config.num_mel_bins, config.max_length])
      const projection = at('embeddings.patch_embeddings.projection')
      const map = conv(
        picture,
        weights.tensor(`${projection}.weight`, [width, 1, patch, patch]),
        weights.tensor(`${projection}.bias`, [width]),
        {
          strides: [config.frequency_stride, config.time_stride],
        },
      )
      const patches = transpose(reshape(map, [windows, width, bands * times]), [0, 2, 1])
      const first = (name: string): Tensor => weights.tensor(at(`embeddings.${name}`), [1, 1, width])
      const tokens = withPrefix([first('cls_token'), first('distillation_token')], patches)
      let x = add(tokens, weights.tensor(at('embeddings.position_embeddings'), [1, bands * times + 2, width]))
      for (let index = 0; index < (taken === 'last' ? layers : taken); index++) {
        const name = at(`encoder.layer.${index}`)
        x = transformerLayer(
          x,
          weights,
          {
            norm1: `${name}.layernorm_before`,
            query: `${name}.attention.attention.query`,
            key: `${name}.attention.attention.key`,
            value: `${name}.attention.attention.value`,
            output: `${name}.attention.output.dense`,
            norm2: `${name}.layernorm_after`,
            up: `${name}.intermediate.dense`,
            down: `${name}.output.dense`,
          },
          {
            heads: config.num_attention_heads,
            inner: config.intermediate_size,
            epsilon,
            activation: config.hidden_act,
            biases: { query: config.qkv_bias, key: config.qkv_bias, value: config.qkv_bias },
          },
        )
      }
      const features = taken === 'last' ? weights.layerNorm(x, at('layernorm'), { epsilon }) : x
      const own = reshape(slice(features, [{ axis: 1, start: 2 }]), [windows, bands, times, width])
      return reshape(transpose(own, [0, 2, 1, 3]), [windows, times * bands, width])
    },
  }
}

const frames = 1024
const mel = kaldiFbank({ window: 'hann', length: frames, normalize: { mean: -4.2677393, std: 2 * 4.5689974 } })

/**
 * AST: patches of 160 ms and 16 mel bands, overlapping, so that each 100 ms have 12 tokens, lowest frequencies first. Windows of 10.24 s; tokens behind a sound's end are
 * dropped. The class and distillation tokens are dropped, too.
 *
 * Takes a Hugging Face folder (`model.safetensors`), an export's `onnx/model.onnx`, or the file itself. Exports of classifiers give classes, not features: name the
 * tensor before their head in `output`.
 *
 * @throws {ModalignError} `ENCODER_CONFIG`, `ENCODER_LAYER`, `ENCODER_PREPROCESSING`, `ENCODER_OPTIONS`, `ENCODER_MISSING`, and as {@link onnxAudio}
 *
 * @example
 * const encoder = await ast('models/ast-finetuned-audioset-10-10-0.4593')
 * encoder.grid({ seconds: 1 }).segments[0] // { frames: 10, rows: 1, columns: 12, time: [0, 0.1, ...] }
 */
export const ast = defineSoundFamily<AstConfig>({
  name: 'ast',
  label: 'AST',
  preprocessing: {
    kind: 'log-mel',
    mel,
    axes: ['frame', 'band'],
    windows: { kind: 'consecutive', samples: (frames - 1) * mel.hop + mel.frameLength, step: frames * mel.hop, fill: 'none', most: 1_000 },
  },
  dropPadding: true,
  onnx: {
    files: ['onnx/model.onnx', 'model.onnx', 'onnx/model_quantized.onnx', 'onnx/model_fp16.onnx', 'onnx/model_q4.onnx'],
    output: namedTensor('last_hidden_state'),
    prefixTokens: 2,
    columns: 12,
    order: 'frequency',
  },
  folder: {
    config: astConfig,
    tower: (config, layer) => tower(config, layer),
    tokens: (config, preprocessing, dropPadding) => {
      const { times, bands } = patchesOf(config)
      const step = samplesPerPatch(preprocessing, config)
      return { ...fixedSteps(times, times * step, { columns: bands, dropPadding }), leastSamples: 400 }
    },
  },
})
