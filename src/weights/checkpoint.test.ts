import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { float32Tensor } from '../tensors.ts'
import { openCheckpoint } from './checkpoint.ts'
import { writeSafetensors } from './safetensors.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-checkpoint-'))
})
afterEach(() => rm(folder, { recursive: true }))

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )
const shard = (file: string, ...names: string[]) =>
  writeSafetensors(
    join(folder, file),
    names.map((name, i) => ({ name, value: float32Tensor(new Float32Array([i, i + 0.5]), [2]) })),
  )
const index = (weightMap: Record<string, string>, metadata?: object) =>
  writeFile(join(folder, 'model.safetensors.index.json'), JSON.stringify({ metadata, weight_map: weightMap }))
const one = 'model-00001-of-00002.safetensors'
const two = 'model-00002-of-00002.safetensors'

describe('openCheckpoint', () => {
  test('a single file, by folder and by name', async () => {
    await shard('model.safetensors', 'a.weight', 'b.weight')
    for (const path of [folder, join(folder, 'model.safetensors')]) {
      const checkpoint = await openCheckpoint(path)
      expect([...checkpoint.tensors.keys()]).toEqual(['a.weight', 'b.weight'])
      expect(checkpoint.tensor('b.weight')).toMatchObject({
        file: join(folder, 'model.safetensors'),
        dtype: 'float32',
        shape: [2],
        byteLength: 8,
      })
      expect((await checkpoint.read('b.weight')).data).toEqual(new Float32Array([1, 1.5]))
    }
  })

  test('the only .safetensors file of a folder; several without an index are refused', async () => {
    await shard('encoder.safetensors', 'a')
    expect((await openCheckpoint(folder)).tensors.size).toBe(1)
    await shard('other.safetensors', 'a')
    expect(await failure(openCheckpoint(folder))).toMatchObject({
      code: 'CHECKPOINT_AMBIGUOUS',
      details: { got: 'encoder.safetensors, other.safetensors' },
    })
  })

  test('shards: one lookup over all of them', async () => {
    await shard(one, 'a', 'b')
    await shard(two, 'c')
    await index({ c: two, a: one, b: one }, { total_size: 24 })
    const checkpoint = await openCheckpoint(folder)
    expect(checkpoint.files.map(({ file }) => file)).toEqual([join(folder, one), join(folder, two)])
    expect(checkpoint.tensor('c').file).toBe(join(folder, two))
    expect((await checkpoint.read('c')).data).toEqual(new Float32Array([0, 0.5]))
    await index({ c: two, a: one, b: one })
    expect((await openCheckpoint(folder)).tensors.size).toBe(3)
    await index({ c: two, a: one, b: one }, { total_size: '24' })
    expect((await openCheckpoint(folder)).tensors.size).toBe(3)
  })

  test('a weight that is not there: names one that ends alike', async () => {
    await shard('model.safetensors', 'model.layers.0.mlp.up_proj.weight', 'model.norm.weight')
    const checkpoint = await openCheckpoint(folder)
    const absent = { code: 'TENSOR_MISSING', details: { expected: 'a name of this checkpoint, such as model.layers.0.mlp.up_proj.weight' } }
    expect(await failure(checkpoint.read('layers.0.mlp.up_proj.weight'))).toMatchObject(absent)
    expect(await failure(checkpoint.read('language_model.model.layers.0.mlp.up_proj.weight'))).toMatchObject(absent)
  })

  test('the cache of huggingface_hub: links from a snapshot to its blobs', async () => {
    const blobs = join(folder, 'models--org--name', 'blobs')
    const snapshot = join(folder, 'models--org--name', 'snapshots', 'main')
    await mkdir(blobs, { recursive: true })
    await mkdir(snapshot, { recursive: true })
    await shard('models--org--name/blobs/0123', 'a')
    await symlink('../../blobs/0123', join(snapshot, one))
    await writeFile(join(blobs, '4567'), JSON.stringify({ weight_map: { a: one } }))
    await symlink('../../blobs/4567', join(snapshot, 'model.safetensors.index.json'))
    expect((await openCheckpoint(snapshot)).tensor('a').file).toBe(join(blobs, '0123'))
  })
})

