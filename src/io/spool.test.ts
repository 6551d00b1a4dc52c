import { readdir, readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { expect, test } from 'vitest'
import { spool } from './spool.ts'

const ours = async (): Promise<readonly string[]> => (await readdir(tmpdir())).filter((name) => /^modalign-[A-Za-z0-9]{6}$/.test(name))

test('the bytes can be read and sought, and nothing is left', async () => {
  const bytes = Uint8Array.from({ length: 100_000 }, (_, i) => i % 251)
  const before = await ours()
  let path: string
  {
    await using file = await spool(bytes)
    path = file.path
    expect(Buffer.compare(await readFile(path), bytes)).toBe(0)
    if (process.platform === 'linux') expect(await ours()).toEqual(before)
  }
  await expect(readFile(path)).rejects.toMatchObject({ code: 'ENOENT' })
  expect(await ours()).toEqual(before)
})

test('an empty file', async () => {
  await using file = await spool(new Uint8Array())
  expect((await readFile(file.path)).length).toBe(0)
})
