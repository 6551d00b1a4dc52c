import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { homedir, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { cacheFolder } from './cache-folder.ts'
import { cachedFile } from './cached-file.ts'
import { failNth } from './fs-faults.ts'
import { acquireLock } from './lock.ts'

let folder: string
let path: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-cache-'))
  path = join(folder, 'weights', 'a.safetensors')
})
afterEach(() => rm(folder, { recursive: true }))

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

describe('a file that can be made again', () => {
  test('is made once, with its folder; later calls leave it alone', async () => {
    let made = 0
    const content = (): Uint8Array => bytes(`made ${++made}`)
    await cachedFile(path, content)
    await cachedFile(path, content)
    expect(await readFile(path, 'utf8')).toBe('made 1')
    expect(await readdir(join(folder, 'weights'))).toEqual(['a.safetensors'])
  })

  test('of several who want it at once one makes it, and all get it whole', async () => {
    let made = 0
    async function* slowly(): AsyncGenerator<Uint8Array> {
      made++
      for (const piece of ['a', 'b', 'c']) {
        await new Promise((done) => setTimeout(done, 20))
        yield bytes(piece)
      }
    }
    await Promise.all(
      Array.from({ length: 5 }, async () => {
        await cachedFile(path, slowly, { pollMs: 5 })
        expect(await readFile(path, 'utf8')).toBe('abc')
      }),
    )
    expect(made).toBe(1)
  })

  test('a maker that fails leaves nothing, and the next one succeeds', async () => {
    async function* failing(): AsyncGenerator<Uint8Array> {
      yield bytes('half')
      throw new Error('the source broke')
    }
    await expect(cachedFile(path, failing)).rejects.toThrow('the source broke')
    expect(await readdir(join(folder, 'weights'))).toEqual([])
    await cachedFile(path, () => bytes('whole'))
    expect(await readFile(path, 'utf8')).toBe('whole')
  })

  test('whichever operation a full disk fails at: a typed error that says where else to go, no half file, and the next call succeeds', async () => {
    for (let n = 1; ; n++) {
      // A lock that could not be taken away is this process's until it ends, so each round has a place of its own.
      const own = join(folder, `${n}`, 'a.safetensors')
      const fs = failNth(n, 'ENOSPC')
      const error: unknown = await cachedFile(own, () => bytes('whole'), { fs }).catch((failure: unknown) => failure)
      if (!fs.hit) break
      if (error !== undefined)
        expect(error).toMatchObject({ code: 'DISK_FULL', details: { hint: expect.stringContaining('MODALIGN_CACHE') } })
      if (existsSync(own)) expect(await readFile(own, 'utf8')).toBe('whole')
      else if (!existsSync(`${own}.lock`)) await cachedFile(own, () => bytes('whole'))
    }
  })

  test('waiting for another process can be given up', async () => {
    await mkdir(join(folder, 'weights'))
    await using _ = await acquireLock(`${path}.lock`)
    const waiting = cachedFile(path, () => bytes('x'), { pollMs: 5, signal: AbortSignal.timeout(40) })
    await expect(waiting).rejects.toMatchObject({ name: expect.stringMatching(/AbortError|TimeoutError/) })
    expect(existsSync(path)).toBe(false)
  })
})

test("the cache's folder: our own variable, then the system's place", () => {
  expect(cacheFolder({ MODALIGN_CACHE: 'here', XDG_CACHE_HOME: '/x' }, 'linux')).toBe(resolve('here'))
  expect(cacheFolder({ XDG_CACHE_HOME: '/x' }, 'linux')).toBe(join('/x', 'modalign'))
  expect(cacheFolder({}, 'linux')).toBe(join(homedir(), '.cache', 'modalign'))
  expect(cacheFolder({}, 'darwin')).toBe(join(homedir(), 'Library', 'Caches', 'modalign'))
  expect(cacheFolder({ LOCALAPPDATA: '/l' }, 'win32')).toBe(join('/l', 'modalign', 'Cache'))
})
