/** Logarithms of mel bands over time: what most sound encoders look at. One description covers Whisper's, Kaldi's and CLAP's kinds. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { powerSpectrum } from './fft.ts'
import { melBankSchema, melFilters } from './mel-filters.ts'

/** What happens to the samples, in this order. Plain data: it is part of an encoder's fingerprint. */
export const logMelSchema = z
  .strictObject({
    sampleRateHz: z.int().min(1).max(4_000_000),
    /** The whole sound's mean is taken from it first (ImageBind). */
    subtractMean: z.boolean().default(false),
    /** Samples are multiplied by this: 32768 where an encoder was trained on 16-bit integers (BEATs). */
    gain: z.number().positive().default(1),
    /** A frame's samples; `hop` samples on, the next begins. */
    frameLength: z.int().min(2).max(65_536),
    hop: z.int().min(1).max(65_536),
    /** Length of the Fourier transform; zeros fill what the frame does not. */
    fftLength: z.int().min(2).max(65_536),
    /** `centred`: frame `i` has sample `i * hop` in its middle, the sound mirrored at both ends. `whole`: frames lie within the sound. */
    frames: z.enum(['centred', 'whole']),
    /** Each frame's mean is taken from it. */
    removeOffset: z.boolean().default(false),
    /** Within each frame: x[i] - preemphasis * x[i - 1], the first sample standing before itself. */
    preemphasis: z.number().min(0).max(1).default(0),
    /** `hann-periodic` ends one sample before its zero; `povey` is hann^0.85. */
    window: z.enum(['hann', 'hann-periodic', 'povey', 'hamming', 'rectangular']),
    mel: melBankSchema,
    /** Powers below it count as it. */
    floor: z.number().positive(),
    /** `decibel` is 10 log10. */
    log: z.enum(['ln', 'log10', 'decibel']),
    /** The last frame is left out (Whisper). */
    dropLast: z.boolean().default(false),
    /** Nothing lies further below the highest value (Whisper: 8). */
    range: z.number().positive().optional(),
    /** So many frames: rows of zeros fill up, what is too much is cut. */
    length: z.int().min(1).max(1_000_000).optional(),
    /** Then (value - mean) / std. */
    normalize: z.strictObject({ mean: z.number(), std: z.number().positive() }).readonly().optional(),
  })
  .readonly()
export type LogMel = z.infer<typeof logMelSchema>

/** `values[frame * bins + band]`. */
export interface MelFrames {
  readonly frames: number
  readonly bins: number
  readonly values: Float32Array
}

/** How many frames `samples` samples give. */
export function melFrameCount(samples: number, { frames, frameLength, hop, dropLast, length }: LogMel): number {
  if (length !== undefined) return length
  const whole =
    frames === 'centred' ? 1 + Math.floor(samples / hop) : samples < frameLength ? 0 : 1 + Math.floor((samples - frameLength) / hop)
  return Math.max(0, whole - (dropLast ? 1 : 0))
}

/** Samples that {@link logMel} needs: one frame's, and, where frames are centred, enough to mirror. */
export function leastMelSamples({ frames, frameLength, hop, dropLast, length }: LogMel): number {
  const isOpen = length === undefined
  if (frames === 'centred') return Math.max(Math.floor(frameLength / 2) + 1, isOpen && dropLast ? hop : 0)
  return isOpen ? frameLength + (dropLast ? hop : 0) : 1
}

/**
 * Computed in double precision and rounded once at the end.
 * Sources: `WhisperFeatureExtractor`, `ASTFeatureExtractor`, `ClapFeatureExtractor` of Transformers; `torchaudio.compliance.kaldi.fbank`.
 *
 * @throws {ModalignError} `AUDIO_TOO_SHORT` (no frame; or, where frames are centred, too little to mirror), `AUDIO_OPTIONS`
 *
 * @example
 * const { frames, bins } = logMel(samples, whisperLogMel()) // 30 s at 16 kHz: 3000 frames of 80 bands
 */
export function logMel(samples: Float32Array, spec: LogMel): MelFrames {
  const { frameLength, hop, fftLength, mel, floor, length, normalize } = spec
  if (fftLength < frameLength)
    throw new ModalignError({
      code: 'AUDIO_OPTIONS',
      field: '/fftLength',
      got: `${fftLength}`,
      expected: `at least frameLength, ${frameLength}`,
    })
  const count = melFrameCount(samples.length, { ...spec, length: undefined })
  const margin = spec.frames === 'centred' ? Math.floor(frameLength / 2) : 0
  const least = leastMelSamples(spec)
  if (samples.length < least) {
    throw new ModalignError({
      code: 'AUDIO_TOO_SHORT',
      got: `${samples.length} samples at ${spec.sampleRateHz} Hz`,
      expected: `at least ${least}`,
    })
  }
  const spectrum = powerSpectrum(fftLength)
  const filters = melFilters(mel, fftLength, spec.sampleRateHz)
  const window = analysisWindow(spec.window, frameLength)
  const padded = prepared(samples, margin, spec)
  const frame = new Float64Array(fftLength)
  const power = new Float64Array(spectrum.bins)
  const kept = length === undefined ? count : Math.min(count, length)
  const logs = new Float64Array((length ?? count) * mel.bins)
  const scale = spec.log === 'ln' ? 1 : spec.log === 'log10' ? Math.LOG10E : 10 * Math.LOG10E
  for (let index = 0; index < kept; index++) {
    cutFrame(padded, index * hop, frame, window, spec)
    spectrum.of(frame, power)
    for (let band = 0; band < mel.bins; band++) {
      const filter = filters[band]
      let sum = 0
      if (filter !== undefined)
        for (let i = 0; i < filter.weights.length; i++) sum += (filter.weights[i] ?? 0) * (power[filter.first + i] ?? 0)
      logs[index * mel.bins + band] = Math.log(Math.max(floor, sum)) * scale
    }
  }
  if (spec.range !== undefined) clampRange(logs.subarray(0, kept * mel.bins), spec.range)
  const values = new Float32Array(logs.length)
  const { mean, std } = normalize ?? { mean: 0, std: 1 }
  for (let at = 0; at < logs.length; at++) values[at] = ((logs[at] ?? 0) - mean) / std
  return { frames: length ?? count, bins: mel.bins, values }
}

