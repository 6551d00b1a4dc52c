/** Resizing 8-bit RGB exactly as Pillow does, byte for byte: encoders were trained on Pillow's pixels, and features drift under another resampler. */
import { ModalignError } from '../errors.ts'
import type { DecodedImage } from '../model/contracts.ts'

/** Pillow's resampling filters by name. Hugging Face's `resample` codes: nearest 0, lanczos 1, bilinear 2, bicubic 3, box 4, hamming 5. */
export type ResampleFilter = 'nearest' | 'lanczos' | 'bilinear' | 'bicubic' | 'box' | 'hamming'

/** A rectangle in pixels. */
export interface Window {
  readonly left: number
  readonly top: number
  readonly width: number
  readonly height: number
}

interface Kernel {
  readonly support: number
  weight(x: number): number
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI)
}

const kernels: Readonly<Record<Exclude<ResampleFilter, 'nearest'>, Kernel>> = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  hamming: {
    support: 1,
    weight: (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (Math.fround(0.54) + Math.fround(0.46) * Math.cos(x * Math.PI))),
  },
  bicubic: { support: 2, weight: cubic },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
}

/** Keys' cubic convolution with a = -0.5 (IEEE ASSP 29(6), 1981). */
function cubic(signed: number): number {
  const a = -0.5
  const x = Math.abs(signed)
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a
  return 0
}

/** Weights are integers with 22 fractional bits: 8 bits for the pixel, 2 for the kernel's overshoot, of 32. */
const precisionBits = 32 - 8 - 2
const half = 1 << (precisionBits - 1)

/** For each output position: where its input positions begin, how many they are, and their integer weights at `[position * stride]`. */
interface Taps {
  readonly stride: number
  readonly starts: Int32Array
  readonly counts: Int32Array
  readonly weights: Int32Array
}

/** Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc` (src/libImaging/Resample.c) for the output positions `from .. from + count - 1`. */
function taps(inputSize: number, outputSize: number, kernel: Kernel, from: number, count: number): Taps {
  const scale = inputSize / outputSize
  // Shrinking widens the kernel (antialiasing); enlarging does not narrow it.
  const filterScale = Math.max(1, scale)
  const support = kernel.support * filterScale
  const stride = Math.ceil(support) * 2 + 1
  const starts = new Int32Array(count)
  const counts = new Int32Array(count)
  const weights = new Int32Array(count * stride)
  const exact = new Float64Array(stride)
  const inverse = 1 / filterScale
  for (let position = 0; position < count; position++) {
    const center = (from + position + 0.5) * scale
    const start = Math.max(0, Math.trunc(center - support + 0.5))
    const size = Math.min(inputSize, Math.trunc(center + support + 0.5)) - start
    let sum = 0
    for (let tap = 0; tap < size; tap++) {
      const weight = kernel.weight((tap + start - center + 0.5) * inverse)
      exact[tap] = weight
      sum += weight
    }
    for (let tap = 0; tap < size; tap++) {
      const weight = (exact[tap] ?? 0) / (sum === 0 ? 1 : sum)
      weights[position * stride + tap] = Math.trunc(weight * (1 << precisionBits) + (weight < 0 ? -0.5 : 0.5))
    }
    starts[position] = start
    counts[position] = size
  }
  return { stride, starts, counts, weights }
}

// `?? 0` below is for the type checker only: the reads are in bounds, and the compiled loops carry no test for it.

/** A part of an image that a pass reads or writes: `data` holds `width` pixels a row; its first pixel is (`left`, `top`) of the whole. */
interface Part extends Window {
  readonly data: Uint8Array | Uint8ClampedArray
}

