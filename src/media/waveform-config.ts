/** Reads the sound settings of a Hugging Face `preprocessor_config.json`. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { clapLogMel, kaldiFbank, whisperLogMel } from './log-mel.ts'
import type { AudioPreprocessing } from './waveform-preprocess.ts'

const rate = z.int().min(1).max(4_000_000)
const common = {
  padding_value: z.literal(0).default(0),
  /** Noise that is added at random: such features could not be reproduced. */
  dither: z.literal(0).default(0),
}

const whisperSchema = z.object({
  ...common,
  feature_size: z.int().min(1).max(1024).default(80),
  sampling_rate: z.literal(16_000).default(16_000),
  hop_length: z.int().min(1).max(400).default(160),
  chunk_length: z.number().positive().max(600).default(30),
  n_fft: z.int().min(2).max(4096).default(400),
  do_normalize: z.literal(false).nullish(),
})
const astSchema = z.object({
  ...common,
  sampling_rate: z.literal(16_000).default(16_000),
  num_mel_bins: z.int().min(1).max(1024).default(128),
  max_length: z.int().min(1).max(100_000).default(1024),
  do_normalize: z.boolean().default(true),
  mean: z.number().default(-4.2677393),
  std: z.number().positive().default(4.5689974),
})
const waveformSchema = z.object({
  ...common,
  feature_size: z.literal(1).default(1),
  sampling_rate: rate.default(16_000),
  do_normalize: z.boolean().default(true),
})
const clapSchema = z.object({
  ...common,
  feature_size: z.literal(64).default(64),
  sampling_rate: rate.default(48_000),
  hop_length: z.int().min(1).max(65_536).default(480),
  fft_window_size: z.int().min(2).max(65_536).default(1024),
  max_length_s: z.number().positive().max(600).default(10),
  frequency_min: z.number().min(0).default(0),
  frequency_max: z.number().positive().default(14_000),
  truncation: z.enum(['fusion', 'rand_trunc']).default('fusion'),
  padding: z.enum(['repeatpad', 'repeat', 'pad']).default('repeatpad'),
})

function whisper(json: z.infer<typeof whisperSchema>): AudioPreprocessing {
  const samples = Math.round(json.chunk_length * json.sampling_rate)
  return {
    kind: 'log-mel',
    mel: { ...whisperLogMel({ bins: json.feature_size }), frameLength: json.n_fft, fftLength: json.n_fft, hop: json.hop_length },
    axes: ['band', 'frame'],
    windows: { kind: 'consecutive', samples, step: samples, fill: 'zeros', most: 1_000 },
  }
}

function ast({ num_mel_bins, max_length, do_normalize, mean, std }: z.infer<typeof astSchema>): AudioPreprocessing {
  const normalize = do_normalize ? { mean, std: 2 * std } : undefined
  const mel = kaldiFbank({ bins: num_mel_bins, window: 'hann', length: max_length, normalize })
  // The last frame of a window looks at samples that the next window begins with.
  const windows = {
    kind: 'consecutive',
    samples: (max_length - 1) * mel.hop + mel.frameLength,
    step: max_length * mel.hop,
    fill: 'none',
    most: 1_000,
  } as const
  return { kind: 'log-mel', mel, axes: ['frame', 'band'], windows }
}

const fills = { repeatpad: 'repeat-zeros', repeat: 'repeat', pad: 'zeros' } as const

function clap(json: z.infer<typeof clapSchema>): AudioPreprocessing {
  const samples = Math.round(json.max_length_s * json.sampling_rate)
  const mel = {
    ...clapLogMel(json.truncation, { bins: json.feature_size, lowHz: json.frequency_min, highHz: json.frequency_max }),
    sampleRateHz: json.sampling_rate,
    frameLength: json.fft_window_size,
    fftLength: json.fft_window_size,
    hop: json.hop_length,
  }
  const fill = fills[json.padding]
  if (json.truncation === 'fusion') return { kind: 'fused-mel', mel, samples, fill }
  return {
    kind: 'log-mel',
    mel,
    axes: ['channel', 'frame', 'band'],
    windows: { kind: 'consecutive', samples, step: samples, fill, most: 1_000 },
  }
}

/** By `feature_extractor_type`. */
const extractors: ReadonlyMap<string, (json: unknown) => AudioPreprocessing> = new Map([
  ['WhisperFeatureExtractor', (json: unknown) => whisper(whisperSchema.parse(json))],
  ['ASTFeatureExtractor', (json: unknown) => ast(astSchema.parse(json))],
  ['ClapFeatureExtractor', (json: unknown) => clap(clapSchema.parse(json))],
  [
    'Wav2Vec2FeatureExtractor',
    (json: unknown) => {
      const { sampling_rate, do_normalize } = waveformSchema.parse(json)
      return { kind: 'waveform', sampleRateHz: sampling_rate, normalize: do_normalize }
    },
  ],
])

/**
 * What the file leaves out is the default of the feature extractor that it names. Settings that would change the features in ways we do not follow
 * are refused. CLAP's `rand_trunc` draws a place in longer sounds at random; ours takes one window after another instead.
 *
 * @throws {ModalignError} `PREPROCESSING_INVALID`, `PREPROCESSING_UNSUPPORTED` (another feature extractor)
 *
 * @example
 * parseAudioPreprocessorConfig({ feature_extractor_type: 'Wav2Vec2FeatureExtractor', sampling_rate: 16_000, do_normalize: true })
 * // { kind: 'waveform', sampleRateHz: 16000, normalize: true }
 */
export function parseAudioPreprocessorConfig(json: unknown, file?: string): AudioPreprocessing {
  const named = z.object({ feature_extractor_type: z.string() })
  // Newer processors nest the settings; older files have them at the top.
  const nested = z.object({ feature_extractor: named.loose() }).safeParse(json)
  const settings = nested.success ? nested.data.feature_extractor : json
  const type = named.safeParse(settings)
  const known = [...extractors.keys()].join(', ')
  if (!type.success)
    throw new ModalignError({ code: 'PREPROCESSING_INVALID', file, field: '/feature_extractor_type', got: 'nothing', expected: known })
  const extractor = extractors.get(type.data.feature_extractor_type)
  if (extractor === undefined)
    throw new ModalignError({
      code: 'PREPROCESSING_UNSUPPORTED',
      file,
      field: '/feature_extractor_type',
      got: type.data.feature_extractor_type,
      expected: known,
      hint: 'give the encoder an AudioPreprocessing object instead',
    })
  try {
    return extractor(settings)
  } catch (error) {
    if (!(error instanceof z.ZodError)) throw error
    const issue = error.issues[0]
    throw new ModalignError({
      code: 'PREPROCESSING_INVALID',
      file,
      field: `/${(issue?.path ?? []).join('/')}`,
      got: issue?.message,
      expected: `settings of ${type.data.feature_extractor_type} that give the same features every time`,
    })
  }
}
