/** Whisper's encoder (Radford et al. 2022), as Transformers' WhisperModel has it. */
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import { size } from '../src/graph/dim.ts'
import { add } from '../src/graph/operators/add.ts'
import { conv } from '../src/graph/operators/conv.ts'
import { gelu } from '../src/graph/operators/gelu.ts'
import { slice } from '../src/graph/operators/slice.ts'
import { transpose } from '../src/graph/operators/transpose.ts'
import { input } from '../src/graph/tensor.ts'
import { activationName } from '../src/llm/activations.ts'
import { familyWeights } from '../src/llm/family-weights.ts'
import { whisperLogMel } from '../src/media/log-mel.ts'
import type { AudioPreprocessing } from '../src/media/waveform-preprocess.ts'
import { count } from './blocks/config-fields.ts'
import { defineSoundFamily, namedTensor } from './blocks/sound-family.ts'
import type { SoundTower } from './blocks/sound-graph.ts'
import { transformerLayer } from './blocks/transformer.ts'
import { type LayerChoice, layerIndex } from './blocks/vision-tower.ts'
import { fixedSteps } from './sound-tokens.ts'

const whisperConfig = z
  .object({
    model_type: z.literal('whisper'),
    num_mel_bins: count.default(80),
    d_model: count,
    encoder_layers: count,
    encoder_attention_heads: count,
    encoder_ffn_dim: count,
    max_source_positions: count.default(1500),
    activation_function: activationName.default('gelu'),
  })
  .refine(({ d_model, encoder_attention_heads }) => d_model % encoder_attention_heads === 0, {
    path: ['encoder_attention_heads'],
    message: 'not a divisor of d_model',
  })
type WhisperConfig = z.infer<typeof whisperConfig>

const rate = 16_000
const windowSamples = 30 * rate

/** Mel frames of one window. @throws {ModalignError} `ENCODER_PREPROCESSING` */
function framesOf(preprocessing: AudioPreprocessing, { num_mel_bins: bins, max_source_positions: positions }: WhisperConfig): number {
  const refuse = (got: string, expected: string): ModalignError => new ModalignError({ code: 'ENCODER_PREPROCESSING', got, expected })
  if (preprocessing.kind !== 'log-mel' || preprocessing.windows?.kind !== 'consecutive' || preprocessing.windows.fill === 'none')
    throw refuse('windows of any length', 'filled windows of log-mel frames')
  const { mel, windows } = preprocessing
  if (mel.mel.bins !== bins) throw refuse(`${mel.mel.bins} mel bands`, `${bins}, by config.json`)
  const frames = windows.samples / mel.hop
  if (!Number.isInteger(frames / 2) || frames / 2 > positions)
    throw refuse(`windows of ${windows.samples} samples`, `a multiple of ${2 * mel.hop}, at most ${2 * positions * mel.hop}`)
  return frames
}

/** mel [windows, bands, 2*positions] -> [windows, positions, width]. */
function tower(config: WhisperConfig, layer: LayerChoice, preprocessing: AudioPreprocessing): SoundTower {
  const { d_model: width, num_mel_bins: bins, encoder_layers: layers, max_source_positions: positions } = config
  const frames = framesOf(preprocessing, config)
  const taken = layerIndex(layer, layers)
  const epsilon = 1e-5
  return {
    width,
    inputs: [input('input_features', 'float32', [size('windows'), bins, frames])],
    feeds: (windows) => ({ input_features: windows }),
    forward([mel], lookup) {
      if (mel === undefined) throw new Error('internal: an input is missing')
      const weights = familyWeights(lookup, { prefix: 'model.encoder.', others: ['encoder.', ''], probe: 'conv1.weight' })
      const at = (name: string): string => `model.encoder.${name}`
      const first = gelu(
        conv(mel, weights.tensor(at('conv1.weight'), [width, bins, 3]), weights.tensor(at('conv1.bias'), [width]), { pads: [1, 1] }),
      )
      const halved = gelu(
        conv(first, weights.tensor(at('conv2.weight'), [width, width, 3]), weights.tensor(at('conv2.bias'), [width]), {
          pads: [1, 1],
          strides: [2],
        }),
      )
      // A shorter window has the first positions.
      const places = slice(weights.tensor(at('embed_positions.weight'), [positions, width]), [{ axis: 0, end: frames / 2 }])
      let x = add(transpose(halved, [0, 2, 1]), places)
      for (let index = 0; index < (taken === 'last' ? layers : taken); index++) {
        const name = at(`layers.${index}`)
        x = transformerLayer(
          x,
          weights,
          {
            norm1: `${name}.self_attn_layer_norm`,
            query: `${name}.self_attn.q_proj`,
            key: `${name}.self_attn.k_proj`,
            value: `${name}.self_attn.v_proj`,
            output: `${name}.self_attn.out_proj`,
            norm2: `${name}.final_layer_norm`,
            up: `${name}.fc1`,
            down: `${name}.fc2`,
          },
          {
            heads: config.encoder_attention_heads,
            inner: config.encoder_ffn_dim,
            epsilon,
            activation: config.activation_function,
            biases: { key: false },
          },
        )
      }
      return taken === 'last' ? weights.layerNorm(x, at('layer_norm'), { epsilon }) : x
    },
  }
}

/**
 * Whisper: one token for 20 ms. A sound is padded to 30 s, as the weights were trained, and the tokens behind its end are dropped; a longer one becomes several
 * windows. With `windowSeconds` below 30 windows are shorter and cheaper, and the features differ from the published model's.
 *
 * Takes a Hugging Face folder (`model.safetensors`), Optimum's `onnx/encoder_model.onnx`, or the file itself.
 *
 * @throws {ModalignError} `ENCODER_CONFIG`, `ENCODER_LAYER`, `ENCODER_PREPROCESSING`, `ENCODER_OPTIONS`, `ENCODER_MISSING`, and as {@link onnxAudio}
 *
 * @example
 * const encoder = await whisper('models/whisper-base')
 * encoder.grid({ seconds: 2 }).segments[0].frames // 100
 */
export const whisper = defineSoundFamily<WhisperConfig>({
  name: 'whisper',
  label: 'Whisper',
  preprocessing: {
    kind: 'log-mel',
    mel: whisperLogMel(),
    axes: ['band', 'frame'],
    windows: { kind: 'consecutive', samples: windowSamples, step: windowSamples, fill: 'zeros', most: 1_000 },
  },
  dropPadding: true,
  onnx: {
    files: [
      'onnx/encoder_model.onnx',
      'encoder_model.onnx',
      'onnx/encoder_model_quantized.onnx',
      'onnx/encoder_model_fp16.onnx',
      'onnx/encoder_model_q4.onnx',
    ],
    output: namedTensor('last_hidden_state'),
  },
  folder: {
    config: whisperConfig,
    tower,
    tokens: (config, preprocessing, dropPadding) => {
      const frames = framesOf(preprocessing, config)
      const hop = preprocessing.kind === 'log-mel' ? preprocessing.mel.hop : 1
      return fixedSteps(frames / 2, frames * hop, { dropPadding })
    },
  },
})
