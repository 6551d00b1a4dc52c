/** Hugging Face's `preprocessor_config.json` and `processor_config.json`, read into an {@link ImagePreprocessing}. */
import { readFile, stat } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { fileError } from '../io/file-error.ts'
import { edge, type SizeRule } from './picture-size.ts'
import { type ImagePreprocessing, imagePreprocessingSchema, meanColour } from './preprocess.ts'
import type { ResampleFilter } from './resize.ts'

/** Hugging Face's `resample` codes are Pillow's. */
const filterOfCode: readonly ResampleFilter[] = ['nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming']

/** What a processor does that its settings do not say. */
interface ProcessorClass {
  readonly filter: ResampleFilter
  /** What a bare number in `size` means, as old configurations write it. */
  readonly bareSize: 'shortestEdge' | 'square'
  /** Steps of its own. */
  readonly kind?: 'pad-square' | 'crop-percentage' | 'anyres' | 'dynamic-tiles' | 'pixel-limits' | 'patch-limit' | 'floats'
}
const shortestBicubic: ProcessorClass = { filter: 'bicubic', bareSize: 'shortestEdge' }
const shortestBilinear: ProcessorClass = { filter: 'bilinear', bareSize: 'shortestEdge' }
const squareBilinear: ProcessorClass = { filter: 'bilinear', bareSize: 'square' }
const squareBicubic: ProcessorClass = { filter: 'bicubic', bareSize: 'square' }

/** The processors whose class defaults we know, without the suffixes `ImageProcessor`, `FeatureExtractor`, `Fast`, `Pil`. */
const processors: ReadonlyMap<string, ProcessorClass> = new Map([
  ['CLIP', shortestBicubic],
  ['ChineseCLIP', shortestBicubic],
  ['Siglip', squareBicubic],
  ['ViT', squareBilinear],
  ['DeiT', squareBicubic],
  ['Blip', squareBicubic],
  ['Bit', shortestBicubic],
  ['MobileNetV1', shortestBilinear],
  ['MobileNetV2', shortestBilinear],
  ['ConvNext', { ...shortestBicubic, kind: 'crop-percentage' }],
  ['DINOv3ViT', { ...squareBilinear, kind: 'floats' }],
  ['Llava', { ...shortestBicubic, kind: 'pad-square' }],
  ['LlavaNext', { ...shortestBicubic, kind: 'anyres' }],
  ['LlavaOnevision', { ...squareBicubic, kind: 'anyres' }],
  ['GotOcr2', { ...squareBicubic, kind: 'dynamic-tiles' }],
  ['Qwen2VL', { ...shortestBicubic, kind: 'pixel-limits' }],
  ['Siglip2', { ...squareBilinear, kind: 'patch-limit' }],
])

const positive = z.int().min(1)
const pair = z.strictObject({ height: edge, width: edge })
const perChannel = z.tuple([z.number(), z.number(), z.number()])
const configSchema = z
  .looseObject({
    image_processor_type: z.string().nullish(),
    feature_extractor_type: z.string().nullish(),
    do_resize: z.boolean().nullish(),
    size: z
      .union([
        edge,
        z.strictObject({ shortest_edge: positive, longest_edge: positive.optional() }),
        pair,
        z.strictObject({ min_pixels: positive, max_pixels: positive }),
      ])
      .nullish(),
    resample: z.int().min(0).max(5).nullish(),
    do_center_crop: z.boolean().nullish(),
    crop_size: z.union([edge, pair]).nullish(),
    crop_pct: z.number().positive().max(1).nullish(),
    do_rescale: z.boolean().nullish(),
    rescale_factor: z.number().positive().nullish(),
    do_normalize: z.boolean().nullish(),
    image_mean: perChannel.nullish(),
    image_std: perChannel.nullish(),
    do_convert_rgb: z.boolean().nullish(),
    do_pad: z.boolean().nullish(),
    image_grid_pinpoints: z
      .array(z.tuple([edge, edge]))
      .min(1)
      .nullish(),
    crop_to_patches: z.boolean().nullish(),
    min_patches: positive.nullish(),
    max_patches: positive.nullish(),
    min_pixels: positive.nullish(),
    max_pixels: positive.nullish(),
    patch_size: positive.nullish(),
    merge_size: positive.nullish(),
    temporal_patch_size: positive.nullish(),
    max_num_patches: positive.nullish(),
  })
  .readonly()
type Config = z.infer<typeof configSchema>

