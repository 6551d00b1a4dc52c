/**
 * The encoders that come with the package, made from plain data: what a run file says and what a saved model remembers. Part of the composition root: `src/index.ts` and
 * the command line share it.
 */
import { resolve } from 'node:path'
import { z } from 'zod'
import { type encoders, mobilenetV2, type OnnxImageEncoder, onnxImage } from '../../encoders/index.ts'
import type { Encoder, EncoderRecipe, JsonObject, Modality } from '../model/contracts.ts'
import type { Catalogues } from '../model/saved-model.ts'
import { withoutUndefined } from '../runtime/session.ts'
import type { DownloadOptions } from '../weights/hub/resolve-model.ts'
import { checked } from './encoder-options.ts'
import { imageCatalogue, imageSettings, onnxImageSettings } from './image-catalogue.ts'
import { soundCatalogue, soundSettings } from './sound-catalogue.ts'
import { videoCatalogue, videoSettings } from './video-catalogue.ts'

/** Where an encoder runs: a matter of the machine, not of what it computes, so no saved model remembers it. */
export interface EncoderPlace extends Pick<DownloadOptions, 'download' | 'onDownload'> {
  readonly device?: 'auto' | 'cpu' | 'cuda' | 'directml' | 'coreml' | 'webgpu' | 'wasm'
  readonly threads?: number
  /** Of an image encoder on the CPU, each with `threads` threads: how many calls are worked on at once. Default 1. */
  readonly sessions?: number
}

export { pathSchema } from './path-schema.ts'

const mobilenetV2Settings = onnxImageSettings.pick({ model: true, output: true, preprocessing: true, batch: true, label: true }).partial()

/** What plain data may say to each encoder. */
export const encoderSettings = {
  onnxImage: onnxImageSettings,
  mobilenetV2: mobilenetV2Settings,
  ...imageSettings,
  ...soundSettings,
  ...videoSettings,
} as const satisfies Record<keyof typeof encoders, z.ZodObject>

/**
 * Makers of encoders by family name, taking plain options. The encoders know their recipe, so that models with them can be saved and loaded again.
 *
 * @example
 * const encoder = await encoderCatalogue({ device: 'cpu' }).mobilenetV2?.({ model: 'mobilenet.onnx' })
 */
export function encoderCatalogue(place: EncoderPlace = {}): Catalogues['encoders'] {
  const images = {
    onnxImage: async (options: unknown) => {
      const settings = withoutUndefined(checked('onnxImage', onnxImageSettings, options))
      return remembered('onnxImage', await onnxImage({ ...settings, ...place }), settings)
    },
    mobilenetV2: async (options: unknown) => {
      const settings = withoutUndefined(checked('mobilenetV2', mobilenetV2Settings, options))
      return remembered('mobilenetV2', await mobilenetV2({ ...settings, ...place }), settings)
    },
    ...imageCatalogue(place),
  }
  const { sessions: _, ...single } = place
  return { ...images, ...soundCatalogue(single), ...videoCatalogue(images) } satisfies Record<keyof typeof encoders, unknown>
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
export function withRecipe<M extends Modality>(encoder: Encoder<M>, recipe: EncoderRecipe): Encoder<M> {
  return {
    modality: encoder.modality,
    fingerprint: encoder.fingerprint,
    label: encoder.label,
    recipe: encoder.recipe ?? recipe,
    width: encoder.width,
    ...(encoder.gridVaries !== undefined && { gridVaries: encoder.gridVaries }),
    ...(encoder.sampleRateHz !== undefined && { sampleRateHz: encoder.sampleRateHz }),
    ...(encoder.sampling !== undefined && { sampling: encoder.sampling }),
    grid: (input) => encoder.grid(input),
    preprocess: (input) => encoder.preprocess(input),
    ...(encoder.preparation !== undefined && { preparation: encoder.preparation }),
    encode: (inputs, options) => encoder.encode(inputs, options),
    ...(encoder.graph !== undefined && { graph: encoder.graph }),
    ...(encoder.device !== undefined && { device: encoder.device }),
    dispose: () => encoder.dispose(),
  }
}

const jsonObjectSchema: z.ZodType<JsonObject> = z.record(z.string(), z.json())

function jsonObject(value: object): JsonObject {
  return jsonObjectSchema.parse(withoutUndefined(value))
}
