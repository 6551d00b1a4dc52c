import { mkdir, mkdtemp, readFile, realpath, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { float32Tensor } from '../tensors.ts'
import { externalLayout } from './external.ts'
import { readExternalData } from './external-data.ts'
import { createLocalSession } from './local.ts'

let folder = ''
const at = (...parts: string[]) => join(folder, ...parts)
const model = () => readFile(new URL('../../test/fixtures/runtime/external.onnx', import.meta.url))

beforeAll(async () => {
  folder = await realpath(await mkdtemp(join(tmpdir(), 'modalign-external-')))
  const weights = new Uint8Array(4096 + 16)
  new Float32Array(weights.buffer, 4096).set([10, 20, 30, 40])
  for (const name of ['cache/blobs', 'cache/snapshots/main/weights', 'elsewhere', 'leaving/weights'])
    await mkdir(at(name), { recursive: true })
  await writeFile(at('cache/blobs/0f3a'), weights)
  await writeFile(at('elsewhere/w.bin'), weights)
  await symlink('../../../blobs/0f3a', at('cache/snapshots/main/weights/shard.bin'))
  await symlink(at('elsewhere/w.bin'), at('leaving/weights/shard.bin'))
  await symlink(at('cache'), at('link'))
})
afterAll(() => rm(folder, { recursive: true }))

describe('externalLayout', () => {
  test('links are resolved before the common folder is sought', async () => {
    const link = at('link/snapshots/main/weights/shard.bin')
    expect(await externalLayout([link])).toEqual({ root: at('cache/blobs'), locations: new Map([[link, '0f3a']]) })
    const other = at('elsewhere/w.bin')
    expect(await externalLayout([link, other])).toEqual({
      root: folder,
      locations: new Map([
        [link, 'cache/blobs/0f3a'],
        [other, 'elsewhere/w.bin'],
      ]),
    })
  })

  test.each([[[]], [['none.bin']], [['elsewhere']]])('%o is refused', async (names) => {
    await expect(externalLayout(names.map((name) => at(name)))).rejects.toMatchObject({ code: 'RUNTIME_EXTERNAL_FILE' })
  })
})

describe('external weights on WASM', () => {
  test('are read from the folder that the native runtime would map them from', async () => {
    await mkdir(at('plain/weights'), { recursive: true })
    await writeFile(at('plain/weights/shard.bin'), await readFile(at('elsewhere/w.bin')))
    await using session = await createLocalSession({ bytes: await model(), externalRoot: at('plain') }, { device: 'wasm' })
    const { y } = await session.run({ x: float32Tensor(Float32Array.of(1, 2, 3, 4), [4]) })
    expect(y?.data).toEqual(Float32Array.of(11, 22, 33, 44))
  })

  test('a missing file and a link out of the folder are errors', async () => {
    const bytes = await model()
    await expect(readExternalData(bytes, at('elsewhere'))).rejects.toMatchObject({ code: 'RUNTIME_EXTERNAL_FILE' })
    await expect(readExternalData(bytes, at('leaving'))).rejects.toMatchObject({ code: 'RUNTIME_EXTERNAL_ROOT' })
  })
})