const understoodSteps = new Set(['do_resize', 'do_center_crop', 'do_rescale', 'do_normalize', 'do_convert_rgb'])
/** Settings that change pixels, and the kind of processor that has them. */
const ownSettings: Readonly<Record<string, readonly (ProcessorClass['kind'] & string)[]>> = {
  do_pad: ['pad-square', 'anyres'],
  crop_pct: ['crop-percentage'],
  image_grid_pinpoints: ['anyres'],
  crop_to_patches: ['dynamic-tiles'],
  min_pixels: ['pixel-limits'],
  max_pixels: ['pixel-limits'],
  patch_size: ['pixel-limits', 'patch-limit'],
  max_num_patches: ['patch-limit'],
}

export interface PreprocessorConfigOptions {
  /**
   * Whose rounding is followed (see {@link ImagePreprocessing}). Default: torchvision's where the file names a `...Fast` processor (or one that exists with
   * torchvision alone: DINOv3's, in floats), Pillow's for all others. Transformers 5 reads the others with torchvision too, where that is installed; the
   * encoders behind them were trained on Pillow's pixels, and the two differ by one level in fewer than one pixel of a hundred.
   */
  readonly arithmetic?: ImagePreprocessing['arithmetic']
}

/**
 * Reads the contents of a Hugging Face `preprocessor_config.json`, or of a `processor_config.json` with an image processor in it: processors of the kinds of CLIP,
 * ViT, ConvNeXt, DINOv3, LLaVA (padding; `anyres`), InternVL (dynamic tiles), Qwen2-VL (pixel limits) and SigLIP 2 (patch limit). What the file leaves out is the
 * default of the processor class that it names. A step that we do not know (any other `do_...: true`) is refused, never skipped. Padding that only makes batches
 * even is left out, because batches here hold pictures of one size.
 *
 * @throws {ModalignError} `PREPROCESSING_INVALID` (a field of the wrong type or missing), `PREPROCESSING_UNSUPPORTED` (a step or setting we do not follow).
 *
 * @example
 * parsePreprocessorConfig({ image_processor_type: 'CLIPImageProcessor', size: { shortest_edge: 224 }, crop_size: { height: 224, width: 224 },
 *   do_resize: true, do_center_crop: true, do_rescale: true, do_normalize: true, image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5] })
 * // { resize: { size: { shortestEdge: 224 }, filter: 'bicubic' }, centreCrop: ..., rescaleFactor: 1 / 255, normalize: ... }
 */
export function parsePreprocessorConfig(json: unknown, file?: string, options: PreprocessorConfigOptions = {}): ImagePreprocessing {
  const nested = z.looseObject({ image_processor: z.looseObject({}) }).safeParse(json)
  const [content, prefix] = nested.success ? [nested.data.image_processor, '/image_processor'] : [json, '']
  const parsed = configSchema.safeParse(content)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    throw new ModalignError({
      code: 'PREPROCESSING_INVALID',
      file,
      field: `${prefix}/${(issue?.path ?? []).join('/')}`,
      got: issue?.message,
      expected: 'the settings of an image processor, as Hugging Face writes preprocessor_config.json',
    })
  }
  return new ConfigReader(parsed.data, file, prefix).read(options.arithmetic)
}

class ConfigReader {
  readonly #config: Config
  readonly #file: string | undefined
  readonly #prefix: string
  readonly #type: string | undefined
  readonly #class: ProcessorClass | undefined

  constructor(config: Config, file: string | undefined, prefix: string) {
    this.#config = config
    this.#file = file
    this.#prefix = prefix
    this.#type = config.image_processor_type ?? config.feature_extractor_type ?? undefined
    this.#class = processors.get((this.#type ?? '').replace(/(ImageProcessor|FeatureExtractor)(Fast|Pil)?$/, ''))
  }

