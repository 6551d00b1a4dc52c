/** Pixels as `cv2.resize` gives them. Fixture: test/fixtures/ocr/make.py. */
import { readFileSync } from 'node:fs'
import { inflateSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { resizeOpenCv } from './resize-opencv.ts'

const pair = z.tuple([z.int(), z.int()])
const { opencv, resizes } = z
  .object({ opencv: z.string(), resizes: z.array(z.object({ from: pair, to: pair, pixels: z.base64() })) })
  .parse(JSON.parse(readFileSync(new URL('../../test/fixtures/ocr/lines.json', import.meta.url), 'utf8')))

describe(`OpenCV ${opencv}`, () => {
  test.each(resizes)('$from to $to', ({ from: [width, height], to: [newWidth, newHeight], pixels }) => {
    const data = Uint8Array.from({ length: 3 * width * height }, (_, at) => (at * 37) % 251)
    const resized = resizeOpenCv({ width, height, data }, { width: newWidth, height: newHeight })
    expect(Buffer.from(resized.data)).toEqual(inflateSync(Buffer.from(pixels, 'base64')))
  })
})

test('refuses a size without pixels', () => {
  const image = { width: 1, height: 1, data: new Uint8Array(3) }
  expect(() => resizeOpenCv(image, { width: 0, height: 4 })).toThrow(expect.objectContaining({ code: 'IMAGE_DIMENSIONS' }))
})