/** Every row of `part`, made `axis.size` pixels wide. */
function resizeRows(part: Part, axis: Axis, { stride, starts, counts, weights }: Taps): Part {
  const source = part.data
  const width = axis.size
  const data = new Uint8ClampedArray(part.height * width * 3)
  let out = 0
  for (let row = 0; row < part.height; row++) {
    const rowStart = row * part.width - part.left
    for (let x = 0; x < width; x++) {
      let red = half
      let green = half
      let blue = half
      let at = (rowStart + (starts[x] ?? 0)) * 3
      let weightAt = x * stride
      const end = weightAt + (counts[x] ?? 0)
      while (weightAt < end) {
        const weight = weights[weightAt++] ?? 0
        red = (red + Math.imul(source[at] ?? 0, weight)) | 0
        green = (green + Math.imul(source[at + 1] ?? 0, weight)) | 0
        blue = (blue + Math.imul(source[at + 2] ?? 0, weight)) | 0
        at += 3
      }
      // The shift rounds down as C's does; the clamped array then clips to 0..255.
      data[out] = red >> precisionBits
      data[out + 1] = green >> precisionBits
      data[out + 2] = blue >> precisionBits
      out += 3
    }
  }
  return { ...part, left: axis.from, width, data }
}

/** Every column of `part`, made `axis.size` pixels high. */
function resizeColumns(part: Part, axis: Axis, { stride, starts, counts, weights }: Taps): Part {
  const source = part.data
  const height = axis.size
  const rowLength = part.width * 3
  const data = new Uint8ClampedArray(height * rowLength)
  const sums = new Int32Array(rowLength)
  for (let y = 0; y < height; y++) {
    sums.fill(half)
    const count = counts[y] ?? 0
    const start = (starts[y] ?? 0) - part.top
    for (let row = 0; row < count; row++) {
      const weight = weights[y * stride + row] ?? 0
      const at = (start + row) * rowLength
      for (let i = 0; i < rowLength; i++) sums[i] = ((sums[i] ?? 0) + Math.imul(source[at + i] ?? 0, weight)) | 0
    }
    const out = y * rowLength
    for (let i = 0; i < rowLength; i++) data[out + i] = (sums[i] ?? 0) >> precisionBits
  }
  return { ...part, top: axis.from, height, data }
}

/** One direction of a resize: `inputSize` becomes `outputSize`, of which `from .. from + size - 1` are wanted. */
interface Axis {
  readonly inputSize: number
  readonly outputSize: number
  readonly from: number
  readonly size: number
}

/** Which input positions the wanted part needs, and their taps; no taps where nothing changes, because Pillow skips such a pass. */
function plan(axis: Axis, kernel: Kernel): { readonly first: number; readonly count: number; readonly taps?: Taps } {
  if (axis.inputSize === axis.outputSize) return { first: axis.from, count: axis.size }
  const found = taps(axis.inputSize, axis.outputSize, kernel, axis.from, axis.size)
  const first = found.starts[0] ?? 0
  return { first, count: (found.starts.at(-1) ?? 0) + (found.counts.at(-1) ?? 0) - first, taps: found }
}

function resizeFiltered(image: DecodedImage, width: number, height: number, kernel: Kernel, view: Window): DecodedImage {
  const columns: Axis = { inputSize: image.width, outputSize: width, from: view.left, size: view.width }
  const rows: Axis = { inputSize: image.height, outputSize: height, from: view.top, size: view.height }
  const horizontal = plan(columns, kernel)
  const vertical = plan(rows, kernel)
  let part: Part = cutOut(image, { left: horizontal.first, top: vertical.first, width: horizontal.count, height: vertical.count })
  const removedRows = image.height - height
  const verticalFirst = removedRows > 0 && removedRows > 2 * (image.width - width)
  if (verticalFirst && vertical.taps !== undefined) part = resizeColumns(part, rows, vertical.taps)
  if (horizontal.taps !== undefined) part = resizeRows(part, columns, horizontal.taps)
  if (!verticalFirst && vertical.taps !== undefined) part = resizeColumns(part, rows, vertical.taps)
  // A result never shares its bytes with the input, not even where no pass ran.
  const data = part.data instanceof Uint8Array ? part.data.slice() : new Uint8Array(part.data.buffer)
  return { width: view.width, height: view.height, data }
}

