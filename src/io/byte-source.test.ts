import { execFileSync } from 'node:child_process'
import { appendFile, mkdtemp, readFile, rename, rm, symlink, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { fileSource, memorySource } from './byte-source.ts'
import { fingerprint, fullHash } from './fingerprint.ts'

let folder: string
let path: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-source-'))
  path = join(folder, 'a')
})
afterEach(() => rm(folder, { recursive: true }))

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )

describe('sources', () => {
  test('file and memory read the same ranges and refuse the same ones', async () => {
    const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i % 251)
    await writeFile(path, bytes)
    const file = await fileSource(path)
    const memory = memorySource(bytes)
    expect(file.size).toBe(1000)
    for (const [offset, length] of [
      [0, 0],
      [0, 1000],
      [1000, 0],
      [17, 300],
    ] as const) {
      expect(await file.read(offset, length)).toEqual(bytes.slice(offset, offset + length))
      expect(await memory.read(offset, length)).toEqual(bytes.slice(offset, offset + length))
    }
    for (const [offset, length] of [
      [-1, 2],
      [0, 1001],
      [1001, 0],
      [0.5, 1],
      [0, -1],
      [2 ** 53, 1],
      [Number.NaN, 1],
    ] as const) {
      expect(await failure(file.read(offset, length))).toMatchObject({ code: 'FILE_RANGE' })
      expect(await failure(memory.read(offset, length))).toMatchObject({ code: 'FILE_RANGE' })
    }
  })

  test('a file that changes after it was opened is noticed', async () => {
    const changes: readonly (() => Promise<void>)[] = [
      () => appendFile(path, 'x'),
      () => writeFile(path, ''),
      () => utimes(path, 1, 1),
      async () => {
        await writeFile(`${path}.new`, 'abc')
        await rename(`${path}.new`, path)
      },
    ]
    for (const change of changes) {
      await writeFile(path, 'abc')
      const source = await fileSource(path)
      await change()
      expect(await failure(source.read(0, 1))).toMatchObject({ code: 'FILE_CHANGED', details: { file: path } })
    }
  })

  test('what is no regular file is refused without waiting', async () => {
    execFileSync('mkfifo', [join(folder, 'pipe')])
    expect(await failure(fileSource(join(folder, 'pipe')))).toMatchObject({ code: 'FILE_NOT_REGULAR' })
    expect(await failure(fileSource('/dev/zero'))).toMatchObject({ code: 'FILE_NOT_REGULAR' })
    expect(await failure(fileSource(folder))).toMatchObject({ code: 'FILE_NOT_REGULAR' })
    expect(await failure(fileSource(path))).toMatchObject({ code: 'FILE_MISSING' })
    expect(await failure(fileSource('a\0b'))).toMatchObject({ code: 'FILE_MISSING' })
    await symlink('b', path)
    await symlink('a', join(folder, 'b'))
    expect(await failure(fileSource(path))).toMatchObject({ code: 'FILE_MISSING' })
  })
})

describe('fingerprint', () => {
  test('fullHash equals sha256sum', async () => {
    await writeFile(
      path,
      Uint8Array.from({ length: 100_000 }, (_, i) => i % 253),
    )
    const [expected] = execFileSync('sha256sum', [path], { encoding: 'utf8' }).split(' ')
    expect(await fullHash(await fileSource(path))).toBe(expected)
    expect(await fullHash(memorySource(await readFile(path)))).toBe(expected)
  })

  test('sees a change in the first and last MiB, at the blocks, in size and in the header', async () => {
    const size = 20 * 2 ** 20 + 12_345
    const bytes = new Uint8Array(size)
    const first = await fingerprint(memorySource(bytes))
    const room = size - 2 * 2 ** 20 - 65_536
    for (const position of [
      0,
      2 ** 20 - 1,
      size - 1,
      size - 2 ** 20,
      ...[0, 31, 63].map((block) => 2 ** 20 + Math.floor((room * block) / 63)),
    ]) {
      bytes[position] = 1
      expect(await fingerprint(memorySource(bytes))).not.toBe(first)
      bytes[position] = 0
    }
    expect(await fingerprint(memorySource(bytes))).toBe(first)
    expect(await fingerprint(memorySource(bytes.subarray(1)))).not.toBe(first)
    expect(await fingerprint(memorySource(bytes), new Uint8Array(1))).not.toBe(first)
  })

  test('a source of up to 6 MiB is covered in every byte; reading a big one stays small', async () => {
    const bytes = new Uint8Array(6 * 2 ** 20)
    const first = await fingerprint(memorySource(bytes))
    bytes[3_333_333] = 1
    expect(await fingerprint(memorySource(bytes))).not.toBe(first)
    let read = 0
    await fingerprint({
      size: 10 ** 12,
      read: async (offset, length) => {
        expect(offset + length).toBeLessThanOrEqual(10 ** 12)
        read += length
        return new Uint8Array(length)
      },
    })
    expect(read).toBe(6 * 2 ** 20)
  })
})
