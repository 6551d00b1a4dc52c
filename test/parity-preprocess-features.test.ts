/** JPEGs, which decoders round differently, as far as the features: against Pillow, Transformers, PyTorch and ONNX Runtime. Fixture: test/fixtures/preprocess/make_features.py. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { inflateSync } from 'node:zlib'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { z } from 'zod'
import { clip } from '../encoders/clip.ts'
import { mobilenetV2, mobilenetV2Preprocessing } from '../encoders/mobilenet-v2.ts'
import { decodeImage } from '../src/media/image.ts'
import { preprocessImage } from '../src/media/preprocess.ts'
import { parsePreprocessorConfig } from '../src/media/preprocessor-config.ts'
import type { Encoder } from '../src/model/contracts.ts'
import { fromFloat16Bits } from '../src/onnx/float16.ts'
import { skipWithout, testDataMissing } from './skip.ts'

const fixtures = new URL('./fixtures/', import.meta.url)
const json = (file: string): unknown => JSON.parse(readFileSync(new URL(file, fixtures), 'utf8'))
const { cases, clipPreprocessing } = z
  .object({
    clipPreprocessing: z.json(),
    cases: z.array(z.object({ label: z.string(), step: z.int().min(1), mobilenet: z.base64(), clip: z.base64() })),
  })
  .parse(json('preprocess/jpeg-features.json'))
const files = new Map(
  z
    .object({ cases: z.array(z.object({ label: z.string(), file: z.base64() })) })
    .parse(json('preprocess/cases.json'))
    .cases.map(({ label, file }) => [label, new Uint8Array(Buffer.from(file, 'base64'))]),
)
const data = process.env.MODALIGN_TEST_DATA ?? ''
const fileOf = (label: string): string | Uint8Array => files.get(label) ?? path.join(data, 'photos', label)

function halves(text: string): Float32Array {
  const bytes = new Uint8Array(inflateSync(Buffer.from(text, 'base64')))
  return Float32Array.from(new Uint16Array(bytes.buffer), fromFloat16Bits)
}

function cosine(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length)
  const dot = (x: Float32Array, y: Float32Array): number => x.reduce((sum, value, at) => sum + value * (y[at] ?? Number.NaN), 0)
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))
}

/** Every `step`-th token of a picture. */
async function features(encoder: Encoder<'image'>, label: string, step = 1): Promise<Float32Array> {
  const { data: all, tokens, width } = await encoder.encode([await encoder.preprocess(await decodeImage(fileOf(label)))])
  const taken = Array.from({ length: Math.ceil(tokens / step) }, (_, at) => all.subarray(at * step * width, (at * step + 1) * width))
  return Float32Array.from(taken.flatMap((token) => [...token]))
}

test('a small CLIP sees the awkward JPEGs as Transformers does, to a cosine of 0.9999', async () => {
  const encoder = await clip({
    model: fileURLToPath(new URL('vision/clip', fixtures)),
    preprocessing: parsePreprocessorConfig(clipPreprocessing),
    device: 'cpu',
    threads: 1,
  })
  const awkward = cases.filter(({ label }) => files.has(label))
  expect(awkward).toHaveLength(17)
  for (const { label, clip: expected } of awkward)
    expect(cosine(await features(encoder, label), halves(expected)), label).toBeGreaterThan(0.9999)
  await encoder.dispose()
})

skipWithout(data === '' ? testDataMissing : undefined).describe('MobileNetV2 with its published weights', () => {
  const model = path.join(data, 'mobilenet_v2/model.onnx')
  let encoder: Encoder<'image'>
  beforeAll(async () => {
    encoder = await mobilenetV2({ model, device: 'cpu' })
  })
  afterAll(() => encoder.dispose())

  test.each(cases)('$label: cosine over 0.9999', async ({ label, step, mobilenet }) => {
    expect(cosine(await features(encoder, label, step), halves(mobilenet))).toBeGreaterThan(0.9999)
  })

  test('another filter falls below: the bound would show a difference in preprocessing', async () => {
    const resize = { size: { height: 224, width: 224 }, filter: 'bicubic' as const }
    const photos = cases.filter(({ label }) => !files.has(label))
    expect(photos).toHaveLength(5)
    for (const { label, mobilenet } of photos) {
      const pixels = preprocessImage(await decodeImage(fileOf(label)), { ...mobilenetV2Preprocessing, resize })
      const { data: other } = await encoder.encode([encoder.preparation?.inputs(pixels) ?? {}])
      expect(cosine(other, halves(mobilenet)), label).toBeLessThan(0.9999)
    }
  })
})
