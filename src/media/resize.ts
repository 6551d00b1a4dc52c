/**
 * Resizing 8-bit RGB exactly as Pillow or torchvision does, byte for byte: encoders were trained on one's pixels, and features drift under another resampler.
 */
import { ModalignError } from '../errors.ts'
import type { DecodedImage } from '../model/contracts.ts'
import type { PictureSize } from './picture-size.ts'
import {
  type FixedTaps,
  type Kernel,
  kernels,
  pillowNearest,
  pillowTaps,
  type ResampleFilter,
  torchvisionNearest,
  torchvisionTaps,
} from './resize-kernels.ts'
import { columns, rows } from './resize-loops.ts'
import { simdColumns, simdRows } from './resize-simd.ts'

export type { ResampleFilter } from './resize-kernels.ts'

/** Whose rounding: Pillow's, or that of torchvision on 8-bit tensors (on a CPU with AVX2). They differ by one level in fewer than one pixel of a hundred. */
export type ResizeArithmetic = 'pillow' | 'torchvision'

/** A rectangle in pixels. */
export interface Window {
  readonly left: number
  readonly top: number
  readonly width: number
  readonly height: number
}

/** A part of an image that a pass reads or writes: `data` holds `width` pixels a row; its first pixel is (`left`, `top`) of the whole. */
interface Part extends Window {
  readonly data: Uint8Array | Uint8ClampedArray
}

/** Every row of `part`, made `axis.size` pixels wide. */
function resizeRows(part: Part, axis: Axis, taps: FixedTaps): Part {
  const pass = { source: part.data, sourceWidth: part.width, height: part.height, left: part.left, width: axis.size, taps }
  return { ...part, left: axis.from, width: axis.size, data: simdRows(pass) ?? rows(pass) }
}

/** Every column of `part`, made `axis.size` pixels high. */
function resizeColumns(part: Part, axis: Axis, taps: FixedTaps): Part {
  const pass = { source: part.data, width: part.width, top: part.top, height: axis.size, taps }
  return { ...part, top: axis.from, height: axis.size, data: simdColumns(pass) ?? columns(pass) }
}

/** One direction of a resize: `inputSize` becomes `outputSize`, of which `from .. from + size - 1` are wanted. */
interface Axis {
  readonly inputSize: number
  readonly outputSize: number
  readonly from: number
  readonly size: number
}

/** Which input positions the wanted part needs, and their taps; no taps where nothing changes, because such a pass is skipped. */
function plan(
  axis: Axis,
  kernel: Kernel,
  arithmetic: ResizeArithmetic,
): { readonly first: number; readonly count: number; readonly taps?: FixedTaps } {
  if (axis.inputSize === axis.outputSize) return { first: axis.from, count: axis.size }
  const find = arithmetic === 'pillow' ? pillowTaps : torchvisionTaps
  const found = find(axis.inputSize, axis.outputSize, kernel, axis.from, axis.size)
  const first = found.starts[0] ?? 0
  return { first, count: (found.starts.at(-1) ?? 0) + (found.counts.at(-1) ?? 0) - first, taps: found }
}

function resizeFiltered(
  image: DecodedImage,
  { width, height, filter, arithmetic }: PictureSize & { readonly filter: Kernel; readonly arithmetic: ResizeArithmetic },
  view: Window,
): DecodedImage {
  const across: Axis = { inputSize: image.width, outputSize: width, from: view.left, size: view.width }
  const down: Axis = { inputSize: image.height, outputSize: height, from: view.top, size: view.height }
  const horizontal = plan(across, filter, arithmetic)
  const vertical = plan(down, filter, arithmetic)
  const removedRows = image.height - height
  const verticalFirst = arithmetic === 'pillow' && removedRows > 0 && removedRows > 2 * (image.width - width)
  const needed = { left: horizontal.first, top: vertical.first, width: horizontal.count, height: vertical.count }
  // A first pass along rows reads what it needs of them.
  let part: Part = cutOut(image, verticalFirst || horizontal.taps === undefined ? needed : { ...needed, left: 0, width: image.width })
  if (verticalFirst && vertical.taps !== undefined) part = resizeColumns(part, down, vertical.taps)
  if (horizontal.taps !== undefined) part = resizeRows(part, across, horizontal.taps)
  if (!verticalFirst && vertical.taps !== undefined) part = resizeColumns(part, down, vertical.taps)
  // A result never shares its bytes with the input, not even where no pass ran, nor with the program of the passes.
  const data = new Uint8Array(part.data)
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

function resizeNearest(image: DecodedImage, { width, height, arithmetic = 'pillow' }: ResizeOptions, window: Window): DecodedImage {
  const nearestPositions = arithmetic === 'pillow' ? pillowNearest : torchvisionNearest
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

export interface ResizeOptions extends PictureSize {
  readonly filter: ResampleFilter
  /** Default `pillow`. (torchvision itself has no `box` and no `hamming`.) */
  readonly arithmetic?: ResizeArithmetic | undefined
  /** Only this part of the result is computed: the same bytes as resizing and then cropping, for less work. */
  readonly window?: Window | undefined
}

/**
 * Resizes 8-bit RGB to `width` x `height`; shrinking antialiases. Every byte equals Pillow 13's `Image.resize((width, height), filter)`: two passes, each in 22-bit
 * fixed point and rounded to 8 bits. The vertical pass comes first where it removes more than twice as many rows as the other removes columns (before
 * Pillow 13 it never did, which moves some pixels of such images by one level). With `arithmetic: 'torchvision'`, every byte equals torchvision 0.29's
 * `resize(image, (height, width), filter, antialias=True)`, whose weights have 16 bits.
 *
 * @throws {ModalignError} `IMAGE_DIMENSIONS` when a size is not a positive integer or the window leaves the result.
 *
 * @example
 * const grey = { width: 2, height: 1, data: new Uint8Array([0, 0, 0, 255, 255, 255]) }
 * resizeImage(grey, { width: 1, height: 1, filter: 'box' }).data // Uint8Array [128, 128, 128]
 */
export function resizeImage(image: DecodedImage, options: ResizeOptions): DecodedImage {
  const { width, height, filter, arithmetic = 'pillow' } = options
  const view = options.window ?? { left: 0, top: 0, width, height }
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
  if (filter === 'nearest') return resizeNearest(image, options, view)
  return resizeFiltered(image, { width, height, filter: kernels[filter], arithmetic }, view)
}

function checkSize(width: number, height: number): void {
  if ([width, height].every((size) => Number.isInteger(size) && size > 0)) return
  throw new ModalignError({ code: 'IMAGE_DIMENSIONS', got: `${width}x${height}`, expected: 'a width and a height of at least 1 pixel' })
}