describe('what the index gets wrong', () => {
  test.each([
    ['../x.safetensors', 'parent'],
    ['/etc/x.safetensors', 'absolute'],
    ['a/../../x.safetensors', 'inner'],
    ['sub/x.safetensors', 'sub-folder'],
    ['..\\x.safetensors', 'backslash'],
    ['C:x.safetensors', 'drive'],
    ['x.safetensors\0', 'NUL'],
    ['', 'empty'],
    ['.', 'the folder'],
    ['x.bin', 'another format'],
  ])('a path that is no file beside it: %s (%s)', async (path) => {
    await shard(one, 'a')
    await index({ a: one, b: path })
    expect(await failure(openCheckpoint(folder))).toMatchObject({ code: 'CHECKPOINT_PATH_ESCAPE', details: { field: '/weight_map' } })
  })

  test('a link out of the folder', async () => {
    const outside = await mkdtemp(join(tmpdir(), 'modalign-outside-'))
    try {
      await writeSafetensors(join(outside, 'x.safetensors'), [])
      await symlink(join(outside, 'x.safetensors'), join(folder, one))
      await index({ a: one })
      expect(await failure(openCheckpoint(folder))).toMatchObject({ code: 'CHECKPOINT_PATH_ESCAPE' })
    } finally {
      await rm(outside, { recursive: true })
    }
  })

  test('a missing shard', async () => {
    await shard(one, 'a')
    await index({ a: one, b: two })
    expect(await failure(openCheckpoint(folder))).toMatchObject({ code: 'CHECKPOINT_SHARD_MISSING', details: { got: `no ${two}` } })
  })

  test('a weight in two shards, in the files or in the index', async () => {
    await shard(one, 'a', 'b')
    await shard(two, 'b')
    await index({ a: one, b: two })
    expect(await failure(openCheckpoint(folder))).toMatchObject({
      code: 'CHECKPOINT_WEIGHT_TWICE',
      details: { got: expect.stringContaining('b in ') },
    })
    await writeFile(join(folder, 'model.safetensors.index.json'), `{"weight_map":{"a":"${one}","a":"${two}"}}`)
    expect(await failure(openCheckpoint(folder))).toMatchObject({ code: 'CHECKPOINT_WEIGHT_TWICE' })
  })

  test('a weight that no shard has, or another one than named; a weight that is not listed', async () => {
    await shard(one, 'a')
    await shard(two, 'b')
    await index({ a: one, b: two, c: two })
    expect(await failure(openCheckpoint(folder))).toMatchObject({
      code: 'CHECKPOINT_WEIGHT_MISSING',
      details: { got: 'c, which no shard has' },
    })
    await index({ a: two, b: one })
    expect(await failure(openCheckpoint(folder))).toMatchObject({
      code: 'CHECKPOINT_WEIGHT_MISSING',
      details: { got: expect.stringContaining('but it lies in') },
    })
    await shard(two, 'b', 'c')
    await index({ a: one, b: two })
    expect(await failure(openCheckpoint(folder))).toMatchObject({
      code: 'CHECKPOINT_WEIGHT_UNLISTED',
      details: { got: expect.stringContaining('no c') },
    })
  })

  test('a wrong total', async () => {
    await shard(one, 'a')
    await index({ a: one }, { total_size: 9 })
    expect(await failure(openCheckpoint(folder))).toMatchObject({
      code: 'CHECKPOINT_TOTAL_SIZE',
      details: { got: '9', expected: expect.stringContaining('8,') },
    })
  })

  test.each([
    '',
    '{',
    '[]',
    '{"weight_map":[]}',
    '{"weight_map":{"a":1}}',
    '{"metadata":{"total_size":-1.5},"weight_map":{}}',
    '{"a":1,"a":2,"weight_map":{}}',
  ])('malformed: %s', async (text) => {
    await writeFile(join(folder, 'model.safetensors.index.json'), text)
    expect(await failure(openCheckpoint(folder))).toMatchObject({ code: 'CHECKPOINT_INDEX' })
  })

  test('no weights at all, or only a pickle', async () => {
    expect(await failure(openCheckpoint(folder))).toMatchObject({ code: 'CHECKPOINT_MISSING' })
    await writeFile(join(folder, 'pytorch_model.bin'), '')
    expect(await failure(openCheckpoint(folder))).toMatchObject({
      code: 'CHECKPOINT_MISSING',
      details: { hint: expect.stringContaining('convert') },
    })
    expect(await failure(openCheckpoint(join(folder, 'no')))).toMatchObject({ code: 'FILE_MISSING' })
  })
})

const data = process.env.MODALIGN_TEST_DATA
describe.skipIf(data === undefined)(`a published model${data === undefined ? ' (skipped: MODALIGN_TEST_DATA is not set)' : ''}`, () => {
  test('the encoder half of Whisper base', async () => {
    const checkpoint = await openCheckpoint(join(data ?? '', 'whisper_base_encoder'))
    const { dtype, shape } = checkpoint.tensor('model.encoder.conv1.weight')
    expect([dtype, shape]).toEqual(['float16', [512, 80, 3]])
    expect((await checkpoint.read('model.encoder.conv1.weight')).data.length).toBe(512 * 80 * 3)
  })
})
