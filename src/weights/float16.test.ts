import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { bfloat16Bits, float16Bits, fromBfloat16Bits, fromFloat16Bits, toBfloat16, toFloat16, toFloat32 } from './float16.ts'
import { simdHalves } from './float16-simd.ts'

const bytes = z.string().transform((text) => new Uint8Array(Buffer.from(text, 'base64')))
const fixture = z
  .object({
    float32OfFloat16: z.string(),
    float32OfBfloat16: z.string(),
    midpoints: z.object({ count: z.number(), inputs: z.string(), float16: z.string(), bfloat16: z.string() }),
    sample: z.object({ inputs: bytes, float16: bytes, bfloat16: bytes }),
  })
  .parse(JSON.parse(await readFile(join(dirname(fileURLToPath(import.meta.url)), '../../test/fixtures/safetensors/float16.json'), 'utf8')))

const sha256 = (array: Uint32Array | Uint16Array) => createHash('sha256').update(new Uint8Array(array.buffer)).digest('hex')
/** Every NaN as the same one: payloads differ between processors. */
const canonical = (words: Uint32Array) => words.map((word) => ((word & 0x7fff_ffff) >>> 0 > 0x7f80_0000 ? 0x7fc0_0000 : word))
const wordsOf = (values: Float32Array) => canonical(new Uint32Array(values.buffer, values.byteOffset, values.length))
const everyHalf = Uint16Array.from({ length: 65_536 }, (_, half) => half)

const fromFloat16 = toFloat32({ dtype: 'float16', dims: [65_536], data: everyHalf })
const fromBfloat16 = toFloat32({ dtype: 'bfloat16', dims: [65_536], data: everyHalf })

/** All values, the midpoints between neighbours and the float32 on either side: built as make.py builds them. */
function roundingCases(): Uint32Array {
  const midpoints = [fromFloat16, fromBfloat16].flatMap((grid) => {
    const values = Float64Array.from(new Set([...grid].filter(Number.isFinite).map((value) => value + 0))).sort()
    return [...new Uint32Array(Float32Array.from(values.subarray(1), (value, i) => (value + (values[i] ?? 0)) / 2).buffer)]
  })
  const near = Uint32Array.from([...wordsOf(fromFloat16), ...wordsOf(fromBfloat16), ...midpoints])
  return canonical(Uint32Array.from([...near, ...near.map((word) => word + 1), ...near.map((word) => word - 1)]))
}

describe('against NumPy and PyTorch', () => {
  test('all 65,536 float16 and bfloat16 values', () => {
    expect(sha256(wordsOf(fromFloat16))).toBe(fixture.float32OfFloat16)
    expect(sha256(wordsOf(fromBfloat16))).toBe(fixture.float32OfBfloat16)
    for (const half of everyHalf) {
      expect(fromFloat16Bits(half)).toEqual(fromFloat16[half])
      expect(fromBfloat16Bits(half)).toEqual(fromBfloat16[half])
    }
  })

  test('rounding of a random sample of float32', () => {
    const inputs = new Float32Array(fixture.sample.inputs.buffer)
    expect(Uint16Array.from(inputs, (value) => canonicalHalf(float16Bits(value)))).toEqual(new Uint16Array(fixture.sample.float16.buffer))
    expect(Uint16Array.from(toBfloat16(inputs), canonicalBrain)).toEqual(new Uint16Array(fixture.sample.bfloat16.buffer))
  })

  test('rounding at every value, every midpoint and beside each', () => {
    const words = roundingCases()
    expect(words.length).toBe(3 * fixture.midpoints.count)
    expect(sha256(words)).toBe(fixture.midpoints.inputs)
    const inputs = new Float32Array(words.buffer)
    expect(sha256(Uint16Array.from(inputs, (value) => canonicalHalf(float16Bits(value))))).toBe(fixture.midpoints.float16)
    expect(sha256(Uint16Array.from(inputs, (value) => canonicalBrain(bfloat16Bits(value))))).toBe(fixture.midpoints.bfloat16)
    const fitting = inputs.filter((value) => !(Math.abs(value) >= 65_520 && Number.isFinite(value)))
    // By the plain loop, because not all are finite.
    expect(sha256(toFloat16(fitting))).toBe(sha256(Uint16Array.from(fitting, float16Bits)))
    // Vector instructions, at lengths that fill none, some and many of them.
    const ordinary = fitting.filter(Number.isFinite)
    const finite = new Uint32Array(ordinary.buffer)
    for (const length of [5, 64, 65_537, finite.length]) {
      const halves = new Uint16Array(length)
      const largest = finite.subarray(0, length).reduce((most, word) => Math.max(most, word & 0x7fff_ffff), 0)
      expect(simdHalves(finite.subarray(0, length), halves)).toBe(largest)
      expect(sha256(halves)).toBe(sha256(Uint16Array.from(ordinary.subarray(0, length), float16Bits)))
    }
  })
})

const canonicalHalf = (half: number) => ((half & 0x7fff) > 0x7c00 ? 0x7e00 : half)
const canonicalBrain = (brain: number) => ((brain & 0x7fff) > 0x7f80 ? 0x7fc0 : brain)

describe('vectors', () => {
  test('a float16 that would silently become infinite is an error; infinity itself is not', () => {
    expect([...toFloat16(new Float32Array([65_519, -1 / 0, 0, -0]))]).toEqual([0x7bff, 0xfc00, 0, 0x8000])
    expect(() => toFloat16(new Float32Array([1, -65_520]))).toThrow(expect.objectContaining({ code: 'FLOAT16_OVERFLOW' }))
  })

  test('other types become float32; float32 is not copied', () => {
    const data = new Float32Array([1, 2])
    expect(toFloat32({ dtype: 'float32', dims: [2], data })).toBe(data)
    expect([...toFloat32({ dtype: 'int64', dims: [2], data: new BigInt64Array([-3n, 2n ** 40n]) })]).toEqual([-3, 2 ** 40])
    expect([...toFloat32({ dtype: 'uint64', dims: [1], data: new BigUint64Array([2n ** 63n]) })]).toEqual([2 ** 63])
    expect([...toFloat32({ dtype: 'float64', dims: [1], data: new Float64Array([0.1]) })]).toEqual([Math.fround(0.1)])
    expect([...toFloat32({ dtype: 'int8', dims: [1], data: new Int8Array([-7]) })]).toEqual([-7])
    expect([...toFloat32({ dtype: 'bool', dims: [2], data: new Uint8Array([0, 1]) })]).toEqual([0, 1])
  })
})
