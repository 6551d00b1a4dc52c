/** CLAP's audio tower (Wu et al. 2023: HTS-AT over mel pictures of 10 s), from an ONNX export. */
import { ModalignError } from '../src/errors.ts'
import { clapLogMel } from '../src/media/log-mel.ts'
import type { ModelProto } from '../src/onnx/onnx_pb.ts'
import { defineSoundFamily } from './blocks/sound-family.ts'

/** Samples of 10 s at 48 kHz. */
const samples = 480_000

/**
 * CLAP: for each window of 10 s a map of 32 times and 2 frequencies, taken before the pooling; with `output: 'audio_embeds'` the one vector that is compared with
 * texts. Shorter sounds are repeated as often as they fit, as the published settings have it, so no token is dropped.
 *
 * Longer sounds: `rand_trunc` models (`clap-htsat-unfused`, the default where no `preprocessor_config.json` says otherwise) hear one window after another, where
 * Transformers draws one at random; `fusion` models hear the whole sound at once, as four pictures,
 * and are told that it is longer; where no sound of a batch is longer, Transformers says so of one drawn at random, which is not followed.
 *
 * Takes a folder with `onnx/audio_model.onnx`, or the file itself.
 *
 * @throws {ModalignError} `ENCODER_CONTRACT` (no single global pool), `ENCODER_OPTIONS`, `ENCODER_MISSING`, and as {@link onnxAudio}
 *
 * @example
 * const encoder = await clap('models/clap-htsat-unfused')
 * encoder.grid({ seconds: 4 }).segments[0] // { frames: 32, rows: 1, columns: 2, time: [0, 0.3125, ...] }
 */
export const clap = defineSoundFamily<never>({
  name: 'clap',
  label: 'CLAP',
  preprocessing: {
    kind: 'log-mel',
    mel: clapLogMel('rand_trunc'),
    axes: ['channel', 'frame', 'band'],
    windows: { kind: 'consecutive', samples, step: samples, fill: 'repeat-zeros', most: 1_000 },
  },
  dropPadding: false,
  onnx: {
    files: [
      'onnx/audio_model.onnx',
      'audio_model.onnx',
      'onnx/audio_model_quantized.onnx',
      'onnx/audio_model_fp16.onnx',
      'onnx/audio_model_q4.onnx',
    ],
    output: beforeGlobalPool,
    layout: 'channels-first',
    columns: 2,
    order: 'frequency',
  },
})

/** What the one global pool pools. */
function beforeGlobalPool({ graph }: ModelProto): string {
  const pools = (graph?.node ?? []).filter(({ opType }) => opType === 'GlobalAveragePool')
  const [pool] = pools
  const found = pool?.input[0]
  if (pools.length === 1 && found !== undefined) return found
  throw new ModalignError({
    code: 'ENCODER_CONTRACT',
    got: `${pools.length} global pools`,
    expected: 'one, as CLAP has',
    hint: "take the pooled vector: { output: 'audio_embeds' }",
  })
}
