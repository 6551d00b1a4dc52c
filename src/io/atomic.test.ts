import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { ModalignError } from '../errors.ts'
import { createFileAtomic, removeTemporaries, writeFileAtomic } from './atomic.ts'
import { crashNth, failNth, recordOps, SimulatedCrash } from './fs-faults.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-atomic-'))
})
afterEach(() => rm(folder, { recursive: true }))

async function thrown(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => undefined,
    (error: unknown) => error,
  )
}

describe('writeFileAtomic', () => {
  test('writes text, bytes and chunks, and replaces what was there', async () => {
    const path = join(folder, 'a.bin')
    await writeFileAtomic(path, 'old')
    await writeFileAtomic(path, new Uint8Array([1, 2, 3]))
    expect([...(await readFile(path))]).toEqual([1, 2, 3])
    await writeFileAtomic(
      path,
      (async function* () {
        yield new Uint8Array([4])
        yield new Uint8Array(0)
        yield new Uint8Array([5, 6])
      })(),
    )
    expect([...(await readFile(path))]).toEqual([4, 5, 6])
    await writeFileAtomic(path, '')
    expect(await readFile(path, 'utf8')).toBe('')
    expect(await readdir(folder)).toEqual(['a.bin'])
  })

  test('syncs the file before the rename and the folder after it', async () => {
    const fs = recordOps()
    await writeFileAtomic(join(folder, 'a'), 'x', { fs })
    expect(fs.log.map(({ op }) => op)).toEqual(['open', 'write', 'sync', 'close', 'rename', 'syncDir'])
  })

  test.each([
    ['ENOSPC', 'DISK_FULL'],
    ['EIO', 'DISK_FAILED'],
    ['EROFS', 'DISK_READ_ONLY'],
    ['EMFILE', 'FILE_LIMIT'],
    ['EACCES', 'FILE_PERMISSION'],
  ] as const)('%s at every single operation: typed error, old or new file whole, nothing left over', async (errno, code) => {
    const path = join(folder, 'a')
    let faults = 0
    for (let n = 1; ; n++) {
      await writeFileAtomic(path, 'the old content')
      const fs = failNth(n, errno)
      const error = await thrown(writeFileAtomic(path, 'new', { fs }))
      if (!fs.hit) break
      faults++
      expect(error).toBeInstanceOf(ModalignError)
      expect(error).toMatchObject({ code, details: { file: path } })
      expect(['the old content', 'new']).toContain(await readFile(path, 'utf8'))
      expect(await readdir(folder)).toEqual(['a'])
    }
    expect(faults).toBe(6)
  })

  test.each([0, 0.5, 1])('a crash at every operation, a torn write keeping %f: the file is whole, leftovers can be found', async (torn) => {
    const path = join(folder, 'a')
    const seen = new Set<string>()
    for (let n = 1; ; n++) {
      await writeFileAtomic(path, 'old')
      const fs = crashNth(n, { torn })
      const error = await thrown(writeFileAtomic(path, 'the new content', { fs }))
      if (!fs.hit) break
      expect(error).toBeInstanceOf(SimulatedCrash)
      seen.add(await readFile(path, 'utf8'))
      const left = (await readdir(folder)).filter((name) => name !== 'a').length
      expect(left).toBeLessThanOrEqual(1)
      expect(await removeTemporaries(path)).toBe(left)
      expect(await readdir(folder)).toEqual(['a'])
    }
    expect([...seen].sort()).toEqual(['old', 'the new content'])
  })

  test('a failing producer of chunks leaves the old file', async () => {
    const path = join(folder, 'a')
    await writeFileAtomic(path, 'old')
    const failing = (function* () {
      yield new Uint8Array([1])
      throw new ModalignError({ code: 'TEST_FAILED' })
    })()
    expect(await thrown(writeFileAtomic(path, failing))).toMatchObject({ code: 'TEST_FAILED' })
    expect(await readFile(path, 'utf8')).toBe('old')
    expect(await readdir(folder)).toEqual(['a'])
  })

  test('a missing folder and a name of 255 bytes', async () => {
    expect(await thrown(writeFileAtomic(join(folder, 'no', 'a'), 'x'))).toMatchObject({ code: 'FILE_MISSING' })
    const longest = join(folder, 'é'.repeat(127))
    await writeFileAtomic(longest, 'x')
    expect(await readFile(longest, 'utf8')).toBe('x')
  })

  test('removeTemporaries leaves other files alone', async () => {
    for (const name of ['.a.tmp-1-0123456789ab', '.a.tmp-notes', '.b.tmp-1-0123456789ab', 'a']) await writeFile(join(folder, name), '')
    expect(await removeTemporaries(join(folder, 'a'))).toBe(1)
    expect((await readdir(folder)).sort()).toEqual(['.a.tmp-notes', '.b.tmp-1-0123456789ab', 'a'])
  })
})

describe('createFileAtomic', () => {
  test('of twenty writers one succeeds, and its content is whole', async () => {
    const path = join(folder, 'a')
    const results = await Promise.allSettled(Array.from({ length: 20 }, (_, i) => createFileAtomic(path, `writer ${i}`)))
    const winners = results.flatMap((result, i) => (result.status === 'fulfilled' ? [i] : []))
    expect(winners).toHaveLength(1)
    expect(await readFile(path, 'utf8')).toBe(`writer ${winners[0]}`)
    expect(results.flatMap((result) => (result.status === 'rejected' ? [result.reason.code] : []))).toEqual(Array(19).fill('FILE_EXISTS'))
    expect(await readdir(folder)).toEqual(['a'])
  })
})
