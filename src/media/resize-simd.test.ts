import fc from 'fast-check'
import { expect, test } from 'vitest'
import { kernels, pillowTaps, torchvisionTaps } from './resize-kernels.ts'
import { columns, rows } from './resize-loops.ts'
import { simdColumns, simdRows } from './resize-simd.ts'

const filters = ['lanczos', 'bilinear', 'bicubic', 'box', 'hamming'] as const
const axis = fc
  .record({
    input: fc.integer({ min: 1, max: 90 }),
    output: fc.integer({ min: 1, max: 90 }),
    filter: fc.constantFrom(...filters),
    torch: fc.boolean(),
  })
  .chain((one) =>
    fc.tuple(fc.nat(one.output - 1), fc.nat(one.output - 1)).map(([a, b]) => ({ ...one, from: Math.min(a, b), size: Math.abs(a - b) + 1 })),
  )

test('the vector passes give the bytes of the plain loops, for windows too', () => {
  fc.assert(
    fc.property(axis, fc.integer({ min: 1, max: 21 }), fc.integer(), ({ input, output, filter, torch, from, size }, across, seed) => {
      const taps = (torch ? torchvisionTaps : pillowTaps)(input, output, kernels[filter], from, size)
      const first = taps.starts[0] ?? 0
      const length = (taps.starts.at(-1) ?? 0) + (taps.counts.at(-1) ?? 0) - first
      let state = seed
      // Black and white too, so that overshoot is clipped on both sides.
      const source = Uint8Array.from({ length: length * across * 3 }, () => {
        state = (Math.imul(state, 1_103_515_245) + 12_345) | 0
        return [0, 255, (state >>> 16) & 255][(state >>> 8) % 3] ?? 0
      })
      const row = { source, sourceWidth: length, height: across, left: first, width: size, taps }
      expect(simdRows(row)).toEqual(rows(row))
      const column = { source, width: across, top: first, height: size, taps }
      expect(simdColumns(column)).toEqual(columns(column))
    }),
    { numRuns: 100 },
  )
})

test('a picture too large to keep memory for is left to the loops', () => {
  const taps = pillowTaps(1, 4, kernels.box, 0, 4)
  expect(simdRows({ source: new Uint8Array(3 * 6_000_000), sourceWidth: 1, height: 6_000_000, left: 0, width: 4, taps })).toBeUndefined()
})
