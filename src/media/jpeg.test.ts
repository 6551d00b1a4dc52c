import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import sharp from 'sharp'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { decodeImage } from './image.ts'
import { plainJpeg } from './jpeg.ts'
import { type ImagePreprocessing, transformImage } from './preprocess.ts'

const isLong = process.env.MODALIGN_LONG === '1'
const fixture = (name: string): Buffer => readFileSync(new URL(`../../test/fixtures/jpeg/${name}`, import.meta.url))
const expected = z
  .object({ files: z.record(z.string(), z.object({ ours: z.boolean(), width: z.number(), height: z.number(), sha256: z.string() })) })
  .parse(JSON.parse(fixture('expected.json').toString()))

describe('libjpeg-turbo, through Pillow', () => {
  test.each(Object.entries(expected.files))('%s', (name, { ours, width, height, sha256 }) => {
    const image = plainJpeg(fixture(`${name}.jpg`))?.decode()
    if (!ours) return expect(image).toBeUndefined()
    expect(image).toMatchObject({ width, height })
    expect(
      createHash('sha256')
        .update(image?.data ?? '')
        .digest('hex'),
    ).toBe(sha256)
  })
})

/** Files as sharp writes them. */
const files = fc.record({
  width: fc.integer({ min: 6, max: 90 }),
  height: fc.integer({ min: 1, max: 70 }),
  seed: fc.integer(),
  quality: fc.integer({ min: 1, max: 100 }),
  noise: fc.integer({ min: 0, max: 255 }),
  chromaSubsampling: fc.constantFrom('4:4:4', '4:2:0'),
  optimiseCoding: fc.boolean(),
  isGrey: fc.boolean(),
})
type File = typeof files extends fc.Arbitrary<infer T> ? T : never

async function written({ width, height, seed, noise, isGrey, ...options }: File): Promise<Buffer> {
  let state = seed
  const data = Uint8Array.from({ length: width * height * 3 }, (_, at) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) | 0
    return at + (((state >>> 16) * noise) >>> 16)
  })
  const picture = sharp(data, { raw: { width, height, channels: 3 } })
  return await (isGrey ? picture.greyscale() : picture).jpeg(options).toBuffer()
}

/** What libvips makes of a file without a word of complaint. */
async function byLibvips(bytes: Uint8Array): Promise<{ readonly width: number; readonly height: number; readonly data: Uint8Array }> {
  const { notes, format: _, ...image } = await decodeImage(bytes)
  if (notes.length > 0) throw new Error(notes.join())
  return image
}

test('every byte is that of libvips', async () => {
  await fc.assert(
    fc.asyncProperty(files, async (file) => {
      const bytes = await written(file)
      expect(plainJpeg(bytes)?.decode()).toEqual(await byLibvips(bytes))
    }),
    { numRuns: isLong ? 2000 : 60 },
  )
})

/** Preprocessing with one view, with a part of one, and with several of a picture, which each read its pixels. */
const specs: readonly ImagePreprocessing[] = [
  { resize: { size: { width: 24, height: 20 }, filter: 'bilinear' } },
  { resize: { size: { shortestEdge: 16 }, filter: 'bicubic' }, centreCrop: { width: 14, height: 14 } },
  { resize: { size: { width: 3, height: 3 }, filter: 'lanczos' } },
  { resize: { size: { width: 16, height: 16 }, filter: 'bicubic' }, tiling: { kind: 'dynamic', minTiles: 1, maxTiles: 6 } },
  {
    resize: { size: { width: 16, height: 16 }, filter: 'bicubic' },
    tiling: { kind: 'anyres', resolutions: [16, 32, 48].map((width) => ({ width, height: 32 })) },
  },
  { padToSquare: [1, 2, 3], resize: { size: { width: 20, height: 20 }, filter: 'bilinear' }, arithmetic: 'torchvision' },
]

test('preprocessing of its pixels where they lie is that of a copy', async () => {
  await fc.assert(
    fc.asyncProperty(files, fc.constantFrom(...specs), async (file, spec) => {
      const image = plainJpeg(await written(file))?.decode()
      if (image === undefined) throw new Error('an ordinary file')
      const copy = { ...image, data: image.data.slice() }
      expect(transformImage(image, spec)).toEqual(transformImage(copy, spec))
      expect(image.data).toEqual(copy.data)
    }),
    { numRuns: isLong ? 2000 : 100 },
  )
})

test('what it makes of a damaged file, libvips makes without a complaint', async () => {
  const damage = fc.record({ at: fc.integer({ min: 0, max: 9999 }), to: fc.integer({ min: 0, max: 255 }), cut: fc.boolean() })
  let decoded = 0
  await fc.assert(
    fc.asyncProperty(files, fc.array(damage, { minLength: 20, maxLength: 20 }), async (file, damages) => {
      const whole = await written(file)
      for (const { at, to, cut } of damages) {
        const place = Math.floor((at / 10_000) * whole.length)
        const bytes = Buffer.from(cut ? whole.subarray(0, place) : whole)
        if (!cut) bytes[place] = to
        const jpeg = plainJpeg(bytes)
        const image = jpeg !== undefined && jpeg.width * jpeg.height < 1e6 ? jpeg.decode() : undefined
        if (image === undefined) continue
        decoded++
        const { width, height } = await byLibvips(bytes)
        expect([image.width, image.height]).toEqual([width, height])
      }
    }),
    { numRuns: isLong ? 500 : 12 },
  )
  expect(decoded).toBeGreaterThan(0)
})

test('decodeImage takes it where the thread may be blocked, and libvips where the file is not ordinary', async () => {
  const whole = fixture('420-extreme.jpg')
  expect(await decodeImage(whole, { inThisThread: true })).toEqual(await decodeImage(whole))
  const turned = await decodeImage(fixture('exif-turned.jpg'), { inThisThread: true })
  expect([turned.width, turned.height]).toEqual([20, 24])
  await expect(decodeImage(whole.subarray(0, 2000), { inThisThread: true })).rejects.toMatchObject({ code: 'IMAGE_TRUNCATED' })
  await expect(decodeImage(whole, { inThisThread: true, limits: { maxPixels: 100 } })).rejects.toMatchObject({ code: 'IMAGE_TOO_LARGE' })
  await expect(decodeImage(whole, { inThisThread: true, page: 1 })).rejects.toMatchObject({ code: 'IMAGE_PAGE' })
  const asked: number[] = []
  const beforeDecode = async (pixels: number) => void asked.push(pixels)
  await decodeImage(whole.subarray(0, 2000), { inThisThread: true, truncated: 'accept', beforeDecode })
  expect(asked).toEqual([33 * 34])
})

test('a picture too large to keep memory for is left to libvips', () => {
  const header = Buffer.from(fixture('444-restart-blocks.jpg'))
  const frame = header.indexOf(Buffer.from([0xff, 0xc0]))
  header.writeUInt16BE(65_000, frame + 5)
  header.writeUInt16BE(65_000, frame + 7)
  expect(plainJpeg(header)).toBeUndefined()
})
