/** BEATs (Chen et al. 2023), which SALMONN hears with beside Whisper, from an ONNX export. */
import { kaldiFbank } from '../src/media/log-mel.ts'
import { defineSoundFamily, firstOutput } from './blocks/sound-family.ts'

/** Samples of 10 s at 16 kHz. */
const samples = 160_000
const patch = 16
const mel = kaldiFbank({ gain: 2 ** 15, normalize: { mean: 15.41663, std: 2 * 6.55582 } })

/**
 * BEATs: patches of 16 mel frames and 16 bands, so that each 160 ms have 8 tokens, lowest frequencies first; windows of 10 s at most (`windowSeconds`).
 *
 * Takes an ONNX file of the model behind its own preprocessing, with mel frames `[windows, frames, 128]` as its input.
 *
 * @throws {ModalignError} as {@link onnxAudio}
 *
 * @example
 * const encoder = await beats('models/beats.onnx')
 * encoder.grid({ seconds: 1 }).segments[0] // { frames: 6, rows: 1, columns: 8, time: [0, 0.16, ...] }
 */
export const beats = defineSoundFamily<never>({
  name: 'beats',
  label: 'BEATs',
  preprocessing: {
    kind: 'log-mel',
    mel,
    axes: ['frame', 'band'],
    windows: { kind: 'consecutive', samples, step: samples, fill: 'none', most: 1_000 },
  },
  dropPadding: false,
  onnx: {
    files: ['onnx/model.onnx', 'model.onnx'],
    output: firstOutput,
    columns: mel.mel.bins / patch,
    convolution: { strideSamples: patch * mel.hop, receptiveSamples: (patch - 1) * mel.hop + mel.frameLength },
  },
})
