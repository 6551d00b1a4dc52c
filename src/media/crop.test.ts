import { expect, test } from 'vitest'
import type { DecodedImage, Encoder } from '../model/contracts.ts'
import { prepareInputs } from '../model/media-features.ts'
import { localReader } from '../model/media-reader.ts'
import { float32Tensor } from '../tensors.ts'
import { cropToBox } from './crop.ts'

/** Each pixel says where it is. */
const map: DecodedImage = {
  width: 5,
  height: 4,
  data: Uint8Array.from({ length: 60 }, (_, at) => [Math.floor(at / 3) % 5, Math.floor(at / 15), 7][at % 3] ?? 0),
}

test('a box takes every pixel that it touches, and what lies within the picture', () => {
  const part = cropToBox(map, { type: 'box', x: 1.5, y: -3, width: 2, height: 4.5 })
  expect([part.width, part.height]).toEqual([3, 2])
  expect([...part.data]).toEqual([1, 0, 7, 2, 0, 7, 3, 0, 7, 1, 1, 7, 2, 1, 7, 3, 1, 7])
})

test.each([
  { x: 5, y: 0, width: 2, height: 2 },
  { x: 0, y: 0, width: 0, height: 2 },
  { x: 0, y: -2, width: 2, height: 2 },
  { x: Number.NaN, y: 0, width: 2, height: 2 },
])('refuses a box without pixels: $x, $y, $width x $height', (box) => {
  expect(() => cropToBox(map, { type: 'box', ...box })).toThrow(expect.objectContaining({ code: 'IMAGE_REGION' }))
})

test('an encoder sees the part of a picture that a record names', async () => {
  const seen: DecodedImage[] = []
  const encoder: Encoder<'image'> = {
    modality: 'image',
    fingerprint: 'tiny',
    label: 'tiny',
    width: 1,
    grid: ({ width = 0, height = 0 }) => ({ segments: [{ frames: 1, rows: height, columns: width }] }),
    async preprocess(image) {
      seen.push(image)
      return { pixels: float32Tensor(Float32Array.from(image.data), [image.data.length]) }
    },
    encode: async () => ({ count: 0, tokens: 0, width: 1, data: new Float32Array(0) }),
    dispose: async () => undefined,
  }
  const reader = { ...localReader, image: async () => map }
  const region = { type: 'box', x: 1, y: 1, width: 2, height: 3 } as const
  const { size, tokens } = await prepareInputs(encoder, reader, { type: 'image', source: 'a.png', region }, {})
  expect([size, tokens]).toEqual([{ width: 2, height: 3 }, 6])
  expect(seen).toEqual([cropToBox(map, region)])
})
