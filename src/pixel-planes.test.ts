import fc from 'fast-check'
import { expect, test } from 'vitest'
import { PlaneMaker, plainPlanes, writePlanes } from './pixel-planes.ts'

const values = Float32Array.from({ length: 768 }, (_, at) => Math.fround(Math.sin(at)))

function planesOf(pixels: Uint8Array): number[] {
  const count = pixels.length / 3
  return [0, 1, 2].flatMap((channel) =>
    Array.from({ length: count }, (_, pixel) => values[256 * channel + (pixels[3 * pixel + channel] ?? 0)] ?? 0),
  )
}

test.each([
  ['the program', writePlanes],
  ['the plain loops', plainPlanes],
])('each byte of a channel becomes its value, plane by plane: %s', (_, write) => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 0, maxLength: 300 }), (bytes) => {
      const pixels = bytes.subarray(0, bytes.length - (bytes.length % 3))
      // A part of a batch: what stands around it stays.
      const batch = new Float32Array(pixels.length + 2).fill(7)
      write(pixels, values, batch.subarray(1, -1))
      expect([...batch]).toEqual([7, ...planesOf(pixels), 7])
    }),
  )
})

test('a tensor of several pictures, of more and of fewer after each other', () => {
  const maker = new PlaneMaker()
  const picture = fc.uint8Array({ minLength: 3 * 4 * 5, maxLength: 3 * 4 * 5 })
  fc.assert(
    fc.property(fc.array(picture, { minLength: 1, maxLength: 9 }), (pixels) => {
      const { dims, data } = maker.tensor({ dims: [pixels.length, 3, 4, 5], pixels, values })
      expect(dims).toEqual([pixels.length, 3, 4, 5])
      expect([...data]).toEqual(pixels.flatMap(planesOf))
    }),
  )
})

test('a batch too large to keep memory for', () => {
  const pixels = Array.from({ length: 6 }, () => new Uint8Array(3 * 1000 * 1000).fill(9))
  const { data } = new PlaneMaker().tensor({ dims: [6, 3, 1000, 1000], pixels, values })
  expect(data.length).toBe(18_000_000)
  expect([data[0], data[17_999_999]]).toEqual([values[9], values[512 + 9]])
})
