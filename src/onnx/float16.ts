/** IEEE 754 half precision, as bits: Node 20 has no Float16Array. */

const bits = new Uint32Array(1)
const float = new Float32Array(bits.buffer)

/**
 * The bits of the nearest float16, ties to even, as NumPy and C round. Above 65519.99 the result is infinite; NaN stays NaN.
 *
 * @example
 * toFloat16Bits(1) // 0x3c00
 */
export function toFloat16Bits(value: number): number {
  float[0] = value
  const pattern = bits[0] ?? 0
  const sign = (pattern >>> 16) & 0x8000
  const magnitude = pattern & 0x7fffffff
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >>> 13) & 0x1ff)
  if (magnitude >= 0x477ff000) return sign | 0x7c00
  if (magnitude < 0x38800000) {
    // Subnormal in half precision: a multiple of 2^-24. Scaling is exact, and adding 2^52 leaves an integer rounded to even.
    float[0] = value < 0 ? -value : value
    return sign | ((float[0] ?? 0) * 2 ** 24 + 2 ** 52 - 2 ** 52)
  }
  // Drop 13 mantissa bits; half a unit less one, plus the last kept bit, rounds ties to even. A carry moves into the exponent, as it should.
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13)
}

/**
 * @example
 * fromFloat16Bits(0x3c00) // 1
 */
export function fromFloat16Bits(half: number): number {
  const sign = half & 0x8000 ? -1 : 1
  const exponent = (half >>> 10) & 0x1f
  const fraction = half & 0x3ff
  if (exponent === 0) return sign * fraction * 2 ** -24
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}
