/** Resizing pictures of floating-point numbers, as torchvision does with float tensors: nothing is rounded to 8 bits. */
import type { PictureSize } from './picture-size.ts'
import { type KernelFilter, kernels, taps } from './resize-kernels.ts'

/** Row-major, `data.length === 3 * width * height`. */
export interface FloatImage extends PictureSize {
  readonly data: Float32Array
}

/**
 * Antialiased, columns first. Within float32's rounding of torchvision's `resize(float image, (height, width), filter, antialias=True)`.
 *
 * @example
 * resizeFloat({ width: 2, height: 1, data: Float32Array.of(0, 0, 0, 1, 1, 1) }, { width: 1, height: 1 }, 'bilinear').data // [0.5, 0.5, 0.5]
 */
export function resizeFloat(image: FloatImage, { width, height }: PictureSize, filter: KernelFilter): FloatImage {
  const across = resizeAxis(image.data, image.height, image.width, width, 3, filter)
  return { width, height, data: resizeAxis(across, 1, image.height, height, 3 * width, filter) }
}

/** data [outer, size, inner] -> [outer, newSize, inner]. */
function resizeAxis(data: Float32Array, outer: number, size: number, newSize: number, inner: number, filter: KernelFilter): Float32Array {
  if (size === newSize) return data
  const { stride, starts, counts, weights } = taps(size, newSize, kernels[filter], 0, newSize)
  const result = new Float32Array(outer * newSize * inner)
  const sums = new Float64Array(inner)
  for (let block = 0; block < outer; block++) {
    for (let position = 0; position < newSize; position++) {
      sums.fill(0)
      const count = counts[position] ?? 0
      for (let tap = 0; tap < count; tap++) {
        const weight = weights[position * stride + tap] ?? 0
        const from = (block * size + (starts[position] ?? 0) + tap) * inner
        for (let i = 0; i < inner; i++) sums[i] = (sums[i] ?? 0) + weight * (data[from + i] ?? 0)
      }
      result.set(sums, (block * newSize + position) * inner)
    }
  }
  return result
}
