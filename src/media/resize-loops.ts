/** The two passes of a resize of 8-bit RGB in fixed point, as plain loops. `resize-simd.ts` has the same passes with vector instructions; the bytes are the same. */
import type { FixedTaps } from './resize-kernels.ts'

export interface RowsPass {
  /** `sourceWidth` pixels a row; its first pixel is column `left` of the picture that the taps speak of. */
  readonly source: Uint8Array | Uint8ClampedArray
  readonly sourceWidth: number
  readonly height: number
  readonly left: number
  /** Of the result. */
  readonly width: number
  readonly taps: FixedTaps
}

export interface ColumnsPass {
  /** `width` pixels a row; its first row is row `top` of the picture that the taps speak of. */
  readonly source: Uint8Array | Uint8ClampedArray
  readonly width: number
  readonly top: number
  /** Of the result. */
  readonly height: number
  readonly taps: FixedTaps
}

// `?? 0` below is for the type checker only: the reads are in bounds, and the compiled loops carry no test for it.

/** Every row, made `width` pixels wide. */
export function rows({ source, sourceWidth, height, left, width, taps }: RowsPass): Uint8ClampedArray<ArrayBuffer> {
  const { stride, starts, counts, weights, precisionBits } = taps
  const half = 1 << (precisionBits - 1)
  const data = new Uint8ClampedArray(height * width * 3)
  let out = 0
  for (let row = 0; row < height; row++) {
    const rowStart = row * sourceWidth - left
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
  return data
}

/** Every column, made `height` pixels high. */
export function columns({ source, width, top, height, taps }: ColumnsPass): Uint8ClampedArray<ArrayBuffer> {
  const { stride, starts, counts, weights, precisionBits } = taps
  const half = 1 << (precisionBits - 1)
  const rowLength = width * 3
  const data = new Uint8ClampedArray(height * rowLength)
  const sums = new Int32Array(rowLength)
  for (let y = 0; y < height; y++) {
    sums.fill(half)
    const count = counts[y] ?? 0
    const start = (starts[y] ?? 0) - top
    for (let row = 0; row < count; row++) {
      const weight = weights[y * stride + row] ?? 0
      const at = (start + row) * rowLength
      for (let i = 0; i < rowLength; i++) sums[i] = ((sums[i] ?? 0) + Math.imul(source[at + i] ?? 0, weight)) | 0
    }
    const out = y * rowLength
    for (let i = 0; i < rowLength; i++) data[out + i] = (sums[i] ?? 0) >> precisionBits
  }
  return data
}
