/** What reliability's catalogue says of pictures that must, and must not, share their features (I30 to I32), with real files and a real store. */
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { z } from 'zod'
import { decodeImage } from '../src/media/image.ts'
import { contentDigest } from '../src/training/content-digest.ts'
import { type FeatureKey, type FeatureStore, openFeatureStore } from '../src/training/feature-store.ts'

let folder = ''
let store: FeatureStore
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'modalign-keys-'))
  store = await openFeatureStore(path.join(folder, 'store'), { dtype: 'float32' })
})
afterAll(async () => {
  await store.close()
  await rm(folder, { recursive: true, force: true })
})

async function keyOf(name: string, bytes?: Uint8Array): Promise<FeatureKey> {
  if (bytes !== undefined) await writeFile(path.join(folder, name), bytes)
  return { modality: 'image', content: await contentDigest(name, { root: folder }), encoder: 'tiny', width: 2 }
}
const keep = (key: FeatureKey, value: number) =>
  store.put([store.pack(key, { size: { width: 3, height: 4 }, data: Float32Array.of(value, 1) })])

test('I30: one picture under two names is one record, which both names find', async () => {
  const bytes = await sharp({ create: { width: 3, height: 4, channels: 3, background: 'red' } })
    .png()
    .toBuffer()
  const [first, second] = [await keyOf('a.png', bytes), await keyOf('b.png', bytes)]
  await keep(first, 7)
  expect(store.get(second)?.data).toEqual(Float32Array.of(7, 1))
})

test('I31: the same pixels in a row, 30 x 150 and 150 x 30, are two', async () => {
  const data = Uint8Array.from({ length: 3 * 30 * 150 }, (_, at) => (at * 37) % 251)
  const png = (width: number, height: number) =>
    sharp(data, { raw: { width, height, channels: 3 } })
      .png()
      .toBuffer()
  const [tall, wide] = [await keyOf('tall.png', await png(30, 150)), await keyOf('wide.png', await png(150, 30))]
  const [one, other] = [await decodeImage(path.join(folder, 'tall.png')), await decodeImage(path.join(folder, 'wide.png'))]
  expect(Buffer.from(one.data).equals(other.data)).toBe(true)
  await keep(tall, 1)
  expect(store.get(wide)).toBeUndefined()
})

test('I32: the same indices under another palette are another picture', async () => {
  const { cases } = z
    .object({ cases: z.array(z.looseObject({ label: z.string(), file: z.base64() })) })
    .parse(JSON.parse(readFileSync(new URL('./fixtures/media/decode.json', import.meta.url), 'utf8')))
  const [one, other] = ['PNG, palette', 'PNG, the same indices, another palette'].map((label) =>
    Buffer.from(cases.find((found) => found.label === label)?.file ?? '', 'base64'),
  )
  const [first, second] = [await keyOf('palette.png', one), await keyOf('other.png', other)]
  await keep(first, 1)
  expect(store.get(second)).toBeUndefined()
  await keep(second, 2)
  expect([store.get(first)?.data[0], store.get(second)?.data[0]]).toEqual([1, 2])
})
