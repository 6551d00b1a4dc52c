/** From pixels to the tensor that an image encoder was trained on: Hugging Face's image processors, value for value. */
import { z } from 'zod'
import type { DecodedImage } from '../model/contracts.ts'
import { type PixelTensor, writePlanes } from '../pixel-planes.ts'
import { float32Tensor, type TensorValue } from '../tensors.ts'
import { type Colour, cropImage, padToSquare } from './crop.ts'
import { edge, type PictureSize, sizeRuleSchema } from './picture-size.ts'
import { type ResampleFilter, resizeImage, type Window } from './resize.ts'
import { type FloatImage, resizeFloat } from './resize-float.ts'
import { tilingSchema } from './tiling.ts'
import { planPicture } from './views.ts'

const byte = z.int().min(0).max(255)
const perChannel = z.tuple([z.number(), z.number(), z.number()])

/**
 * What happens to an image before an encoder sees it, in this order; an absent step is left out. Plain data: it is part of the encoder's
 * fingerprint and travels to decoding processes.
 */
export const imagePreprocessingSchema = z
  .strictObject({
    /** Stripes of this colour make the image square first (LLaVA's `expand2square`). */
    padToSquare: z.tuple([byte, byte, byte]).readonly().optional(),
    /** To what size, and by which of Pillow's filters. */
    resize: z
      .strictObject({ size: sizeRuleSchema, filter: z.enum(['nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming']) })
      .readonly()
      .optional(),
    /** The picture becomes several of the size that `resize` gives, stacked along the first axis. */
    tiling: tilingSchema.optional(),
    /** Cut from the middle; black where the image is smaller. */
    centreCrop: z
      .strictObject({
        height: edge,
        width: edge,
        /** Where half a pixel would be cut: left and above it (default, Hugging Face's processors), or to the even neighbour (torchvision's CenterCrop). */
        halves: z.enum(['down', 'even']).optional(),
      })
      .readonly()
      .optional(),
    /** Pixels 0..255 are multiplied by this. */
    rescaleFactor: z.number().positive().optional(),
    /** Then, per channel: (value - mean) / std. */
    normalize: z.strictObject({ mean: perChannel.readonly(), std: perChannel.readonly() }).readonly().optional(),
    /**
     * Whose rounding is followed. `pillow` (default): Pillow and numpy, which most encoders were trained on. `torchvision`: the "fast" processors, on 8-bit tensors.
     * `torchvision-float`: pixels are rescaled to floats first and resized as such (DINOv3).
     */
    arithmetic: z.enum(['pillow', 'torchvision', 'torchvision-float']).optional(),
  })
  .superRefine(({ resize, tiling, centreCrop, arithmetic }, { addIssue }) => {
    const refuse = (path: (string | number)[], message: string): void => addIssue({ code: 'custom', path, message })
    if (arithmetic !== undefined && arithmetic !== 'pillow' && (resize?.filter === 'box' || resize?.filter === 'hamming'))
      refuse(['resize', 'filter'], 'a filter that torchvision has: nearest, bilinear, bicubic or lanczos')
    if (arithmetic === 'torchvision-float' && resize?.filter === 'nearest')
      refuse(['resize', 'filter'], 'bilinear, bicubic or lanczos with torchvision-float')
    if (tiling === undefined) return
    const size = resize?.size
    if (size === undefined || !('height' in size))
      return refuse(['resize', 'size'], 'the height and width of a tile, because there is tiling')
    if (centreCrop !== undefined) refuse(['centreCrop'], 'nothing, because there is tiling')
    if (tiling.kind === 'dynamic') {
      if (tiling.minTiles > tiling.maxTiles) refuse(['tiling', 'minTiles'], `at most maxTiles, ${tiling.maxTiles}`)
      return
    }
    const ragged = tiling.resolutions.findIndex(({ height, width }) => height % size.height !== 0 || width % size.width !== 0)
    if (ragged >= 0) refuse(['tiling', 'resolutions', ragged], `whole tiles of ${size.height} x ${size.width}`)
  })

export type ImagePreprocessing = Readonly<z.infer<typeof imagePreprocessingSchema>>

/** Height and width of every preprocessed image (of every tile), or undefined where they depend on the image. */
export function preprocessedSize(spec: ImagePreprocessing): { readonly height: number; readonly width: number } | undefined {
  if (spec.centreCrop !== undefined) return { height: spec.centreCrop.height, width: spec.centreCrop.width }
  const size = spec.resize?.size
  if (size === undefined) return undefined
  if ('height' in size) return size
  if (spec.padToSquare === undefined || !('shortestEdge' in size)) return undefined
  return { height: size.shortestEdge, width: size.shortestEdge }
}

