import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { failNth } from './fs-faults.ts'
import { nodeFs } from './fs-ops.ts'
import { acquireLock } from './lock.ts'

let folder: string
let path: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-lock-'))
  path = join(folder, '.lock')
})
afterEach(() => rm(folder, { recursive: true }))

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )
async function rewrite(change: Record<string, unknown>): Promise<void> {
  await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), ...change }))
}

test('one holder at a time; released, it can be taken again', async () => {
  const lock = await acquireLock(path)
  expect(await failure(acquireLock(path))).toMatchObject({
    code: 'OUTPUT_LOCKED',
    details: { file: path, got: expect.stringContaining(`process ${process.pid} `) },
  })
  await lock.release()
  await lock.release()
  await using _ = await acquireLock(path)
  expect(await readdir(folder)).toEqual(['.lock'])
})

test('of twenty at once one gets it', async () => {
  const results = await Promise.allSettled(Array.from({ length: 20 }, () => acquireLock(path)))
  expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
})

test('a dead process, an earlier start of the machine and a reused pid are taken over', async () => {
  const child = spawn(process.execPath, ['-e', ''])
  await once(child, 'exit')
  for (const change of [{ pid: child.pid }, { bootId: 'another' }, ...(process.platform === 'linux' ? [{ startTicks: '1' }] : [])]) {
    await acquireLock(path)
    await rewrite(change)
    const lock = await acquireLock(path)
    await lock.release()
    expect(await readdir(folder)).toEqual([])
  }
})

test('of twenty that find a stale lock one gets it, every time', async () => {
  for (let round = 0; round < 15; round++) {
    const lock = await acquireLock(path)
    await rewrite({ bootId: 'another' })
    const results = await Promise.allSettled(Array.from({ length: 20 }, () => acquireLock(path)))
    expect(results.flatMap((result) => (result.status === 'rejected' ? [result.reason.code] : []))).toEqual(Array(19).fill('OUTPUT_LOCKED'))
    expect(await readdir(folder)).toEqual(['.lock'])
    await lock.release()
    await rm(path)
  }
})

test('a lock that changes hands after it was found stale stays with its new holder', async () => {
  await acquireLock(path)
  const fresh = { ...JSON.parse(await readFile(path, 'utf8')), token: randomUUID() }
  await rewrite({ bootId: 'another' })
  let links = 0
  const fs = {
    ...nodeFs,
    link: async (existing: string, name: string) => {
      // The second is that of the right to take the stale lock over.
      if (++links === 2) await writeFile(path, JSON.stringify(fresh))
      await nodeFs.link(existing, name)
    },
  }
  expect(await failure(acquireLock(path, { fs }))).toMatchObject({ code: 'OUTPUT_LOCKED' })
  expect(JSON.parse(await readFile(path, 'utf8'))).toEqual(fresh)
  expect(await readdir(folder)).toEqual(['.lock'])
})

test('a process that died while taking over is taken over as well', async () => {
  await acquireLock(path)
  await rewrite({ bootId: 'another' })
  const dead = await readFile(path, 'utf8')
  const right = `${path}.${JSON.parse(dead).token.slice(0, 8)}`
  await writeFile(right, JSON.stringify({ ...JSON.parse(dead), token: randomUUID() }))
  await writeFile(`${path}.01234567`, dead)
  await acquireLock(path)
  expect(await readdir(folder)).toEqual(['.lock'])
})

test('a lock of another machine and a file that is no lock are never taken', async () => {
  await acquireLock(path)
  await rewrite({ host: 'elsewhere', pid: 1 })
  expect(await failure(acquireLock(path))).toMatchObject({
    code: 'OUTPUT_LOCKED',
    details: { hint: expect.stringContaining('that machine') },
  })
  await writeFile(path, await readFile(path, 'utf8').then((text) => text.replace(/"token":"[^"]*"/, '"token":"../../x"')))
  expect(await failure(acquireLock(path))).toMatchObject({ code: 'OUTPUT_LOCKED', details: { expected: 'a lock file of this program' } })
  await writeFile(path, 'notes')
  expect(await failure(acquireLock(path))).toMatchObject({ code: 'OUTPUT_LOCKED', details: { got: 'notes' } })
})

test('releasing leaves a lock that somebody else has put there', async () => {
  const lock = await acquireLock(path)
  await rewrite({ token: randomUUID() })
  await lock.release()
  expect(await readdir(folder)).toEqual(['.lock'])
})

test('an error at every operation leaves no lock behind', async () => {
  for (let n = 1; ; n++) {
    const fs = failNth(n, 'EIO')
    const error = await failure(acquireLock(path, { fs }).then((lock) => lock.release()))
    if (!fs.hit) break
    if (fs.log.at(-1)?.op === 'unlink' && error !== undefined && (await readdir(folder)).includes('.lock')) {
      // Only the removal itself failed: the file is there and its holder is this process.
      await rm(path)
    }
    expect((await readdir(folder)).includes('.lock')).toBe(false)
  }
})
