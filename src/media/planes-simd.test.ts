import fc from 'fast-check'
import { expect, test } from 'vitest'
import { writePlanesFast } from './planes-simd.ts'

test('each byte of a channel becomes its value, plane by plane', () => {
  const values = Float32Array.from({ length: 768 }, (_, at) => Math.fround(Math.sin(at)))
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 3, maxLength: 300 }), (bytes) => {
      const count = Math.floor(bytes.length / 3)
      const pixels = bytes.subarray(0, 3 * count)
      // A part of a batch: what stands around it stays.
      const batch = new Float32Array(3 * count + 2).fill(7)
      expect(writePlanesFast(pixels, values, batch.subarray(1, -1))).toBe(true)
      const wanted = [0, 1, 2].flatMap((channel) =>
        Array.from({ length: count }, (_, pixel) => values[256 * channel + (pixels[3 * pixel + channel] ?? 0)]),
      )
      expect([...batch]).toEqual([7, ...wanted, 7])
    }),
  )
})

test('nothing, and what is too large to keep memory for, is left to the loops', () => {
  const values = new Float32Array(768)
  expect(writePlanesFast(new Uint8Array(0), values, new Float32Array(0))).toBe(false)
  expect(writePlanesFast(new Uint8Array(3), values, new Float32Array(2 ** 23))).toBe(false)
})
