/** Cutting and padding 8-bit RGB. */
import { ModalignError } from '../errors.ts'
import type { DecodedImage, Region } from '../model/contracts.ts'
import type { Window } from './resize.ts'

/** An RGB colour, 0 to 255 each. */
export type Colour = readonly [red: number, green: number, blue: number]

/**
 * Where Hugging Face's `center_crop` cuts: the odd pixel stays at the right and at the bottom. `left` and `top` are negative where the image is smaller than the
 * crop; then the odd pixel of the padding comes before the image with Pillow's processors, and after it with torchvision's.
 *
 * @example
 * centreWindow({ width: 7, height: 4 }, { width: 4, height: 4 }) // { left: 1, top: 0, width: 4, height: 4 }
 */
export function centreWindow(
  image: { readonly width: number; readonly height: number },
  crop: { readonly width: number; readonly height: number; readonly halves?: 'down' | 'even' | undefined },
  processor: 'pillow' | 'torchvision' | 'torchvision-float' = 'pillow',
): Window {
  const before = (size: number, cropSize: number): number => {
    const half = (size - cropSize) / 2
    // Python's round: halves go to the even neighbour.
    if (size >= cropSize) return crop.halves === 'even' && half % 2 === 1.5 ? Math.ceil(half) : Math.floor(half)
    return processor === 'pillow' ? -Math.ceil((cropSize - size) / 2) : -Math.floor((cropSize - size) / 2)
  }
  return { left: before(image.width, crop.width), top: before(image.height, crop.height), width: crop.width, height: crop.height }
}

/**
 * The smallest square around an image, the odd pixel of the padding after it (LLaVA's `expand2square`).
 *
 * @example
 * squareWindow({ width: 4, height: 1 }) // { left: 0, top: -1, width: 4, height: 4 }
 */
export function squareWindow({ width, height }: { readonly width: number; readonly height: number }): Window {
  const size = Math.max(width, height)
  return { left: 0 - Math.floor((size - width) / 2), top: 0 - Math.floor((size - height) / 2), width: size, height: size }
}

/**
 * Cuts a window out; what lies outside of the image becomes `fill` (default black, as Hugging Face's `center_crop`).
 *
 * @example
 * const image = { width: 2, height: 1, data: new Uint8Array([1, 2, 3, 4, 5, 6]) }
 * cropImage(image, { left: 1, top: 0, width: 1, height: 1 }).data // Uint8Array [4, 5, 6]
 */
export function cropImage(image: DecodedImage, window: Window, fill: Colour = [0, 0, 0]): DecodedImage {
  const { left, top, width, height } = window
  const data = filled(width, height, fill)
  const from = Math.max(0, left)
  const to = Math.min(image.width, left + width)
  for (let y = Math.max(0, top); y < Math.min(image.height, top + height) && from < to; y++) {
    data.set(image.data.subarray((y * image.width + from) * 3, (y * image.width + to) * 3), ((y - top) * width + (from - left)) * 3)
  }
  return { width, height, data }
}

/**
 * The part of a picture that a record's box names: all pixels that it touches.
 *
 * @throws {ModalignError} `IMAGE_REGION` for a box without pixels of the picture
 * @example
 * const line = cropToBox(page, { type: 'box', x: 40, y: 120, width: 300, height: 24 })
 */
export function cropToBox(image: DecodedImage, { x, y, width, height }: Extract<Region, { type: 'box' }>): DecodedImage {
  const [left, top] = [Math.max(0, Math.floor(x)), Math.max(0, Math.floor(y))]
  const [right, bottom] = [Math.min(image.width, Math.ceil(x + width)), Math.min(image.height, Math.ceil(y + height))]
  if (right > left && bottom > top && width > 0 && height > 0)
    return cropImage(image, { left, top, width: right - left, height: bottom - top })
  throw new ModalignError({
    code: 'IMAGE_REGION',
    got: `a box at ${x}, ${y} of ${width} x ${height}`,
    expected: `one with pixels of the picture, ${image.width} x ${image.height}`,
  })
}

/**
 * Makes an image square by adding stripes of `fill` on both sides of its shorter edge, the odd pixel after it (LLaVA's `expand2square`, which fills with the mean colour).
 *
 * @example
 * padToSquare({ width: 1, height: 2, data: new Uint8Array(6) }, [127, 127, 127]) // 2 x 2: the pixels' column, then one of grey
 */
export function padToSquare(image: DecodedImage, fill: Colour): DecodedImage {
  return image.width === image.height ? image : cropImage(image, squareWindow(image), fill)
}

function filled(width: number, height: number, fill: Colour): Uint8Array {
  const data = new Uint8Array(width * height * 3)
  if (fill.every((value) => value === 0)) return data
  for (let at = 0; at < data.length; at += 3) data.set(fill, at)
  return data
}