/**
 * The geometric half of preprocessing: padding, resizing, cropping, tiling; 8-bit RGB in and out. Decoding processes run it, because its result is small.
 * Tiles lie below one another. With `torchvision-float`, where resizing is part of the arithmetic, only the padding is done here.
 *
 * @throws {ModalignError} `IMAGE_ASPECT` for a picture too thin for pixel limits
 * @example
 * const square = transformImage(image, { resize: { size: { height: 224, width: 224 }, filter: 'bicubic' } }) // 224 x 224
 */
export function transformImage(image: DecodedImage, spec: ImagePreprocessing): DecodedImage {
  const whole = spec.padToSquare === undefined ? image : padToSquare(image, spec.padToSquare)
  const { arithmetic = 'pillow' } = spec
  if (arithmetic === 'torchvision-float') return whole
  const filter = spec.resize?.filter ?? 'nearest'
  const views = planPicture(image, spec).layers.flatMap(({ resized, windows }) =>
    cutWindows(whole, resized, windows, { filter, arithmetic }),
  )
  return stackedVertically(views)
}

function cutWindows(
  whole: DecodedImage,
  resized: PictureSize,
  windows: readonly Window[],
  how: { readonly filter: ResampleFilter; readonly arithmetic: 'pillow' | 'torchvision' },
): readonly DecodedImage[] {
  const same = whole.width === resized.width && whole.height === resized.height
  const [window] = windows
  const inside =
    window !== undefined &&
    windows.length === 1 &&
    window.left >= 0 &&
    window.top >= 0 &&
    window.left + window.width <= resized.width &&
    window.top + window.height <= resized.height
  if (inside && !same) return [resizeImage(whole, { ...resized, ...how, window })]
  const image = same ? whole : resizeImage(whole, { ...resized, ...how })
  return windows.map((one) => {
    const everything = one.left === 0 && one.top === 0 && one.width === image.width && one.height === image.height
    return everything ? image : cropImage(image, one)
  })
}

function stackedVertically(views: readonly DecodedImage[]): DecodedImage {
  const [first] = views
  if (first === undefined) throw new Error('internal: preprocessing gives at least one view')
  if (views.length === 1) return first
  const data = new Uint8Array(first.data.length * views.length)
  for (const [index, view] of views.entries()) data.set(view.data, index * first.data.length)
  return { width: first.width, height: first.height * views.length, data }
}

/**
 * The arithmetic half: float32 `[1, 3, height, width]`, or `[tiles, 3, height, width]`. Each operation is rounded to float32 as the processors round it. A
 * channel of 8 bits has 256 possible values, so each is computed once.
 *
 * @param image what {@link transformImage} gave
 */
export function imageTensor(image: DecodedImage, spec: ImagePreprocessing): TensorValue {
  return imageBatch([image], spec)
}

/** {@link imageTensor} of several images of one size, one behind another along the first axis. */
export function imageBatch(images: readonly DecodedImage[], spec: ImagePreprocessing): TensorValue {
  const [first] = images
  if (first === undefined) throw new Error('internal: a batch has at least one picture')
  if (spec.arithmetic === 'torchvision-float') return stackedViews(images.flatMap((image) => floatViews(image, spec)))
  const size = spec.tiling === undefined ? undefined : preprocessedSize(spec)
  const { width } = first
  const height = size?.height ?? first.height
  const views = first.height / height
  const plane = width * height
  const each = 3 * views * plane
  const result = new Float32Array(images.length * each)
  const values = channelTables(spec)
  for (const [index, image] of images.entries()) {
    checkSame(image, first)
    for (let view = 0; view < each; view += 3 * plane)
      writePlanes(
        image.data.subarray(view, view + 3 * plane),
        values,
        result.subarray(index * each + view, index * each + view + 3 * plane),
      )
  }
  return float32Tensor(result, [images.length * views, 3, height, width])
}

function checkSame({ width, height }: DecodedImage, first: DecodedImage): void {
  if (width !== first.width || height !== first.height)
    throw new Error(`internal: pictures of ${width}x${height} and ${first.width}x${first.height} in one batch`)
}

/**
 * What {@link imageTensor} would make of several images of one size and one view each, not made yet. Undefined with `torchvision-float`, whose floats are more than what bytes
 * stand for, and with tiling.
 */
export function pixelTensor(images: readonly DecodedImage[], spec: ImagePreprocessing): PixelTensor | undefined {
  const [first] = images
  if (first === undefined || spec.arithmetic === 'torchvision-float' || spec.tiling !== undefined) return undefined
  for (const image of images) checkSame(image, first)
  return { dims: [images.length, 3, first.height, first.width], pixels: images.map(({ data }) => data), values: channelTables(spec) }
}

