/** OpenCV's `resize` with INTER_LINEAR, for encoders whose training read pictures with OpenCV: two pixels each way, no antialiasing, weights in 11 bits. */
import { ModalignError } from '../errors.ts'
import type { DecodedImage } from '../model/contracts.ts'
import type { PictureSize } from './picture-size.ts'

const one = 2048

interface Taps {
  readonly low: Int32Array
  readonly high: Int32Array
  readonly lowWeight: Int32Array
  readonly highWeight: Int32Array
}

/**
 * Where each new pixel's two sources lie, in float32 as OpenCV reckons. Beyond an edge there is one source; across, it has all the weight, and down, both weights, whose products are
 * rounded apart.
 */
function tapsOf(length: number, newLength: number, direction: 'across' | 'down'): Taps {
  const scale = 1 / (newLength / length)
  const make = () => new Int32Array(newLength)
  const taps = { low: make(), high: make(), lowWeight: make(), highWeight: make() }
  for (let at = 0; at < newLength; at++) {
    const place = Math.fround((at + 0.5) * scale - 0.5)
    const low = Math.floor(place)
    const inside = low >= 0 && low < length - 1
    const share = inside || direction === 'down' ? Math.fround(place - low) : 0
    taps.low[at] = Math.min(length - 1, Math.max(0, low))
    taps.high[at] = Math.min(length - 1, Math.max(0, low + 1))
    taps.lowWeight[at] = halfToEven(Math.fround(Math.fround(1 - share) * one))
    taps.highWeight[at] = halfToEven(Math.fround(share * one))
  }
  return taps
}

function halfToEven(value: number): number {
  const below = Math.floor(value)
  if (value - below !== 0.5) return Math.round(value)
  return below % 2 === 0 ? below : below + 1
}

/**
 * The picture at another size, pixel for pixel as `cv2.resize(image, (width, height))` gives it on 8 bits. Halving both ways is the mean of four, as OpenCV has it.
 *
 * @throws {ModalignError} `IMAGE_DIMENSIONS` for a size without pixels
 * @example
 * resizeOpenCv(line, { width: 128, height: 48 })
 */
export function resizeOpenCv(image: DecodedImage, { width, height }: PictureSize): DecodedImage {
  if (!(Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0))
    throw new ModalignError({ code: 'IMAGE_DIMENSIONS', got: `${width} x ${height}`, expected: 'whole numbers of at least 1' })
  if (width === image.width && height === image.height) return image
  if (image.width === 2 * width && image.height === 2 * height) return halved(image, { width, height })
  const across = tapsOf(image.width, width, 'across')
  const rowOf = (row: number): Int32Array => {
    const result = new Int32Array(3 * width)
    const from = row * image.width * 3
    for (let x = 0, at = 0; x < width; x++) {
      const [low, high] = [from + (across.low[x] ?? 0) * 3, from + (across.high[x] ?? 0) * 3]
      const [a, b] = [across.lowWeight[x] ?? 0, across.highWeight[x] ?? 0]
      for (let channel = 0; channel < 3; channel++)
        result[at++] = (image.data[low + channel] ?? 0) * a + (image.data[high + channel] ?? 0) * b
    }
    return result
  }
  const down = tapsOf(image.height, height, 'down')
  const data = new Uint8Array(3 * width * height)
  // Rows follow one another: the last two are all that is ever needed.
  let known: readonly (readonly [number, Int32Array])[] = []
  for (let y = 0, at = 0; y < height; y++) {
    const wanted = [down.low[y] ?? 0, down.high[y] ?? 0]
    known = wanted.map((row) => known.find(([have]) => have === row) ?? ([row, rowOf(row)] as const))
    const [upper, lower] = [known[0]?.[1], known[1]?.[1]]
    const [a, b] = [down.lowWeight[y] ?? 0, down.highWeight[y] ?? 0]
    for (let place = 0; place < 3 * width; place++) {
      const sum = ((((upper?.[place] ?? 0) >> 4) * a) >> 16) + ((((lower?.[place] ?? 0) >> 4) * b) >> 16)
      data[at++] = (sum + 2) >> 2
    }
  }
  return { width, height, data }
}

function halved(image: DecodedImage, { width, height }: PictureSize): DecodedImage {
  const data = new Uint8Array(3 * width * height)
  const value = (x: number, y: number, channel: number): number => image.data[(y * image.width + x) * 3 + channel] ?? 0
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let channel = 0; channel < 3; channel++)
        data[at++] =
          (value(2 * x, 2 * y, channel) +
            value(2 * x + 1, 2 * y, channel) +
            value(2 * x, 2 * y + 1, channel) +
            value(2 * x + 1, 2 * y + 1, channel) +
            2) >>
          2
  return { width, height, data }
}
