/** To what size a picture is resized: Hugging Face's rules, value for value. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'

export interface PictureSize {
  readonly width: number
  readonly height: number
}

export const edge = z.int().min(1).max(16_384)
const pixels = z
  .int()
  .min(1)
  .max(2 ** 30)

/** How the size of a resized picture is found. */
export const sizeRuleSchema = z.union([
  /** Exactly this. */
  z.strictObject({ height: edge, width: edge }).readonly(),
  /** The shorter edge becomes this and the other keeps the proportion, rounded down. */
  z.strictObject({ shortestEdge: edge }).readonly(),
  /** Both edges become multiples, the area lies within the limits, and the proportion is kept as well as that allows (Qwen2-VL's `smart_resize`). */
  z.strictObject({ minPixels: pixels, maxPixels: pixels, multipleOf: edge }).readonly(),
  /** Both edges become multiples of a patch, as large as `maxPatches` patches allow (SigLIP 2's NaFlex). */
  z.strictObject({ patchSize: edge, maxPatches: z.int().min(1).max(65_536) }).readonly(),
])
export type SizeRule = z.infer<typeof sizeRuleSchema>

/** Qwen2-VL's own bound: beyond it a picture would be mostly rounding. */
const largestAspect = 200

/**
 * The size that a rule gives a picture.
 *
 * @throws {ModalignError} `IMAGE_ASPECT` where pixel limits meet a picture of more than 200 : 1.
 * @example
 * resizedSize({ width: 640, height: 480 }, { shortestEdge: 224 }) // { width: 298, height: 224 }
 */
export function resizedSize(picture: PictureSize, rule: SizeRule): PictureSize {
  if ('height' in rule) return { width: rule.width, height: rule.height }
  if ('shortestEdge' in rule) return byShortestEdge(picture, rule.shortestEdge)
  return 'multipleOf' in rule ? withinPixels(picture, rule) : withinPatches(picture, rule)
}

/** Hugging Face's `get_resize_output_image_size`: the longer edge is truncated, never rounded up. */
function byShortestEdge({ width, height }: PictureSize, short: number): PictureSize {
  return width <= height
    ? { width: short, height: Math.trunc((short * height) / width) }
    : { width: Math.trunc((short * width) / height), height: short }
}

interface PixelLimits {
  readonly minPixels: number
  readonly maxPixels: number
  readonly multipleOf: number
}

function withinPixels({ width, height }: PictureSize, { minPixels, maxPixels, multipleOf }: PixelLimits): PictureSize {
  if (Math.max(width, height) / Math.min(width, height) > largestAspect) {
    throw new ModalignError({ code: 'IMAGE_ASPECT', got: `${width} x ${height} pixels`, expected: `edges of at most ${largestAspect} : 1` })
  }
  const near = (size: number): number => roundHalfEven(size / multipleOf) * multipleOf
  const area = near(width) * near(height)
  if (area > maxPixels) {
    const shrink = Math.sqrt((height * width) / maxPixels)
    const below = (size: number): number => Math.max(multipleOf, Math.floor(size / shrink / multipleOf) * multipleOf)
    return { width: below(width), height: below(height) }
  }
  if (area < minPixels) {
    const grow = Math.sqrt(minPixels / (height * width))
    const above = (size: number): number => Math.ceil((size * grow) / multipleOf) * multipleOf
    return { width: above(width), height: above(height) }
  }
  return { width: near(width), height: near(height) }
}

/** As Python rounds: halves go to the even neighbour. */
function roundHalfEven(value: number): number {
  const floor = Math.floor(value)
  if (value - floor !== 0.5) return Math.round(value)
  return floor % 2 === 0 ? floor : floor + 1
}

/** A search for the largest scale, to 1e-5, as the processor does it: its result hangs on where the search stops. */
function withinPatches(
  { width, height }: PictureSize,
  { patchSize, maxPatches }: { readonly patchSize: number; readonly maxPatches: number },
): PictureSize {
  const tolerance = 1e-5
  const scaled = (size: number, scale: number): number => Math.max(patchSize, Math.ceil((size * scale) / patchSize) * patchSize)
  let [low, high] = [tolerance / 10, 100]
  while (high - low >= tolerance) {
    const scale = (low + high) / 2
    const patches = (scaled(height, scale) / patchSize) * (scaled(width, scale) / patchSize)
    if (patches <= maxPatches) low = scale
    else high = scale
  }
  return { width: scaled(width, low), height: scaled(height, low) }
}