/** The named part; a view where it takes whole rows. */
function cutOut(image: DecodedImage, window: Window): Part {
  const { left, top, width, height } = window
  if (width === image.width) return { ...window, data: image.data.subarray(top * width * 3, (top + height) * width * 3) }
  const data = new Uint8Array(width * height * 3)
  for (let row = 0; row < height; row++) {
    const at = ((top + row) * image.width + left) * 3
    data.set(image.data.subarray(at, at + width * 3), row * width * 3)
  }
  return { ...window, data }
}

/** Pillow's nearest neighbour (`ImagingScaleAffine`): positions accumulate by addition, as there, so that rounding is the same. */
function nearestPositions(inputSize: number, outputSize: number, from: number, count: number): Int32Array {
  const step = inputSize / outputSize
  const positions = new Int32Array(count)
  let at = step * 0.5
  for (let position = 0; position < from + count; position++) {
    if (position >= from) positions[position - from] = Math.min(inputSize - 1, Math.trunc(at))
    at += step
  }
  return positions
}

function resizeNearest(image: DecodedImage, width: number, height: number, window: Window): DecodedImage {
  const columns = nearestPositions(image.width, width, window.left, window.width)
  const rows = nearestPositions(image.height, height, window.top, window.height)
  const data = new Uint8Array(window.width * window.height * 3)
  const source = image.data
  let out = 0
  for (let y = 0; y < window.height; y++) {
    const rowStart = (rows[y] ?? 0) * image.width
    for (let x = 0; x < window.width; x++) {
      const at = (rowStart + (columns[x] ?? 0)) * 3
      data[out] = source[at] ?? 0
      data[out + 1] = source[at + 1] ?? 0
      data[out + 2] = source[at + 2] ?? 0
      out += 3
    }
  }
  return { width: window.width, height: window.height, data }
}

/**
 * Resizes 8-bit RGB to `width` x `height`; every byte equals Pillow 13's `Image.resize((width, height), filter)`: two passes,
 * each in 22-bit fixed point and rounded to 8 bits; shrinking antialiases. The vertical pass comes first where it removes more than twice
 * as many rows as the other removes columns (before Pillow 13 it never did, which moves some pixels of such images by one level).
 *
 * With `window`, only that part of the result is computed: the same bytes as resizing and then cropping, for less work.
 *
 * @throws {ModalignError} `IMAGE_DIMENSIONS` when a size is not a positive integer or the window leaves the result.
 *
 * @example
 * const grey = { width: 2, height: 1, data: new Uint8Array([0, 0, 0, 255, 255, 255]) }
 * resizeImage(grey, { width: 1, height: 1, filter: 'box' }).data // Uint8Array [128, 128, 128]
 */
export function resizeImage(
  image: DecodedImage,
  {
    width,
    height,
    filter,
    window,
  }: { readonly width: number; readonly height: number; readonly filter: ResampleFilter; readonly window?: Window },
): DecodedImage {
  const view = window ?? { left: 0, top: 0, width, height }
  checkSize(width, height)
  checkSize(view.width, view.height)
  if (
    ![view.left, view.top].every((at) => Number.isInteger(at) && at >= 0) ||
    view.left + view.width > width ||
    view.top + view.height > height
  ) {
    throw new ModalignError({
      code: 'IMAGE_DIMENSIONS',
      got: `a window ${view.width}x${view.height} at ${view.left},${view.top}`,
      expected: `a window within ${width}x${height}`,
    })
  }
  if (filter === 'nearest') return resizeNearest(image, width, height, view)

  return resizeFiltered(image, width, height, kernels[filter], view)
}

function checkSize(width: number, height: number): void {
  if ([width, height].every((size) => Number.isInteger(size) && size > 0)) return
  throw new ModalignError({ code: 'IMAGE_DIMENSIONS', got: `${width}x${height}`, expected: 'a width and a height of at least 1 pixel' })
}
