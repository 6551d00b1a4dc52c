import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import type { DecodedImage } from '../model/contracts.ts'
import { centreWindow, cropImage, padToSquare } from './crop.ts'
import { resizeImage } from './resize.ts'

const filters = z.enum(['nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming'])
const fixture = z
  .object({
    pillow: z.string(),
    cases: z.array(
      z.object({
        width: z.int(),
        height: z.int(),
        data: z.string(),
        toWidth: z.int(),
        toHeight: z.int(),
        results: z.record(filters, z.string()),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(new URL('../../test/fixtures/media/resize.json', import.meta.url), 'utf8')))

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, 'base64'))

describe.each(fixture.cases)('$width x $height to $toWidth x $toHeight', ({ width, height, data, toWidth, toHeight, results }) => {
  test.each(filters.options)(`%s: every byte is Pillow ${fixture.pillow}'s`, (filter) => {
    const resized = resizeImage({ width, height, data: bytes(data) }, { width: toWidth, height: toHeight, filter })
    expect([resized.width, resized.height]).toEqual([toWidth, toHeight])
    expect(resized.data).toEqual(bytes(results[filter]))
  })
})

const images = fc
  .record({ width: fc.integer({ min: 1, max: 30 }), height: fc.integer({ min: 1, max: 30 }), seed: fc.integer() })
  .map(({ width, height, seed }): DecodedImage => {
    let state = seed | 1
    const data = Uint8Array.from({ length: width * height * 3 }, () => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) | 0
      return state >>> 24
    })
    return { width, height, data }
  })

test('a window gives the same bytes as resizing everything and cropping', () => {
  fc.assert(
    fc.property(
      images,
      fc.record({ width: fc.integer({ min: 1, max: 30 }), height: fc.integer({ min: 1, max: 30 }) }),
      fc.record({ left: fc.double({ min: 0, max: 1, noNaN: true }), top: fc.double({ min: 0, max: 1, noNaN: true }) }),
      fc.constantFrom(...filters.options),
      (image, size, at, filter) => {
        const left = Math.floor(at.left * (size.width - 1))
        const top = Math.floor(at.top * (size.height - 1))
        const window = { left, top, width: Math.ceil((size.width - left) / 2), height: Math.ceil((size.height - top) / 2) }
        const whole = resizeImage(image, { ...size, filter })
        expect(resizeImage(image, { ...size, filter, window })).toEqual(cropImage(whole, window))
      },
    ),
    { numRuns: 300 },
  )
})

test('a picture of one colour stays that colour under every filter', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 255 }),
      fc.integer({ min: 1, max: 60 }),
      fc.constantFrom(...filters.options),
      (value, size, filter) => {
        const image = { width: 9, height: 14, data: new Uint8Array(9 * 14 * 3).fill(value) }
        expect(new Set(resizeImage(image, { width: size, height: 61 - size, filter }).data)).toEqual(new Set([value]))
      },
    ),
  )
})

test.each([
  { width: 0, height: 4 },
  { width: 4, height: 1.5 },
  { width: Number.NaN, height: 4 },
])('refuses the size $width x $height', (size) => {
  const image = { width: 1, height: 1, data: new Uint8Array(3) }
  expect(() => resizeImage(image, { ...size, filter: 'box' })).toThrow(expect.objectContaining({ code: 'IMAGE_DIMENSIONS' }))
})

test('refuses a window that leaves the result', () => {
  const image = { width: 4, height: 4, data: new Uint8Array(48) }
  const window = { left: 2, top: 0, width: 3, height: 1 }
  expect(() => resizeImage(image, { width: 4, height: 4, filter: 'box', window })).toThrow(
    expect.objectContaining({ code: 'IMAGE_DIMENSIONS' }),
  )
})

test('padding to a square keeps the pixels and centres them', () => {
  const image = { width: 1, height: 4, data: Uint8Array.from({ length: 12 }, (_, i) => i) }
  const square = padToSquare(image, [9, 8, 7])
  expect([square.width, square.height]).toEqual([4, 4])
  expect(cropImage(square, { left: 1, top: 0, width: 1, height: 4 })).toEqual(image)
  expect([...square.data.subarray(0, 3)]).toEqual([9, 8, 7])
  expect(padToSquare(square, [0, 0, 0])).toBe(square)
})

test('a crop larger than the image is padded with black, the odd pixel before it', () => {
  const image = { width: 1, height: 1, data: new Uint8Array([1, 2, 3]) }
  const window = centreWindow(image, { width: 2, height: 2 })
  expect(cropImage(image, window).data).toEqual(new Uint8Array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]))
})
