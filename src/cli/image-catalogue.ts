/** The families of image encoders, and what combines them, made from plain data. */
import { z } from 'zod'
import {
  concat,
  type ImageEncoder,
  imageFamilies,
  type OpenImageFamily,
  onnxImage,
  ppOcr,
  ppOcrSettingsSchema,
  siglip2,
  tiled,
} from '../../encoders/index.ts'
import { ModalignError } from '../errors.ts'
import { imagePreprocessingSchema } from '../media/preprocess.ts'
import { tilingSchema } from '../media/tiling.ts'
import type { Encoder } from '../model/contracts.ts'
import { withoutUndefined } from '../runtime/session.ts'
import type { DownloadOptions } from '../weights/hub/resolve-model.ts'
import { checked } from './encoder-options.ts'
import { modelNameSchema, pathSchema } from './path-schema.ts'

interface EncoderPlace extends Pick<DownloadOptions, 'download' | 'onDownload'> {
  readonly device?: 'auto' | 'cpu' | 'cuda' | 'directml' | 'coreml' | 'webgpu' | 'wasm'
  readonly threads?: number
  readonly sessions?: number
}

export const onnxImageSettings = z.strictObject({
  model: modelNameSchema,
  output: z.string().min(1),
  preprocessing: z.union([pathSchema, imagePreprocessingSchema]),
  layout: z.enum(['nchw-map', 'tokens']).optional(),
  prefixTokens: z.int().min(0).optional(),
  grid: z.strictObject({ rows: z.int().min(1), columns: z.int().min(1) }).optional(),
  batch: z.int().min(1).max(4096).optional(),
  label: z.string().min(1).optional(),
})

/** Of every family of {@link imageFamilies}. */
const familySettings = z.strictObject({
  model: modelNameSchema,
  layer: z.union([z.literal('last'), z.int()]).optional(),
  preprocessing: z.union([pathSchema, imagePreprocessingSchema]).optional(),
  weights: z.enum(['safetensors', 'fp32', 'fp16', 'int8', 'uint8', 'q8', 'q4', 'q4f16', 'bnb4']).optional(),
  prefixTokens: z.int().min(0).optional(),
  batch: z.int().min(1).max(4096).optional(),
  label: z.string().min(1).optional(),
})
const ppOcrSettings = ppOcrSettingsSchema.extend({ model: modelNameSchema })
const siglip2Settings = familySettings.omit({ weights: true, prefixTokens: true })

/** An encoder within another, as recipes name them. */
export const part = z.strictObject({
  family: z.string().min(1),
  model: modelNameSchema.optional(),
  options: z.record(z.string(), z.json()).default({}),
})

export const imageSettings = {
  clip: familySettings,
  openclip: familySettings,
  siglip: familySettings,
  siglip2: siglip2Settings,
  vit: familySettings,
  dinov2: familySettings,
  dinov3: familySettings,
  convnext: familySettings,
  eva: familySettings,
  ppOcr: ppOcrSettings,
  concat: z.strictObject({ by: z.enum(['channel', 'token']).optional(), encoders: z.array(part).min(2).max(16) }),
  tiled: z.strictObject({ encoder: part, tiling: tilingSchema, maxTiles: z.int().min(1).optional() }),
} as const

/** Makers by family name. The encoders know their recipe, so that models with them can be saved and loaded again. */
export function imageCatalogue(place: EncoderPlace) {
  const family = (name: keyof typeof imageFamilies) => async (options: unknown) =>
    imageFamilies[name]({ ...withoutUndefined(checked(name, familySettings, options)), ...place })
  return {
    clip: family('clip'),
    openclip: family('openclip'),
    siglip: family('siglip'),
    siglip2: async (options: unknown) => siglip2({ ...withoutUndefined(checked('siglip2', siglip2Settings, options)), ...place }),
    vit: family('vit'),
    dinov2: family('dinov2'),
    dinov3: family('dinov3'),
    convnext: family('convnext'),
    eva: family('eva'),
    ppOcr: async (options: unknown) => ppOcr({ ...withoutUndefined(checked('ppOcr', ppOcrSettings, options)), ...place }),
    async concat(options: unknown): Promise<Encoder<'image'>> {
      const { by, encoders } = checked('concat', imageSettings.concat, options)
      const made: ImageEncoder[] = []
      try {
        for (const entry of encoders) made.push(await partOf(entry, place))
        return concat(made, { by })
      } catch (error) {
        await Promise.all(made.map((encoder) => encoder.dispose()))
        throw error
      }
    },
    async tiled(options: unknown): Promise<Encoder<'image'>> {
      const { encoder, ...rest } = checked('tiled', imageSettings.tiled, options)
      const inner = await partOf(encoder, place)
      try {
        return tiled(inner, rest)
      } catch (error) {
        await inner.dispose()
        throw error
      }
    },
  }
}

/** @throws ENCODER_OPTIONS for an encoder that cannot stand within another */
async function partOf({ family, model, options }: z.output<typeof part>, place: EncoderPlace): Promise<ImageEncoder> {
  const given = { ...options, ...(model !== undefined && { model }) }
  if (family === 'onnxImage') return onnxImage({ ...withoutUndefined(checked(family, onnxImageSettings, given)), ...place })
  if (family === 'siglip2') return siglip2({ ...withoutUndefined(checked(family, siglip2Settings, given)), ...place })
  const families: Readonly<Record<string, OpenImageFamily>> = imageFamilies
  const open = Object.hasOwn(families, family) ? families[family] : undefined
  if (open !== undefined) return open({ ...withoutUndefined(checked(family, familySettings, given)), ...place })
  throw new ModalignError({
    code: 'ENCODER_OPTIONS',
    field: '/family',
    got: family,
    expected: `one of ${[...Object.keys(imageFamilies), 'siglip2', 'onnxImage'].join(', ')}`,
  })
}
