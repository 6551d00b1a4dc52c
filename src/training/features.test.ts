import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { linear } from '../../projectors/linear.ts'
import { openEncoder, writeDataset, writeLanguageModel } from '../../test/tune-tiny-pair.ts'
import { ModalignError } from '../errors.ts'
import { loadLanguageModel } from '../llm/language-model.ts'
import type { MediaSource } from '../model/contracts.ts'
import type { MediumFeatures } from '../model/media-features.ts'
import { localReader } from '../model/media-reader.ts'
import { compose, type MultimodalModel } from '../model/multimodal-model.ts'
import { type FeatureStore, openFeatureStore } from './feature-store.ts'
import { FeatureMemory } from './features.ts'

let root: string
let model: MultimodalModel
/** What was read, and how many pictures each run of the encoder had. */
let read: MediaSource[]
let batches: number[]

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-features-'))
  await Promise.all([writeLanguageModel(join(root, 'llm')), writeDataset(join(root, 'data'))])
  const encoder = await openEncoder(join(root, 'encoder.onnx'))
  model = await compose({
    llm: await loadLanguageModel(join(root, 'llm')),
    image: {
      encoder: {
        ...encoder,
        encode(inputs, options) {
          batches.push(inputs.length)
          return encoder.encode(inputs, options)
        },
      },
      projector: linear(),
    },
    reader: {
      image(source, options) {
        read.push(source)
        if (source === 'defect') throw new TypeError('a defect of ours')
        return localReader.image(source, options)
      },
    },
  })
})
afterAll(async () => {
  await model?.dispose()
  await rm(root, { recursive: true, force: true })
})
beforeEach(() => {
  read = []
  batches = []
})

const memoryOf = (maxBytes?: number): FeatureMemory =>
  new FeatureMemory(model, { root: join(root, 'data'), ...(maxBytes !== undefined && { maxBytes }) })

/** 4 tokens of width 8, by a run of its own. */
async function featuresOf(source: string): Promise<MediumFeatures> {
  const [features] = await model.encode([picture(source)], { root: join(root, 'data') })
  if (features === undefined) throw new Error('no features')
  expect(features.data).toHaveLength(32)
  read = []
  batches = []
  return features
}

const picture = (source: string) => ({ type: 'image', source }) as const

test('each source is read and encoded once, together with the others that are new', async () => {
  const [red, green, blue] = [await featuresOf('red.png'), await featuresOf('green.png'), await featuresOf('blue.png')]
  const memory = memoryOf()
  expect(await memory.of(['red.png', 'green.png', 'red.png'].map(picture))).toEqual([red, green, red])
  expect(await memory.of(['green.png', 'blue.png'].map(picture))).toEqual([green, blue])
  expect(await memory.of([])).toEqual([])
  expect(read).toEqual(['red.png', 'green.png', 'blue.png'])
  expect(batches).toEqual([2, 1])
})

test('what there is no room for is computed again, and is right all the same', async () => {
  const [red, green] = [await featuresOf('red.png'), await featuresOf('green.png')]
  const memory = memoryOf(32 * 4)
  for (let pass = 0; pass < 2; pass++) expect(await memory.of(['red.png', 'green.png'].map(picture))).toEqual([red, green])
  expect(read).toEqual(['red.png', 'green.png', 'green.png'])
})

test('a source that cannot be used has its error in its place, and is not read again', async () => {
  const [red, green] = [await featuresOf('red.png'), await featuresOf('green.png')]
  const memory = memoryOf()
  const [first, bad, last] = await memory.orErrors(['red.png', 'nowhere.png', 'green.png'].map(picture))
  expect([first, last]).toEqual([red, green])
  expect(bad).toMatchObject({ code: 'FILE_MISSING' })
  expect(await memory.orErrors(['nowhere.png'].map(picture))).toEqual([bad])
  await expect(memory.of(['red.png', 'nowhere.png'].map(picture))).rejects.toBe(bad)
  expect(read).toEqual(['red.png', 'nowhere.png', 'green.png'])
})

test('a defect is not taken for a bad source', async () => {
  await expect(memoryOf().orErrors(['red.png', 'defect'].map(picture))).rejects.toThrow(TypeError)
})

test('a store gives a second run the features of the first, without decoding or encoding', async () => {
  const folder = join(root, 'store')
  const pictures = [picture('red.png'), picture('blue.png'), picture('red.png')]
  const options = { root: join(root, 'data') }
  {
    await using store = await openFeatureStore(folder, { dtype: 'float32' })
    const first = await new FeatureMemory(model, { ...options, store }).of(pictures)
    expect(read.length).toBe(2)
    expect(store.counts).toMatchObject({ hits: 0, misses: 2, written: 2 })
    read = []
    batches = []
    const again = await new FeatureMemory(model, { ...options, store }).of(pictures)
    expect(again).toEqual(first)
    expect({ read, batches }).toEqual({ read: [], batches: [] })
    expect(store.counts).toMatchObject({ hits: 2, written: 2 })
  }
  await using store = await openFeatureStore(folder, { dtype: 'float16' })
  read = []
  const computed = await new FeatureMemory(model, { ...options, store }).of(pictures)
  expect(read.length).toBe(2)
  // Rounded as they are kept, from the start.
  expect(await new FeatureMemory(model, { ...options, store }).of(pictures)).toEqual(computed)
  expect(read.length).toBe(2)
})

test('a store that cannot be written costs nothing but the storing, and is reported once', async () => {
  await using store = await openFeatureStore(join(root, 'full'))
  const full = new ModalignError({ code: 'FEATURE_STORE_WRITE', got: 'no space' })
  const reported: ModalignError[] = []
  const broken: FeatureStore = { ...store, put: () => Promise.reject(full) }
  const memory = new FeatureMemory(model, { root: join(root, 'data'), store: broken, onStoreError: (error) => reported.push(error) })
  await memory.of([picture('red.png')])
  await memory.of([picture('blue.png')])
  expect(reported).toEqual([full])
  const strict = new FeatureMemory(model, { root: join(root, 'data'), store: broken })
  await expect(strict.of([picture('red.png')])).rejects.toBe(full)
})
