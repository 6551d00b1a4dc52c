/**
 * The encoders that come with the package, made from plain data: what a run file says and what a saved model remembers. Part of the composition root: `src/index.ts` and
 * the command line share it.
 */
import { resolve } from 'node:path'
import { z } from 'zod'
import { type encoders, imageFamilies, mobilenetV2, type OnnxImageEncoder, onnxImage } from '../../encoders/index.ts'
import { imagePreprocessingSchema } from '../media/preprocess.ts'
import type { Encoder, JsonObject } from '../model/contracts.ts'
import type { Catalogues } from '../model/saved-model.ts'
import { withoutUndefined } from '../runtime/session.ts'
import { checked } from './encoder-options.ts'
import { pathSchema } from './path-schema.ts'
import { soundCatalogue, soundSettings } from './sound-catalogue.ts'

/** Where an encoder runs: a matter of the machine, not of what it computes, so no saved model remembers it. */
export interface EncoderPlace {
  readonly device?: 'auto' | 'cpu' | 'cuda' | 'directml' | 'coreml' | 'webgpu' | 'wasm'
  readonly threads?: number
}

export { pathSchema } from './path-schema.ts'

const onnxImageSettings = z.strictObject({
  model: pathSchema,
  output: z.string().min(1),
  preprocessing: z.union([pathSchema, imagePreprocessingSchema]),
  layout: z.enum(['nchw-map', 'tokens']).optional(),
  prefixTokens: z.int().min(0).optional(),
  grid: z.strictObject({ rows: z.int().min(1), columns: z.int().min(1) }).optional(),
  batch: z.int().min(1).max(4096).optional(),
  label: z.string().min(1).optional(),
})
const mobilenetV2Settings = onnxImageSettings.pick({ model: true, output: true, preprocessing: true, batch: true, label: true }).partial()

/** Of every family of {@link imageFamilies}. */
const imageFamilySettings = z.strictObject({
  model: pathSchema,
  layer: z.union([z.literal('last'), z.int()]).optional(),
  preprocessing: z.union([pathSchema, imagePreprocessingSchema]).optional(),
  weights: z.enum(['safetensors', 'fp32', 'fp16', 'int8', 'uint8', 'q8', 'q4', 'q4f16', 'bnb4']).optional(),
  prefixTokens: z.int().min(0).optional(),
  batch: z.int().min(1).max(4096).optional(),
  label: z.string().min(1).optional(),
})

/** What plain data may say to each encoder. */
export const encoderSettings = {
  onnxImage: onnxImageSettings,
  mobilenetV2: mobilenetV2Settings,
  clip: imageFamilySettings,
  siglip: imageFamilySettings,
  vit: imageFamilySettings,
  dinov2: imageFamilySettings,
  dinov3: imageFamilySettings,
  ...soundSettings,
} as const satisfies Record<keyof typeof encoders, z.ZodObject>

/**
 * Makers of encoders by family name, taking plain options. The encoders know their recipe, so that models with them can be saved and loaded again.
 *
 * @example
 * const encoder = await encoderCatalogue({ device: 'cpu' }).mobilenetV2?.({ model: 'mobilenet.onnx' })
 */
export function encoderCatalogue(place: EncoderPlace = {}): Catalogues['encoders'] {
  return {
    onnxImage: async (options: unknown) => {
      const settings = withoutUndefined(checked('onnxImage', onnxImageSettings, options))
      return remembered('onnxImage', await onnxImage({ ...settings, ...place }), settings)
    },
    mobilenetV2: async (options: unknown) => {
      const settings = withoutUndefined(checked('mobilenetV2', mobilenetV2Settings, options))
      return remembered('mobilenetV2', await mobilenetV2({ ...settings, ...place }), settings)
    },
    clip: imageFamily('clip', place),
    siglip: imageFamily('siglip', place),
    vit: imageFamily('vit', place),
    dinov2: imageFamily('dinov2', place),
    dinov3: imageFamily('dinov3', place),
    ...soundCatalogue(place),
  } satisfies Record<keyof typeof encoders, unknown>
}

/** These remember all by themselves how to be made again. */
function imageFamily(name: keyof typeof imageFamilies, place: EncoderPlace): (options: unknown) => Promise<Encoder<'image'>> {
  return async (options) => imageFamilies[name]({ ...withoutUndefined(checked(name, imageFamilySettings, options)), ...place })
}

/** Preprocessing that a file described is remembered as data: the file may be gone when the model is loaded. */
function remembered(
  family: string,
  encoder: OnnxImageEncoder,
  { model, preprocessing: _, ...options }: Partial<z.output<typeof onnxImageSettings>>,
): Encoder<'image'> {
  return withRecipe(encoder, {
    family,
    ...(model !== undefined && { model: resolve(model) }),
    options: jsonObject({ ...options, preprocessing: encoder.preprocessing }),
  })
}

/** The same encoder, with a way to make it again unless it has one. */
export function withRecipe(encoder: Encoder<'image'>, recipe: NonNullable<Encoder['recipe']>): Encoder<'image'> {
  return {
    modality: 'image',
    fingerprint: encoder.fingerprint,
    label: encoder.label,
    recipe: encoder.recipe ?? recipe,
    width: encoder.width,
    grid: (input) => encoder.grid(input),
    preprocess: (input) => encoder.preprocess(input),
    encode: (inputs, options) => encoder.encode(inputs, options),
    ...(encoder.graph !== undefined && { graph: encoder.graph }),
    dispose: () => encoder.dispose(),
  }
}

const jsonObjectSchema: z.ZodType<JsonObject> = z.record(z.string(), z.json())

function jsonObject(value: object): JsonObject {
  return jsonObjectSchema.parse(withoutUndefined(value))
}
