/** ImageBind's audio trunk (Girdhar et al. 2023), which Video-LLaMA hears with, from an ONNX export. */
import { kaldiFbank } from '../src/media/log-mel.ts'
import { defineSoundFamily, firstOutput } from './blocks/sound-family.ts'

/** Samples of a clip of 2 s at 16 kHz. */
const samples = 32_000

/**
 * ImageBind: three clips of 2 s, spread evenly over the sound, one token each: the embedding that stands beside those of pictures. Video-LLaMA takes eight; give
 * `preprocessing: { ...imagebindPreprocessing, windows: { kind: 'spread', samples: 32_000, count: 8 } }`.
 *
 * Takes an ONNX file of the trunk with mel pictures `[clips, 1, 128, 204]` as its input. `output` may name the tokens before its head.
 *
 * @throws {ModalignError} as {@link onnxAudio}
 *
 * @example
 * const encoder = await imagebindAudio('models/imagebind-audio.onnx')
 * encoder.grid({ seconds: 10 }).segments[0] // { frames: 3, rows: 1, columns: 1, time: [0, 4, 8] }
 */
export const imagebindAudio = defineSoundFamily<never>({
  name: 'imagebindAudio',
  label: 'ImageBind',
  preprocessing: {
    kind: 'log-mel',
    mel: kaldiFbank({ window: 'hann', subtractMean: true, length: 204, normalize: { mean: -4.268, std: 9.138 } }),
    axes: ['channel', 'band', 'frame'],
    windows: { kind: 'spread', samples, count: 3 },
  },
  dropPadding: false,
  onnx: { files: ['onnx/model.onnx', 'model.onnx', 'onnx/audio_model.onnx', 'audio_model.onnx'], output: firstOutput },
})
