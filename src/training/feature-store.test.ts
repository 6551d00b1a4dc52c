import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { open } from 'lmdb'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type FeatureKey, openFeatureStore } from './feature-store.ts'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-store-'))
})
afterAll(() => rm(root, { recursive: true, force: true }))

const keyOf = (content: string): FeatureKey => ({ modality: 'image', content, encoder: 'e', width: 2 })
const size = { width: 3, height: 3 }
const features = (first: number) => ({ size, data: Float32Array.of(first, 2, 3, 4) })

test('what is put is there after closing, for this dtype and key alone', async () => {
  const folder = join(root, 'kept')
  {
    await using store = await openFeatureStore(folder, { dtype: 'float32' })
    expect(store.get(keyOf('a'))).toBeUndefined()
    await store.put([store.pack(keyOf('a'), features(1))])
    expect(store.counts).toMatchObject({ hits: 0, misses: 1, written: 1, damaged: 0 })
  }
  await using store = await openFeatureStore(folder, { dtype: 'float32' })
  expect(store.get(keyOf('a'))).toEqual(features(1))
  expect(store.get({ ...keyOf('a'), encoder: 'another' })).toBeUndefined()
  await using narrow = await openFeatureStore(folder, { dtype: 'int8' })
  expect(narrow.get(keyOf('a'))).toBeUndefined()
})

test('a damaged record counts as absent, is reported, and is written over', async () => {
  const folder = join(root, 'damaged')
  {
    await using store = await openFeatureStore(folder)
    await store.put([store.pack(keyOf('a'), features(1))])
  }
  const database = open<Buffer, Buffer>({ path: folder, noSubdir: false, encoding: 'binary', keyEncoding: 'binary' })
  for (const key of [...database.getKeys()]) {
    const bytes = Buffer.from(database.getBinary(key) ?? [])
    bytes[bytes.length - 8] = (bytes[bytes.length - 8] ?? 0) ^ 1
    await database.put(key, bytes)
  }
  await database.close()
  await using store = await openFeatureStore(folder)
  expect(store.get(keyOf('a'))).toBeUndefined()
  expect(store.counts).toMatchObject({ damaged: 1, firstDamage: 'image a: the checksum does not fit' })
  await store.put([store.pack(keyOf('a'), features(1))])
  expect(store.get(keyOf('a'))).toEqual(features(1))
})

test('a value that is no number never becomes a record', async () => {
  await using store = await openFeatureStore(join(root, 'finite'))
  expect(() => store.pack(keyOf('b'), features(Number.NaN))).toThrowError(expect.objectContaining({ code: 'FEATURES_NOT_FINITE' }))
})

test('a file where the folder should be is an error with its name', async () => {
  const path = join(root, 'file')
  await writeFile(path, 'x')
  await expect(openFeatureStore(path)).rejects.toMatchObject({ details: { file: path } })
})

test('readers see what a writer in another process has committed, and a killed writer loses none of it', async () => {
  const folder = join(root, 'shared')
  const script = `
    import { openFeatureStore } from ${JSON.stringify(new URL('./feature-store.ts', import.meta.url).href)}
    const store = await openFeatureStore(${JSON.stringify(folder)}, { dtype: 'float32' })
    for (let index = 0; ; index++) {
      await store.put([store.pack({ modality: 'image', content: String(index), encoder: 'e', width: 2 }, { size: { width: 3, height: 3 }, data: Float32Array.of(index, 2, 3, 4) })])
      process.stdout.write(index + '\\n')
    }`
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  await using store = await openFeatureStore(folder, { dtype: 'float32' })
  let last = -1
  let text = ''
  for await (const chunk of child.stdout) {
    text += String(chunk)
    const lines = text.split('\n')
    text = lines.pop() ?? ''
    for (const line of lines) last = Number(line)
    expect(store.get(keyOf(String(last)))).toEqual(features(last))
    if (last >= 20) break
  }
  child.kill('SIGKILL')
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
  expect(last).toBeGreaterThanOrEqual(20)
  for (let index = 0; index <= last; index++) expect(store.get(keyOf(String(index)))).toEqual(features(index))
  // And goes on where it was.
  await store.put([store.pack(keyOf('after'), features(7))])
  expect(store.get(keyOf('after'))).toEqual(features(7))
})
