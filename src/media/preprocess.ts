/** From pixels to the tensor that an image encoder was trained on: Hugging Face's image processors, value for value. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { DecodedImage } from '../model/contracts.ts'
import { float32Tensor, type TensorValue } from '../tensors.ts'
import { centreWindow, cropImage, padToSquare } from './crop.ts'
import { type ResampleFilter, resizeImage } from './resize.ts'

const edge = z.int().min(1).max(16_384)
const byte = z.int().min(0).max(255)
const perChannel = z.tuple([z.number(), z.number(), z.number()])

/**
 * What happens to an image before an encoder sees it, in this order; an absent step is left out. Plain data: it is part of the encoder's
 * fingerprint and travels to decoding processes.
 */
export const imagePreprocessingSchema = z.strictObject({
  /** Stripes of this colour make the image square first (LLaVA's `expand2square`). */
  padToSquare: z.tuple([byte, byte, byte]).readonly().optional(),
  /** Either exactly `height` x `width`, or the shorter edge becomes `shortestEdge` and the other keeps the proportion, rounded down. */
  resize: z
    .strictObject({
      size: z.union([z.strictObject({ shortestEdge: edge }), z.strictObject({ height: edge, width: edge })]),
      filter: z.enum(['nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming']),
    })
    .readonly()
    .optional(),
  /** Cut from the middle; black where the image is smaller. */
  centreCrop: z.strictObject({ height: edge, width: edge }).readonly().optional(),
  /** Pixels 0..255 are multiplied by this. */
  rescaleFactor: z.number().positive().optional(),
  /** Then, per channel: (value - mean) / std. */
  normalize: z.strictObject({ mean: perChannel.readonly(), std: perChannel.readonly() }).readonly().optional(),
})

export type ImagePreprocessing = Readonly<z.infer<typeof imagePreprocessingSchema>>

/** Height and width of every preprocessed image, or undefined where they depend on the image. */
export function preprocessedSize(spec: ImagePreprocessing): { readonly height: number; readonly width: number } | undefined {
  if (spec.centreCrop !== undefined) return spec.centreCrop
  const size = spec.resize?.size
  if (size === undefined) return undefined
  if ('height' in size) return size
  return spec.padToSquare === undefined ? undefined : { height: size.shortestEdge, width: size.shortestEdge }
}

/**
 * The geometric half of preprocessing: padding, resizing, cropping; 8-bit RGB in and out. Decoding processes run it, because its result is small.
 *
 * @example
 * const square = transformImage(image, { resize: { size: { height: 224, width: 224 }, filter: 'bicubic' } }) // 224 x 224
 */
export function transformImage(image: DecodedImage, spec: ImagePreprocessing): DecodedImage {
  const whole = spec.padToSquare === undefined ? image : padToSquare(image, spec.padToSquare)
  if (spec.resize === undefined) return spec.centreCrop === undefined ? whole : cropImage(whole, centreWindow(whole, spec.centreCrop))
  const size = resizedSize(whole, spec.resize.size)
  const filter: ResampleFilter = spec.resize.filter
  if (spec.centreCrop === undefined) return resizeImage(whole, { ...size, filter })
  const window = centreWindow(size, spec.centreCrop)
  const within = window.left >= 0 && window.top >= 0
  return within ? resizeImage(whole, { ...size, filter, window }) : cropImage(resizeImage(whole, { ...size, filter }), window)
}

/** Hugging Face's `get_resize_output_image_size`: the longer edge is truncated, never rounded up. */
function resizedSize(
  image: DecodedImage,
  size: { readonly shortestEdge: number } | { readonly height: number; readonly width: number },
): { readonly width: number; readonly height: number } {
  if ('height' in size) return size
  const { width, height } = image
  const short = size.shortestEdge
  return width <= height
    ? { width: short, height: Math.trunc((short * height) / width) }
    : { width: Math.trunc((short * width) / height), height: short }
}

/**
 * The arithmetic half: float32 `[1, 3, height, width]`. As numpy does it in the processors: the product is rounded to float32, then the
 * difference, then the quotient. A channel has 256 possible values, so each is computed once.
 */