  read(asked: ImagePreprocessing['arithmetic']): ImagePreprocessing {
    this.#refuseUnknown()
    const config = this.#config
    const arithmetic = asked ?? this.#arithmetic()
    const normalize = config.do_normalize ?? config.image_mean != null
    const spec = {
      ...(this.#class?.kind === 'pad-square' && config.do_pad === true && { padToSquare: meanColour(this.#perChannel('image_mean')) }),
      ...this.#geometry(),
      ...(config.do_rescale !== false && { rescaleFactor: config.rescale_factor ?? 1 / 255 }),
      ...(normalize && { normalize: { mean: this.#perChannel('image_mean'), std: this.#perChannel('image_std') } }),
      ...(arithmetic !== 'pillow' && { arithmetic }),
    }
    const checked = imagePreprocessingSchema.safeParse(spec)
    if (checked.success) return checked.data
    const [issue] = checked.error.issues
    throw this.#error('PREPROCESSING_UNSUPPORTED', '', issue?.path.join('/') ?? '', issue?.message ?? 'settings that go together')
  }

  #geometry(): Pick<ImagePreprocessing, 'resize' | 'tiling' | 'centreCrop'> {
    const config = this.#config
    const kind = this.#class?.kind
    if (kind === 'anyres') return this.#anyres()
    if (kind === 'dynamic-tiles' && config.crop_to_patches === true && (config.max_patches ?? 12) > 1) {
      const tiling = { kind: 'dynamic' as const, minTiles: config.min_patches ?? 1, maxTiles: config.max_patches ?? 12 }
      return { resize: { size: this.#tile(), filter: this.#filter() }, tiling }
    }
    const crop = config.do_center_crop === true ? config.crop_size : undefined
    if (config.do_center_crop === true && crop == null)
      throw this.#missing('crop_size', '{"height": n, "width": n}, because do_center_crop is on')
    const centreCrop = crop == null ? {} : { centreCrop: square(crop) }
    if (config.do_resize === false) return centreCrop
    if (kind === 'crop-percentage') return this.#cropPercentage()
    return { resize: { size: this.#size(), filter: this.#filter() }, ...centreCrop }
  }

  /** The tile is the crop where there is one: the resized shorter edge otherwise. */
  #anyres(): Pick<ImagePreprocessing, 'resize' | 'tiling'> {
    const { image_grid_pinpoints: pinpoints, crop_size: crop } = this.#config
    if (pinpoints == null) throw this.#missing('image_grid_pinpoints', 'a list of [height, width]')
    const size = crop == null ? this.#tile() : square(crop)
    const resolutions = pinpoints.map(([height, width]) => ({ height, width }))
    return { resize: { size, filter: this.#filter() }, tiling: { kind: 'anyres', resolutions } }
  }

  /** ConvNeXt: below 384 pixels a crop of this share of the shorter edge; above, the whole picture squeezed. */
  #cropPercentage(): Pick<ImagePreprocessing, 'resize' | 'centreCrop'> {
    const { size, crop_pct: share } = this.#config
    const edgeLength = typeof size === 'number' ? size : size != null && 'shortest_edge' in size ? size.shortest_edge : undefined
    if (edgeLength === undefined) throw this.#missing('size', '{"shortest_edge": n}')
    const whole = { height: edgeLength, width: edgeLength }
    if (edgeLength >= 384) return { resize: { size: whole, filter: this.#filter() } }
    return { resize: { size: { shortestEdge: Math.trunc(edgeLength / (share ?? 224 / 256)) }, filter: this.#filter() }, centreCrop: whole }
  }

  #tile(): { readonly height: number; readonly width: number } {
    const { size } = this.#config
    if (size == null) throw this.#missing('size', '{"height": n, "width": n}')
    if (typeof size === 'number') return square(size)
    if ('height' in size) return size
    if ('shortest_edge' in size && size.longest_edge === undefined) return square(size.shortest_edge)
    throw this.#error('PREPROCESSING_INVALID', '/size', JSON.stringify(size), 'the height and width of a tile')
  }

  #size(): SizeRule {
    const config = this.#config
    const { size } = config
    if (this.#class?.kind === 'patch-limit') return { patchSize: config.patch_size ?? 16, maxPatches: config.max_num_patches ?? 256 }
    if (this.#class?.kind === 'pixel-limits') return this.#pixelLimits()
    if (size == null) throw this.#missing('size', '{"shortest_edge": n} or {"height": n, "width": n}')
    if (typeof size === 'number') {
      if (this.#class !== undefined) return this.#class.bareSize === 'square' ? square(size) : { shortestEdge: size }
      const got = `${size}, whose meaning depends on the processor (${this.#type ?? 'none named'})`
      throw this.#error('PREPROCESSING_INVALID', '/size', got, '{"shortest_edge": n} or {"height": n, "width": n}')
    }
    if ('height' in size) return size
    if ('shortest_edge' in size && size.longest_edge === undefined) return { shortestEdge: size.shortest_edge }
    throw this.#error('PREPROCESSING_UNSUPPORTED', '/size', JSON.stringify(size), '{"shortest_edge": n} or {"height": n, "width": n}')
  }

  #pixelLimits(): SizeRule {
    const { size, min_pixels: least, max_pixels: most, patch_size: patch, merge_size: merge } = this.#config
    const inSize = typeof size === 'object' && size !== null ? limitsOf(size) : {}
    return {
      minPixels: least ?? inSize.least ?? 56 * 56,
      maxPixels: most ?? inSize.most ?? 28 * 28 * 1280,
      multipleOf: (patch ?? 14) * (merge ?? 2),
    }
  }

  #filter(): ResampleFilter {
    const { resample } = this.#config
    const filter = resample == null ? this.#class?.filter : filterOfCode[resample]
    if (filter === undefined) throw this.#missing('resample', "a filter, 0 to 5 (Pillow's codes)")
    return filter
  }

  #perChannel(field: 'image_mean' | 'image_std'): readonly [number, number, number] {
    const values = this.#config[field]
    if (values == null) throw this.#missing(field, 'three numbers, because do_normalize is on')
    return values
  }

  #arithmetic(): NonNullable<ImagePreprocessing['arithmetic']> {
    if (this.#class?.kind === 'floats') return 'torchvision-float'
    return this.#type?.endsWith('Fast') === true ? 'torchvision' : 'pillow'
  }

  #refuseUnknown(): void {
    const kind = this.#class?.kind
    for (const [key, value] of Object.entries(this.#config)) {
      const owners = Object.hasOwn(ownSettings, key) ? ownSettings[key] : undefined
      const inEffect = key.startsWith('do_') || key === 'crop_to_patches' ? value === true : owners !== undefined && value != null
      const understood = understoodSteps.has(key) || (kind !== undefined && owners?.includes(kind) === true)
      if (!inEffect || understood) continue
      throw new ModalignError({
        code: 'PREPROCESSING_UNSUPPORTED',
        file: this.#file,
        field: `${this.#prefix}/${key}`,
        got: JSON.stringify(value),
        expected: `settings that ${this.#type ?? 'an image processor of the CLIP and ViT kind'} has`,
        hint: 'give the encoder an ImagePreprocessing object instead',
      })
    }
  }

  #missing(field: string, expected: string): ModalignError {
    return this.#error('PREPROCESSING_INVALID', `/${field}`, 'nothing', expected)
  }

  #error(code: string, field: string, got: string, expected: string): ModalignError {
    return new ModalignError({ code, file: this.#file, field: `${this.#prefix}${field}`, got, expected })
  }
}

/** Transformers 5 calls Qwen2-VL's limits edges. */
function limitsOf(size: Exclude<Config['size'], number | null | undefined>): {
  readonly least?: number
  readonly most?: number | undefined
} {
  if ('min_pixels' in size) return { least: size.min_pixels, most: size.max_pixels }
  return 'shortest_edge' in size ? { least: size.shortest_edge, most: size.longest_edge } : {}
}

function square(size: z.infer<typeof pair> | number): { readonly height: number; readonly width: number } {
  return typeof size === 'number' ? { height: size, width: size } : { height: size.height, width: size.width }
}

/** In the order of preference: the second is what Transformers 5 writes for models of several modalities. */
const configNames = ['preprocessor_config.json', 'processor_config.json']
const largestConfigBytes = 1_048_576

/**
 * {@link parsePreprocessorConfig} of a file, or of `preprocessor_config.json` or `processor_config.json` in a model's folder.
 *
 * @throws {ModalignError} `FILE_...`, `PREPROCESSING_INVALID` (not JSON, too long), `PREPROCESSING_MISSING` (a folder without either), and as {@link parsePreprocessorConfig}
 * @example
 * const preprocessing = await readPreprocessorConfig('models/clip-vit-base-patch32')
 */
export async function readPreprocessorConfig(place: string, options: PreprocessorConfigOptions = {}): Promise<ImagePreprocessing> {
  const file = await findConfig(place)
  const failed = (error: unknown): never => {
    throw fileError(error, file, 'a preprocessor_config.json')
  }
  const { size } = await stat(file).catch(failed)
  if (size > largestConfigBytes)
    throw new ModalignError({ code: 'PREPROCESSING_INVALID', file, got: `${size} bytes`, expected: `at most ${largestConfigBytes}` })
  const text = await readFile(file, 'utf8').catch(failed)
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (cause) {
    const got = cause instanceof Error ? cause.message : String(cause)
    throw new ModalignError({ code: 'PREPROCESSING_INVALID', file, got, expected: 'JSON', cause })
  }
  return parsePreprocessorConfig(json, file, options)
}

async function findConfig(place: string): Promise<string> {
  const found = await stat(place).catch((error: unknown) => {
    throw fileError(error, place, 'a preprocessor_config.json, or the folder that holds it')
  })
  if (!found.isDirectory()) return place
  for (const name of configNames) {
    const file = path.join(place, name)
    const exists = await stat(file).then(
      (entry) => entry.isFile(),
      (error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return false
        throw fileError(error, file, 'a file')
      },
    )
    if (exists) return file
  }
  throw new ModalignError({
    code: 'PREPROCESSING_MISSING',
    file: place,
    got: 'a folder without them',
    expected: configNames.join(' or '),
    hint: 'download the file, or give an ImagePreprocessing object',
  })
}
