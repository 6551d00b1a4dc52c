/** The sound encoders that come with the package, made from plain data. They remember all by themselves how to be made again. */
import { z } from 'zod'
import { onnxAudio, type SoundFamilyOptions, soundFamilies, speechEmbedding } from '../../encoders/index.ts'
import { audioPreprocessingSchema } from '../media/waveform-preprocess.ts'
import type { Encoder } from '../model/contracts.ts'
import { withoutUndefined } from '../runtime/session.ts'
import { checked } from './encoder-options.ts'
import { modelNameSchema, pathSchema } from './path-schema.ts'

const shared = {
  model: modelNameSchema,
  batch: z.int().min(1).max(4096).optional(),
  label: z.string().min(1).optional(),
}
const preprocessing = z.union([pathSchema, audioPreprocessingSchema])

const onnxAudioSettings = z.strictObject({
  ...shared,
  output: z.string().min(1),
  preprocessing,
  layout: z.enum(['tokens', 'channels-first', 'frequency-map', 'pooled']).optional(),
  prefixTokens: z.int().min(0).optional(),
  columns: z.int().min(1).optional(),
  order: z.enum(['time', 'frequency']).optional(),
  convolution: z.strictObject({ strideSamples: z.int().min(1), receptiveSamples: z.int().min(1) }).optional(),
  dropPadding: z.boolean().optional(),
})
const speechEmbeddingSettings = z.strictObject({ ...shared, model: pathSchema })
const soundFamilySettings = z.strictObject({
  ...shared,
  layer: z.union([z.literal('last'), z.int()]).optional(),
  output: z.string().min(1).optional(),
  preprocessing: preprocessing.optional(),
  windowSeconds: z.number().positive().optional(),
  maxWindows: z.int().min(1).optional(),
  dropPadding: z.boolean().optional(),
})

export const soundSettings = {
  onnxAudio: onnxAudioSettings,
  speechEmbedding: speechEmbeddingSettings,
  whisper: soundFamilySettings,
  wav2vec2: soundFamilySettings,
  hubert: soundFamilySettings,
  wavlm: soundFamilySettings,
  ast: soundFamilySettings,
  clap: soundFamilySettings,
  imagebindAudio: soundFamilySettings,
  beats: soundFamilySettings,
} as const

type Place = Pick<SoundFamilyOptions, 'device' | 'threads' | 'download' | 'onDownload'>
type Make = (options: unknown) => Promise<Encoder<'audio'>>

export function soundCatalogue(place: Place): Readonly<Record<keyof typeof soundSettings, Make>> {
  const family =
    (name: keyof typeof soundFamilies): Make =>
    async (options) =>
      soundFamilies[name]({ ...withoutUndefined(checked(name, soundFamilySettings, options)), ...place })
  return {
    onnxAudio: async (options) => onnxAudio({ ...withoutUndefined(checked('onnxAudio', onnxAudioSettings, options)), ...place }),
    speechEmbedding: async (options) =>
      speechEmbedding({ ...withoutUndefined(checked('speechEmbedding', speechEmbeddingSettings, options)), ...place }),
    whisper: family('whisper'),
    wav2vec2: family('wav2vec2'),
    hubert: family('hubert'),
    wavlm: family('wavlm'),
    ast: family('ast'),
    clap: family('clap'),
    imagebindAudio: family('imagebindAudio'),
    beats: family('beats'),
  }
}