const tablesOf = new WeakMap<ImagePreprocessing, Float32Array>()

/** The 256 values of each channel, one after another. */
function channelTables(spec: ImagePreprocessing): Float32Array {
  const known = tablesOf.get(spec)
  if (known !== undefined) return known
  const tables = new Float32Array(3 * 256)
  for (let channel = 0; channel < 3; channel++) tables.set(channelValues(spec, channel), 256 * channel)
  tablesOf.set(spec, tables)
  return tables
}

function channelValues({ rescaleFactor = 1, normalize, arithmetic = 'pillow' }: ImagePreprocessing, channel: number): Float32Array {
  if (arithmetic === 'pillow') {
    const table = Float32Array.from({ length: 256 }, (_, value) => value * rescaleFactor)
    if (normalize === undefined) return table
    const { mean, std } = channelNorm(normalize, channel, 1)
    return table.map((value) => Math.fround(value - mean) / std)
  }
  if (normalize === undefined) return Float32Array.from({ length: 256 }, (_, value) => value * Math.fround(rescaleFactor))
  // The fast processors fold the rescaling into mean and standard deviation.
  const { mean, std } = channelNorm(normalize, channel, 1 / rescaleFactor)
  return Float32Array.from({ length: 256 }, (_, value) => Math.fround(value - mean) / std)
}

function channelNorm(
  { mean, std }: NonNullable<ImagePreprocessing['normalize']>,
  channel: number,
  factor: number,
): { readonly mean: number; readonly std: number } {
  const scaled = (value: number): number => Math.fround(Math.fround(value) * Math.fround(factor))
  return { mean: scaled(mean[channel] ?? 0), std: scaled(std[channel] ?? 1) }
}

/** Rescale, resize, crop, normalise, all in float32. */
function floatViews(image: DecodedImage, spec: ImagePreprocessing): readonly FloatImage[] {
  const { padToSquare: _, ...rest } = spec
  const factor = Math.fround(spec.rescaleFactor ?? 1)
  const whole: FloatImage = { width: image.width, height: image.height, data: Float32Array.from(image.data, (value) => value * factor) }
  const filter = spec.resize === undefined || spec.resize.filter === 'nearest' ? 'bilinear' : spec.resize.filter
  return planPicture(image, rest).layers.flatMap(({ resized, windows }) => {
    const scaled = resizeFloat(whole, resized, filter)
    return windows.map((window) => planes(scaled, window, spec))
  })
}

function stackedViews(views: readonly FloatImage[]): TensorValue {
  const [first] = views
  if (first === undefined) throw new Error('internal: preprocessing gives at least one view')
  const result = new Float32Array(first.data.length * views.length)
  for (const [index, { data }] of views.entries()) result.set(data, index * data.length)
  return float32Tensor(result, [views.length, 3, first.height, first.width])
}

/** A window of a float picture, channel by channel, normalised; black beyond the picture's edges. */
function planes(image: FloatImage, { left, top, width, height }: Window, { normalize }: ImagePreprocessing): FloatImage {
  const data = new Float32Array(3 * width * height)
  for (let channel = 0; channel < 3; channel++) {
    const { mean, std } = normalize === undefined ? { mean: 0, std: 1 } : channelNorm(normalize, channel, 1)
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const [column, row] = [x + left, y + top]
        const inside = column >= 0 && row >= 0 && column < image.width && row < image.height
        const value = inside ? (image.data[(row * image.width + column) * 3 + channel] ?? 0) : 0
        data[(channel * height + y) * width + x] = Math.fround(value - mean) / std
      }
    }
  }
  return { width, height, data }
}

/**
 * Pixels to float32 `[1, 3, height, width]` (with tiling `[tiles, 3, height, width]`): {@link transformImage}, then {@link imageTensor}.
 *
 * @throws {ModalignError} `IMAGE_ASPECT` for a picture too thin for pixel limits
 * @example
 * const clip = parsePreprocessorConfig(JSON.parse(await readFile('preprocessor_config.json', 'utf8')))
 * preprocessImage(await decodeImage('cat.jpg'), clip).dims // [1, 3, 224, 224]
 */
export function preprocessImage(image: DecodedImage, spec: ImagePreprocessing): TensorValue {
  return imageTensor(transformImage(image, spec), spec)
}

/**
 * A colour as the processors fill with it: the mean of the training pixels, truncated to whole levels.
 *
 * @example
 * meanColour([0.5, 0.5, 0.5]) // [127, 127, 127]
 */
export function meanColour(mean: readonly [number, number, number]): Colour {
  const level = (value: number): number => Math.trunc(value * 255)
  return [level(mean[0]), level(mean[1]), level(mean[2])]
}
