/** The published MobileNetV2 with its real weights, on photographs. */
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { mobilenetV2, mobilenetV2Preprocessing } from '../encoders/mobilenet-v2.ts'
import type { OnnxImageEncoder } from '../encoders/onnx-image.ts'
import { onnxImage } from '../encoders/onnx-image.ts'
import { createImageDecoder } from '../src/media/child-decoder.ts'
import { decodeImage } from '../src/media/image.ts'
import { preprocessImage } from '../src/media/preprocess.ts'
import type { Features } from '../src/model/contracts.ts'
import { createSession } from '../src/runtime/node.ts'
import type { Session } from '../src/runtime/session.ts'
import { skipWithout, testDataMissing } from './skip.ts'

const data = process.env.MODALIGN_TEST_DATA ?? ''
const file = path.join(data, 'mobilenet_v2/model.onnx')
const photo = (name: string): string => path.join(data, 'photos', `${name}.jpg`)
const photos = ['cat_720p', 'hot_dog', 'owl', 'parrot', 'pets']
const embedded = fileURLToPath(new URL('../examples/tiny/encoder.onnx', import.meta.url))

skipWithout(data === '' ? testDataMissing : undefined).describe('MobileNetV2 with its published weights', () => {
  let encoder: OnnxImageEncoder
  beforeAll(async () => {
    encoder = await mobilenetV2({ model: file, device: 'cpu' })
  })
  afterAll(() => encoder.dispose())

  const encodePhotos = async (by: OnnxImageEncoder, names: readonly string[]): Promise<Features> =>
    by.encode(await Promise.all(names.map(async (name) => by.preprocess(await decodeImage(photo(name))))))

  describe('classification through the same preprocessing', () => {
    let classifier: Session
    beforeAll(async () => {
      classifier = await createSession({ bytes: readFileSync(file) }, { device: 'cpu' })
    })
    afterAll(() => classifier.dispose())
    const labels = data === '' ? [] : readFileSync(path.join(data, 'mobilenet_v2/labels.txt'), 'utf8').split('\n')

    test.each([
      ['cat_720p', /^Egyptian cat/],
      ['hot_dog', /^hotdog/],
      ['owl', /^great grey owl/],
      ['parrot', /^macaw/],
    ])('%s is among the five best', async (name, expected) => {
      const { t173 } = await classifier.run(
        { t0: preprocessImage(await decodeImage(photo(name)), mobilenetV2Preprocessing) },
        { fetch: ['t173'] },
      )
      const scores = t173?.dtype === 'float32' ? t173.data : new Float32Array()
      const ranked = [...scores].map((score, index) => ({ score, label: labels[index] ?? '' })).sort((x, y) => y.score - x.score)
      expect(ranked.slice(0, 5).map(({ label }) => label)).toContainEqual(expect.stringMatching(expected))
    })
  })

  test('gives 7 x 7 tokens of width 1280 from inside the graph', async () => {
    expect(encoder.grid({})).toEqual({ segments: [{ frames: 1, rows: 7, columns: 7 }] })
    const features = await encodePhotos(encoder, ['cat_720p'])
    expect([features.count, features.tokens, features.width]).toEqual([1, 49, 1280])
    // The last activation is ReLU6.
    expect(features.data.every((value) => value >= 0 && value <= 6)).toBe(true)
    expect(features.data.some((value) => value > 0)).toBe(true)
  })

  test('five photographs at once equal five single runs to 1e-5', async () => {
    const together = await encodePhotos(encoder, photos)
    for (const [index, name] of photos.entries()) {
      const alone = await encodePhotos(encoder, [name])
      const part = together.data.subarray(index * 49 * 1280, (index + 1) * 49 * 1280)
      expect(Math.max(...part.map((value, i) => Math.abs(value - (alone.data[i] ?? 0))))).toBeLessThan(1e-5)
    }
  })

  test('any other tensor inside can be taken', async () => {
    const inner = await onnxImage({ model: file, output: 't166', preprocessing: mobilenetV2Preprocessing, device: 'cpu' })
    expect([inner.width, inner.grid({})]).toEqual([320, { segments: [{ frames: 1, rows: 7, columns: 7 }] }])
    expect(inner.fingerprint).not.toBe(encoder.fingerprint)
    await inner.dispose()
  })

  test('a decoding process prepares what this process would', async () => {
    await using decoder = createImageDecoder({ root: path.join(data, 'photos'), processes: 1 })
    const { tensor, width, height } = await decoder.preprocess('parrot.jpg', encoder.preprocessing)
    expect([width, height]).toEqual([512, 929])
    expect(Object.values(await encoder.preprocess(await decodeImage(photo('parrot'))))).toEqual([tensor])
  })

  test.skipIf(!existsSync(embedded))('the embedded half-precision file gives the same features to cosine 0.9999', async () => {
    const small = await mobilenetV2({ device: 'cpu' })
    const [exact, half] = await Promise.all([encodePhotos(encoder, photos), encodePhotos(small, photos)])
    await small.dispose()
    const dot = (a: Float32Array, b: Float32Array): number => a.reduce((sum, value, i) => sum + value * (b[i] ?? 0), 0)
    const cosine = dot(exact.data, half.data) / Math.sqrt(dot(exact.data, exact.data) * dot(half.data, half.data))
    expect(cosine).toBeGreaterThan(0.9999)
    expect(small.fingerprint).not.toBe(encoder.fingerprint)
  })
})