export function imageTensor(image: DecodedImage, spec: ImagePreprocessing): TensorValue {
  const plane = image.width * image.height
  const result = new Float32Array(3 * plane)
  for (let channel = 0; channel < 3; channel++) {
    const table = channelValues(spec, channel)
    const out = result.subarray(channel * plane, (channel + 1) * plane)
    for (let pixel = 0, at = channel; pixel < plane; pixel++, at += 3) out[pixel] = table[image.data[at] ?? 0] ?? 0
  }
  return float32Tensor(result, [1, 3, image.height, image.width])
}

function channelValues({ rescaleFactor = 1, normalize }: ImagePreprocessing, channel: number): Float32Array {
  const table = Float32Array.from({ length: 256 }, (_, value) => value * rescaleFactor)
  if (normalize === undefined) return table
  const mean = Math.fround(normalize.mean[channel] ?? 0)
  const std = Math.fround(normalize.std[channel] ?? 1)
  return table.map((value) => Math.fround(value - mean) / std)
}

/**
 * Pixels to float32 `[1, 3, height, width]`: {@link transformImage}, then {@link imageTensor}.
 *
 * @example
 * const clip = parsePreprocessorConfig(JSON.parse(await readFile('preprocessor_config.json', 'utf8')))
 * preprocessImage(await decodeImage('cat.jpg'), clip).dims // [1, 3, 224, 224]
 */
export function preprocessImage(image: DecodedImage, spec: ImagePreprocessing): TensorValue {
  return imageTensor(transformImage(image, spec), spec)
}

/** Hugging Face's `resample` codes are Pillow's. */
const filterOfCode: readonly ResampleFilter[] = ['nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming']

interface ProcessorDefaults {
  readonly filter: ResampleFilter
  /** What a bare number in `size` means, as old configurations write it. */
  readonly bareSize: 'shortestEdge' | 'square'
}
const clipDefaults: ProcessorDefaults = { filter: 'bicubic', bareSize: 'shortestEdge' }
const squareBilinear: ProcessorDefaults = { filter: 'bilinear', bareSize: 'square' }
const squareBicubic: ProcessorDefaults = { filter: 'bicubic', bareSize: 'square' }
const shortestBilinear: ProcessorDefaults = { filter: 'bilinear', bareSize: 'shortestEdge' }

/** The processors whose class defaults we know, without the suffixes `ImageProcessor`, `FeatureExtractor`, `Fast`, `Pil`. */
const processors: ReadonlyMap<string, ProcessorDefaults> = new Map([
  ['CLIP', clipDefaults],
  ['ChineseCLIP', clipDefaults],
  ['Siglip', squareBicubic],
  ['ViT', squareBilinear],
  ['DeiT', squareBicubic],
  ['Bit', clipDefaults],
  ['MobileNetV1', shortestBilinear],
  ['MobileNetV2', shortestBilinear],
])

const pair = z.object({ height: edge, width: edge })
const preprocessorConfigSchema = z
  .looseObject({
    image_processor_type: z.string().optional(),
    feature_extractor_type: z.string().optional(),
    do_resize: z.boolean().nullish(),
    size: z.union([edge, z.strictObject({ shortest_edge: edge }), z.strictObject({ height: edge, width: edge })]).nullish(),
    resample: z.int().min(0).max(5).nullish(),
    do_center_crop: z.boolean().nullish(),
    crop_size: z.union([edge, pair]).nullish(),
    do_rescale: z.boolean().nullish(),
    rescale_factor: z.number().positive().nullish(),
    do_normalize: z.boolean().nullish(),
    image_mean: perChannel.nullish(),
    image_std: perChannel.nullish(),
    do_convert_rgb: z.boolean().nullish(),
  })
  .readonly()

const understoodSteps = new Set(['do_resize', 'do_center_crop', 'do_rescale', 'do_normalize', 'do_convert_rgb'])
/** Settings that change pixels in ways we do not follow. */
const unsupportedSettings = ['crop_pct', 'patch_size', 'max_pixels', 'min_pixels', 'image_grid_pinpoints']

