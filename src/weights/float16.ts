import { ModalignError, unreachable } from '../errors.ts'
import type { TensorValue } from '../tensors.ts'
import { simdHalves } from './float16-simd.ts'

/**
 * Exact conversions between float32 and the two 16-bit formats, which travel as their bits: float16 (IEEE 754 binary16: 5 exponent bits, 10 fraction bits) and
 * bfloat16 (the upper half of a float32: 8 and 7). To fewer bits they round to the nearest value, ties to even, as hardware does.
 */

const float = new Float32Array(1)
const bits = new Uint32Array(float.buffer)

function bitsOf(value: number): number {
  float[0] = value
  return bits[0] ?? 0
}

/** A number (rounded to float32 first) as float16 bits. From 65520 on, magnitudes become infinity; NaN stays NaN (quiet, sign kept). */
export function float16Bits(value: number): number {
  const word = bitsOf(value)
  const sign = (word >>> 16) & 0x8000
  const magnitude = word & 0x7fff_ffff
  if (magnitude > 0x7f80_0000) return sign | 0x7e00
  if (magnitude >= 0x477f_f000) return sign | 0x7c00
  if (magnitude >= 0x3880_0000) return sign | roundShift(magnitude - 0x3800_0000, 13)
  // Subnormal: units of 2^-24. The implied bit is made explicit and shifted out by the missing exponent; below half a unit nothing is left.
  const shift = 126 - (magnitude >>> 23)
  if (shift > 24) return sign
  return sign | roundShift((magnitude & 0x7f_ffff) | 0x80_0000, shift)
}

/** A number (rounded to float32 first) as bfloat16 bits. NaN stays NaN (quiet, sign kept). */
export function bfloat16Bits(value: number): number {
  const word = bitsOf(value)
  if ((word & 0x7fff_ffff) > 0x7f80_0000) return ((word >>> 16) & 0x8000) | 0x7fc0
  return roundShift(word >>> 0, 16)
}

/** `value / 2^shift`, to the nearest, ties to even. */
function roundShift(value: number, shift: number): number {
  const kept = value >>> shift
  const rest = value & ((1 << shift) - 1)
  const half = 1 << (shift - 1)
  return rest > half || (rest === half && (kept & 1) === 1) ? kept + 1 : kept
}

/** The float32 that float16 bits stand for: always exact. */
export function fromFloat16Bits(half: number): number {
  bits[0] = float16Word(half)
  return float[0] ?? 0
}

/** The float32 that bfloat16 bits stand for: always exact. */
export function fromBfloat16Bits(brain: number): number {
  bits[0] = brain << 16
  return float[0] ?? 0
}

/** The bits of the float32. */
function float16Word(half: number): number {
  const sign = (half & 0x8000) << 16
  const exponent = (half >>> 10) & 0x1f
  const fraction = half & 0x3ff
  if (exponent === 0x1f) return sign | 0x7f80_0000 | (fraction << 13)
  if (exponent !== 0) return sign | ((exponent + 112) << 23) | (fraction << 13)
  if (fraction === 0) return sign
  // fraction x 2^-24, normalised: its highest set bit becomes the implied one.
  const leading = Math.clz32(fraction) - 21
  return sign | ((113 - leading) << 23) | (((fraction << leading) & 0x3ff) << 13)
}

let words: Uint32Array | undefined

/** All 65,536 answers (256 KiB), made at first use: one load an element instead of branches. */
function float16Words(): Uint32Array {
  words ??= Uint32Array.from({ length: 65_536 }, (_, half) => float16Word(half))
  return words
}

/**
 * The values of a tensor as float32. float32 comes back as it is (no copy); float16 and bfloat16 are exact; float64 and integers beyond 2^24 are rounded.
 *
 * @example
 * toFloat32({ dtype: 'bfloat16', dims: [1], data: new Uint16Array([0x3f80]) }) // Float32Array [1]
 */
export function toFloat32(value: TensorValue): Float32Array {
  switch (value.dtype) {
    case 'float32':
      return value.data
    case 'float16': {
      const table = float16Words()
      const out = new Uint32Array(value.data.length)
      for (let i = 0; i < out.length; i++) out[i] = table[value.data[i] ?? 0] ?? 0
      return new Float32Array(out.buffer)
    }
    case 'bfloat16': {
      const out = new Uint32Array(value.data.length)
      for (let i = 0; i < out.length; i++) out[i] = (value.data[i] ?? 0) << 16
      return new Float32Array(out.buffer)
    }
    case 'int64':
    case 'uint64': {
      const out = new Float32Array(value.data.length)
      for (let i = 0; i < out.length; i++) out[i] = Number(value.data[i] ?? 0n)
      return out
    }
    case 'float64':
    case 'int32':
    case 'int16':
    case 'int8':
    case 'uint32':
    case 'uint16':
    case 'uint8':
    case 'bool':
      return Float32Array.from(value.data)
    default:
      return unreachable(`dtype ${JSON.stringify(value)}`)
  }
}

/** Fewer are not worth the way through the program's memory. */
const enoughForVectors = 64
/** 65520 as the bits of a float32: from here on rounding gives infinity. */
const overflow = 0x477f_f000

/**
 * float32 values as float16 bits.
 *
 * @throws ModalignError `FLOAT16_OVERFLOW` for a finite value whose magnitude is 65520 or more: it would silently become infinite
 * @example
 * toFloat16(new Float32Array([1, -2])) // Uint16Array [0x3c00, 0xc000]
 */
export function toFloat16(values: Float32Array): Uint16Array {
  const out = new Uint16Array(values.length)
  if (roundToFloat16(values, out) < overflow) return out
  const place = values.findIndex((value) => Math.abs(value) >= 65_520 && Number.isFinite(value))
  if (place < 0) return out
  throw new ModalignError({
    code: 'FLOAT16_OVERFLOW',
    got: `${values[place]} at element ${place}`,
    expected: 'magnitudes below 65520',
    hint: 'keep this tensor in float32 or bfloat16',
  })
}

/**
 * Writes float32 values as float16 bits; what is too large becomes infinity.
 *
 * @returns the largest magnitude as the bits of a float32, which are ordered as magnitudes are, NaN above infinity
 */
export function roundToFloat16(values: Float32Array, out: Uint16Array): number {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length)
  const fast = words.length >= enoughForVectors ? simdHalves(words, out) : undefined
  if (fast !== undefined && fast < overflow) return fast
  let largest = 0
  for (let i = 0; i < words.length; i++) {
    const magnitude = (words[i] ?? 0) & 0x7fff_ffff
    if (magnitude > largest) largest = magnitude
    out[i] = float16Bits(values[i] ?? 0)
  }
  return largest
}

/**
 * float32 values as bfloat16 bits.
 *
 * @example
 * toBfloat16(new Float32Array([1, -2])) // Uint16Array [0x3f80, 0xc000]
 */
export function toBfloat16(values: Float32Array): Uint16Array {
  const out = new Uint16Array(values.length)
  for (let i = 0; i < out.length; i++) out[i] = bfloat16Bits(values[i] ?? 0)
  return out
}
