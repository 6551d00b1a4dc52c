import { existsSync } from 'node:fs'
import { mkdtemp, readdir, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { openRecordStore } from './record-store.ts'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-records-'))
})
afterAll(() => rm(root, { recursive: true, force: true }))

/** Not by toEqual: these may be long. */
const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0

/** Of many lengths, some longer than a block and some empty. */
const record = (index: number): Uint8Array => new Uint8Array(index % 50 === 7 ? 1_500_000 : (index * 37) % 400).fill(index)

test('gives back what was stored, in any order, while it grows', async () => {
  const path = join(root, 'grows')
  // As a killed program would leave it.
  await writeFile(path, 'what another program left')
  {
    await using store = await openRecordStore(path)
    for (let index = 0; index < 300; index++) {
      await store.append(record(index))
      if (index % 17 === 0) expect(same(await store.read(index), record(index))).toBe(true)
    }
    expect(store.length).toBe(300)
    for (let index = 299; index >= 0; index -= 7) expect(same(await store.read(index), record(index))).toBe(true)
    for (const index of [0, 7, 57]) expect(same(await store.read(index), record(index))).toBe(true)
    await expect(store.read(300)).rejects.toThrow('internal')
  }
  expect(existsSync(path)).toBe(false)
})

test('keeps a record apart from the buffer that it came in', async () => {
  await using store = await openRecordStore(join(root, 'apart'))
  const buffer = Uint8Array.of(1, 2, 3)
  await store.append(buffer)
  buffer.fill(9)
  expect(await store.read(0)).toEqual(Uint8Array.of(1, 2, 3))
})

test('says that its file was cut, and names a folder that is not there', async () => {
  const path = join(root, 'cut')
  await using store = await openRecordStore(path)
  await store.append(record(20))
  await store.read(0)
  await truncate(path, 3)
  await expect(store.read(0)).rejects.toMatchObject({ code: 'FILE_CHANGED', details: { file: path } })
  await expect(openRecordStore(join(root, 'nowhere', 'x'))).rejects.toMatchObject({ code: 'FILE_MISSING' })
  expect(await readdir(root)).toEqual(['cut'])
})