/**
 * Reads the contents of a Hugging Face `preprocessor_config.json` of the CLIP and ViT kind. What the file leaves out is the default of the
 * processor class that it names. A step that we do not know (any other `do_...: true`) is refused, never skipped.
 *
 * @throws {ModalignError} `PREPROCESSING_INVALID` (a field of the wrong type or missing), `PREPROCESSING_UNSUPPORTED` (a step or setting we do not follow).
 *
 * @example
 * parsePreprocessorConfig({ image_processor_type: 'CLIPImageProcessor', size: { shortest_edge: 224 }, crop_size: { height: 224, width: 224 },
 *   do_resize: true, do_center_crop: true, do_rescale: true, do_normalize: true, image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5] })
 * // { resize: { size: { shortestEdge: 224 }, filter: 'bicubic' }, centreCrop: ..., rescaleFactor: 1 / 255, normalize: ... }
 */
export function parsePreprocessorConfig(json: unknown, file?: string): ImagePreprocessing {
  const parsed = preprocessorConfigSchema.safeParse(json)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    throw new ModalignError({
      code: 'PREPROCESSING_INVALID',
      file,
      field: `/${(issue?.path ?? []).join('/')}`,
      got: issue?.message,
      expected: 'the settings of an image processor, as Hugging Face writes preprocessor_config.json',
    })
  }
  const config = parsed.data
  for (const [key, value] of Object.entries(config)) {
    const unknownStep = key.startsWith('do_') && value === true && !understoodSteps.has(key)
    if (!unknownStep && !(unsupportedSettings.includes(key) && value !== null)) continue
    throw new ModalignError({
      code: 'PREPROCESSING_UNSUPPORTED',
      file,
      field: `/${key}`,
      got: JSON.stringify(value),
      expected: 'resizing, centre crop, rescaling and normalisation only',
      hint: 'give the encoder an ImagePreprocessing object instead',
    })
  }
  const missing = (field: string, expected: string): ModalignError =>
    new ModalignError({ code: 'PREPROCESSING_INVALID', file, field: `/${field}`, got: 'nothing', expected })

  const type = config.image_processor_type ?? config.feature_extractor_type
  const defaults = processors.get((type ?? '').replace(/(ImageProcessor|FeatureExtractor)(Fast|Pil)?$/, ''))
  const square = (size: z.infer<typeof pair> | number): { readonly height: number; readonly width: number } =>
    typeof size === 'number' ? { height: size, width: size } : { height: size.height, width: size.width }

  const readSize = (): NonNullable<ImagePreprocessing['resize']>['size'] => {
    const size = config.size
    if (size === null || size === undefined) throw missing('size', '{"shortest_edge": n} or {"height": n, "width": n}')
    if (typeof size !== 'number') return 'shortest_edge' in size ? { shortestEdge: size.shortest_edge } : square(size)
    if (defaults === undefined) {
      throw new ModalignError({
        code: 'PREPROCESSING_INVALID',
        file,
        field: '/size',
        got: `${size}, whose meaning depends on the processor (${type ?? 'none named'})`,
        expected: '{"shortest_edge": n} or {"height": n, "width": n}',
      })
    }
    return defaults.bareSize === 'square' ? square(size) : { shortestEdge: size }
  }
  const readFilter = (): ResampleFilter => {
    const filter = config.resample === null || config.resample === undefined ? defaults?.filter : filterOfCode[config.resample]
    if (filter === undefined) throw missing('resample', "a filter, 0 to 5 (Pillow's codes)")
    return filter
  }
  const readMean = (field: 'image_mean' | 'image_std'): readonly [number, number, number] => {
    const values = config[field]
    if (values === null || values === undefined) throw missing(field, 'three numbers, because do_normalize is on')
    return values
  }
  if (config.do_center_crop === true && (config.crop_size === null || config.crop_size === undefined)) {
    throw missing('crop_size', '{"height": n, "width": n}, because do_center_crop is on')
  }
  const normalize = config.do_normalize ?? (config.image_mean !== null && config.image_mean !== undefined)
  return {
    ...(config.do_resize !== false && { resize: { size: readSize(), filter: readFilter() } }),
    ...(config.do_center_crop === true &&
      config.crop_size !== null &&
      config.crop_size !== undefined && { centreCrop: square(config.crop_size) }),
    ...(config.do_rescale !== false && { rescaleFactor: config.rescale_factor ?? 1 / 255 }),
    ...(normalize && { normalize: { mean: readMean('image_mean'), std: readMean('image_std') } }),
  }
}
