/** From samples to the tensor that a sound encoder was trained on: Hugging Face's feature extractors, value for value. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { DecodedAudio } from '../model/contracts.ts'
import { float32Tensor, type TensorValue } from '../tensors.ts'
import { type LogMel, leastMelSamples, logMel, logMelSchema } from './log-mel.ts'
import { fusedMels } from './mel-fusion.ts'
import { resample } from './resample.ts'
import { type SoundWindow, type SoundWindows, soundWindows, soundWindowsSchema, windowSamples } from './waveform-windows.ts'

/**
 * What happens to a sound before an encoder hears it. Plain data: it is part of the encoder's fingerprint.
 * The sound is resampled, cut into windows, and each window becomes samples or a log-mel picture.
 */
export const audioPreprocessingSchema = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('waveform'),
    sampleRateHz: z.int().min(1).max(4_000_000),
    /** Each window to mean 0 and variance 1. */
    normalize: z.boolean(),
    windows: soundWindowsSchema.optional(),
  }),
  z.strictObject({
    kind: z.literal('log-mel'),
    mel: logMelSchema,
    /** The tensor's axes behind the windows; `channel` has size 1. */
    axes: z.tuple([z.enum(['channel', 'band', 'frame'])], z.enum(['band', 'frame'])).readonly(),
    windows: soundWindowsSchema.optional(),
  }),
  /** CLAP's four pictures of one sound `[4, frame, band]`: a shrunken whole and three pieces. */
  z.strictObject({
    kind: z.literal('fused-mel'),
    mel: logMelSchema,
    /** Samples that one picture shows; shorter sounds are filled up to it. */
    samples: z
      .int()
      .min(1)
      .max(2 ** 30),
    fill: z.enum(['zeros', 'repeat', 'repeat-zeros']),
  }),
])
export type AudioPreprocessing = Readonly<z.infer<typeof audioPreprocessingSchema>>

/** The rate that an encoder was trained at. */
export function sampleRateOf(spec: AudioPreprocessing): number {
  return spec.kind === 'waveform' ? spec.sampleRateHz : spec.mel.sampleRateHz
}

/** How the windows of a sound are chosen; `undefined` where it stays whole. */
export function windowsOf(spec: AudioPreprocessing): SoundWindows | undefined {
  return spec.kind === 'fused-mel' ? undefined : spec.windows
}

export interface PreprocessedAudio {
  /** One tensor `[1, ...]` for each window. */
  readonly values: readonly TensorValue[]
  /** What each window shows, in samples at the encoder's rate. */
  readonly windows: readonly SoundWindow[]
  /** CLAP: whether the sound was longer than one picture. */
  readonly longer: boolean
}

/**
 * @throws {ModalignError} `AUDIO_EMPTY`, `AUDIO_TOO_SHORT`, `AUDIO_TOO_LONG`, `AUDIO_NOT_FINITE`, `AUDIO_SAMPLE_RATE`
 *
 * @example
 * const spec = parseAudioPreprocessorConfig(JSON.parse(await readFile('whisper-base/preprocessor_config.json', 'utf8')))
 * preprocessAudio({ sampleRateHz: 44_100, samples }, spec).values[0].dims // [1, 80, 3000]
 */
export function preprocessAudio(audio: DecodedAudio, spec: AudioPreprocessing): PreprocessedAudio {
  const bad = audio.samples.findIndex((value) => !Number.isFinite(value))
  if (bad >= 0)
    throw new ModalignError({ code: 'AUDIO_NOT_FINITE', got: `${audio.samples[bad]} at sample ${bad}`, expected: 'finite samples' })
  const sound = resample(audio.samples, audio.sampleRateHz, sampleRateOf(spec))
  const windows = soundWindows(sound.length, windowsOf(spec))
  if (spec.kind === 'fused-mel') {
    const { value, longer } = fusedMels(sound, spec)
    return { values: [value], windows, longer }
  }
  const least = spec.kind === 'log-mel' ? leastMelSamples(spec.mel) : 1
  // A rest behind whole windows that has not even one frame is left out; a sound of nothing else is refused.
  const shown = windows
    .map((window) => ({ window, samples: windowSamples(sound, window, spec.windows) }))
    .filter(({ samples }, index) => index === 0 || samples.length >= least)
  const values = shown.map(({ samples }) =>
    spec.kind === 'waveform' ? waveform(samples, spec.normalize) : melTensor(samples, spec.mel, spec.axes),
  )
  return { values, windows: shown.map(({ window }) => window), longer: false }
}

/** float32 `[1, samples]`; normalised as `Wav2Vec2FeatureExtractor` does: (x - mean) / sqrt(variance + 1e-7). */
export function waveform(samples: Float32Array, normalize: boolean): TensorValue {
  if (!normalize) return float32Tensor(samples.slice(), [1, samples.length])
  const mean = samples.reduce((sum, value) => sum + value, 0) / samples.length
  const variance = samples.reduce((sum, value) => sum + (value - mean) ** 2, 0) / samples.length
  const inverse = 1 / Math.sqrt(variance + 1e-7)
  return float32Tensor(
    samples.map((value) => (value - mean) * inverse),
    [1, samples.length],
  )
}

function melTensor(samples: Float32Array, spec: LogMel, axes: readonly ('channel' | 'band' | 'frame')[]): TensorValue {
  const { frames, bins, values } = logMel(samples, spec)
  const sizes = { channel: 1, band: bins, frame: frames }
  const dims = [1, ...axes.map((axis) => sizes[axis])]
  if (axes.indexOf('frame') < axes.indexOf('band')) return float32Tensor(values, dims)
  const turned = new Float32Array(values.length)
  for (let frame = 0; frame < frames; frame++)
    for (let band = 0; band < bins; band++) turned[band * frames + frame] = values[frame * bins + band] ?? 0
  return float32Tensor(turned, dims)
}