/** The samples, scaled, with mirrored margins. */
function prepared(samples: Float32Array, margin: number, { subtractMean, gain }: LogMel): Float64Array {
  const mean = subtractMean ? samples.reduce((sum, value) => sum + value, 0) / samples.length : 0
  const result = new Float64Array(samples.length + 2 * margin)
  for (let at = 0; at < samples.length; at++) result[margin + at] = ((samples[at] ?? 0) - mean) * gain
  for (let at = 1; at <= margin; at++) {
    result[margin - at] = result[margin + at] ?? 0
    result[margin + samples.length - 1 + at] = result[margin + samples.length - 1 - at] ?? 0
  }
  return result
}

function cutFrame(
  samples: Float64Array,
  start: number,
  frame: Float64Array,
  window: Float64Array,
  { removeOffset, preemphasis }: LogMel,
): void {
  const length = window.length
  let mean = 0
  if (removeOffset) {
    for (let at = 0; at < length; at++) mean += samples[start + at] ?? 0
    mean /= length
  }
  for (let at = length - 1; at >= 0; at--) {
    const value = (samples[start + at] ?? 0) - mean
    const before = (samples[start + Math.max(0, at - 1)] ?? 0) - mean
    frame[at] = (value - preemphasis * before) * (window[at] ?? 0)
  }
}

/** The factors of a frame's samples. */
export function analysisWindow(kind: LogMel['window'], length: number): Float64Array {
  const turns = kind === 'hann-periodic' ? length : length - 1
  return Float64Array.from({ length }, (_, at) => {
    const cosine = Math.cos((2 * Math.PI * at) / turns)
    if (kind === 'rectangular') return 1
    if (kind === 'hamming') return 0.54 - 0.46 * cosine
    const hann = 0.5 - 0.5 * cosine
    return kind === 'povey' ? hann ** 0.85 : hann
  })
}

function clampRange(values: Float64Array, range: number): void {
  const lowest = values.reduce((highest, value) => Math.max(highest, value), Number.NEGATIVE_INFINITY) - range
  for (let at = 0; at < values.length; at++) values[at] = Math.max(lowest, values[at] ?? 0)
}

/** Whisper's: 25 ms frames every 10 ms, Slaney's bands up to 8 kHz. Radford et al. 2022, section 2.2. Large v3 has 128 bands. */
export function whisperLogMel({ bins = 80 }: { readonly bins?: number } = {}): LogMel {
  return {
    sampleRateHz: 16_000,
    subtractMean: false,
    gain: 1,
    frameLength: 400,
    hop: 160,
    fftLength: 400,
    frames: 'centred',
    removeOffset: false,
    preemphasis: 0,
    window: 'hann-periodic',
    mel: { bins, lowHz: 0, highHz: 8_000, scale: 'slaney', norm: 'slaney', straightOver: 'hertz' },
    floor: 1e-10,
    log: 'log10',
    dropLast: true,
    range: 8,
    normalize: { mean: -4, std: 4 },
  }
}

export interface KaldiFbankOptions {
  /** Default 128. */
  readonly bins?: number | undefined
  /** Default `povey`. */
  readonly window?: 'povey' | 'hann' | undefined
  readonly gain?: number | undefined
  readonly subtractMean?: boolean | undefined
  readonly length?: number | undefined
  readonly normalize?: { readonly mean: number; readonly std: number } | undefined
}

/** Kaldi's filter banks at 16 kHz as `torchaudio.compliance.kaldi.fbank` gives them without dither: 25 ms every 10 ms, 20 Hz to 8 kHz. */
export function kaldiFbank({
  bins = 128,
  window = 'povey',
  gain = 1,
  subtractMean = false,
  length,
  normalize,
}: KaldiFbankOptions = {}): LogMel {
  return {
    sampleRateHz: 16_000,
    subtractMean,
    gain,
    frameLength: 400,
    hop: 160,
    fftLength: 512,
    frames: 'whole',
    removeOffset: true,
    preemphasis: 0.97,
    window,
    mel: { bins, lowHz: 20, highHz: 8_000, scale: 'kaldi', norm: 'none', straightOver: 'mel' },
    floor: 2 ** -23,
    log: 'ln',
    dropLast: false,
    ...(length !== undefined && { length }),
    ...(normalize !== undefined && { normalize }),
  }
}

/** CLAP's: 1024 samples every 480 at 48 kHz, in decibels. `fusion` models look through HTK's bands, `rand_trunc` models through Slaney's. */
export function clapLogMel(truncation: 'rand_trunc' | 'fusion', { bins = 64, lowHz = 50, highHz = 14_000 } = {}): LogMel {
  const fusion = truncation === 'fusion'
  return {
    sampleRateHz: 48_000,
    subtractMean: false,
    gain: 1,
    frameLength: 1024,
    hop: 480,
    fftLength: 1024,
    frames: 'centred',
    removeOffset: false,
    preemphasis: 0,
    window: 'hann-periodic',
    mel: { bins, lowHz, highHz, scale: fusion ? 'htk' : 'slaney', norm: fusion ? 'none' : 'slaney', straightOver: 'hertz' },
    floor: 1e-10,
    log: 'decibel',
    dropLast: false,
  }
}
