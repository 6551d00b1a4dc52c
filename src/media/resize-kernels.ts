/** What resampling filters weigh: the taps of one axis, as Pillow and as PyTorch compute them. */

/** Pillow's resampling filters by name. Hugging Face's `resample` codes: nearest 0, lanczos 1, bilinear 2, bicubic 3, box 4, hamming 5. */
export type ResampleFilter = 'nearest' | 'lanczos' | 'bilinear' | 'bicubic' | 'box' | 'hamming'
/** The filters that weigh several pixels. */
export type KernelFilter = Exclude<ResampleFilter, 'nearest'>

export interface Kernel {
  readonly support: number
  weight(x: number): number
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI)
}

export const kernels: Readonly<Record<KernelFilter, Kernel>> = {
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

/** For each output position: where its input positions begin, how many they are, and their weights, which sum to 1, at `[position * stride]`. */
export interface Taps {
  readonly stride: number
  readonly starts: Int32Array
  readonly counts: Int32Array
  readonly weights: Float64Array
}

/**
 * The taps of the output positions `from .. from + count - 1`: Pillow's `precompute_coeffs` (src/libImaging/Resample.c), which PyTorch's antialiased kernels repeat.
 * Shrinking widens the kernel; enlarging does not narrow it.
 */
export function taps(inputSize: number, outputSize: number, kernel: Kernel, from: number, count: number): Taps {
  const scale = inputSize / outputSize
  const filterScale = Math.max(1, scale)
  const support = kernel.support * filterScale
  const stride = Math.ceil(support) * 2 + 1
  const starts = new Int32Array(count)
  const counts = new Int32Array(count)
  const weights = new Float64Array(count * stride)
  const inverse = 1 / filterScale
  for (let position = 0; position < count; position++) {
    const center = (from + position + 0.5) * scale
    const start = Math.max(0, Math.trunc(center - support + 0.5))
    const size = Math.min(inputSize, Math.trunc(center + support + 0.5)) - start
    const at = position * stride
    let sum = 0
    for (let tap = 0; tap < size; tap++) {
      const weight = kernel.weight((tap + start - center + 0.5) * inverse)
      weights[at + tap] = weight
      sum += weight
    }
    if (sum !== 0) for (let tap = 0; tap < size; tap++) weights[at + tap] = (weights[at + tap] ?? 0) / sum
    starts[position] = start
    counts[position] = size
  }
  return { stride, starts, counts, weights }
}

/** {@link Taps} with integer weights of `precisionBits` fractional bits. */
export interface FixedTaps extends Omit<Taps, 'weights'> {
  readonly precisionBits: number
  readonly weights: Int32Array
}

/** Pillow: 8 bits for the pixel, 2 for the kernel's overshoot, of 32. */
const pillowPrecisionBits = 32 - 8 - 2

/** Pillow's `normalize_coeffs_8bpc`. */
export function pillowTaps(inputSize: number, outputSize: number, kernel: Kernel, from: number, count: number): FixedTaps {
  const exact = taps(inputSize, outputSize, kernel, from, count)
  return { ...exact, precisionBits: pillowPrecisionBits, weights: rounded(exact.weights, pillowPrecisionBits) }
}

/**
 * PyTorch's weights for 8-bit pixels (ATen/native/cpu/UpSampleKernel.cpp): of 16 bits, with as many fractional bits as the largest weight of the *whole* axis
 * leaves room for.
 */
export function torchvisionTaps(inputSize: number, outputSize: number, kernel: Kernel, from: number, count: number): FixedTaps {
  const exact = taps(inputSize, outputSize, kernel, 0, outputSize)
  const largest = exact.weights.reduce((most, weight) => Math.max(most, weight), 0)
  let precisionBits = 0
  while (precisionBits < pillowPrecisionBits && Math.trunc(0.5 + largest * 2 ** (precisionBits + 1)) < 2 ** 15) precisionBits++
  const weights = rounded(exact.weights, precisionBits)
  return {
    precisionBits,
    stride: exact.stride,
    starts: exact.starts.subarray(from, from + count),
    counts: exact.counts.subarray(from, from + count),
    weights: weights.subarray(from * exact.stride, (from + count) * exact.stride),
  }
}

function rounded(weights: Float64Array, precisionBits: number): Int32Array {
  const one = 2 ** precisionBits
  const fixed = new Int32Array(weights.length)
  for (let at = 0; at < fixed.length; at++) {
    const weight = weights[at] ?? 0
    fixed[at] = Math.trunc(weight * one + (weight < 0 ? -0.5 : 0.5))
  }
  return fixed
}

/** Pillow's nearest neighbour (`ImagingScaleAffine`): positions accumulate by addition, as there, so that rounding is the same. */
export function pillowNearest(inputSize: number, outputSize: number, from: number, count: number): Int32Array {
  const step = inputSize / outputSize
  const positions = new Int32Array(count)
  let at = step * 0.5
  for (let position = 0; position < from + count; position++) {
    if (position >= from) positions[position - from] = Math.min(inputSize - 1, Math.trunc(at))
    at += step
  }
  return positions
}

/** PyTorch's `nearest-exact`, which torchvision's processors take for Pillow's nearest: positions in single precision. */
export function torchvisionNearest(inputSize: number, outputSize: number, from: number, count: number): Int32Array {
  const step = Math.fround(inputSize / outputSize)
  return Int32Array.from({ length: count }, (_, index) => Math.min(inputSize - 1, Math.floor(Math.fround((from + index + 0.5) * step))))
}
