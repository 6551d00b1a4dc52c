import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type KillJob, runKillJob } from './kill-caption-job.ts'

const long = process.env.MODALIGN_LONG === '1'
/** Far above what these take (seconds, or minutes in the long run): they are many process starts, and the machine may be shared. */
const timeoutMs = long ? 1_800_000 : 300_000
const itemCount = 60
const badIds = new Set(['05.jpg', '17.jpg', 'more/41.jpg'])

let root: string
let child: string
let input: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-kill-'))
  child = join(root, 'child.mjs')
  // Bundled once: a process that starts in a tenth of a second can be killed more often than one that compiles itself.
  await build({
    entryPoints: [join(dirname(fileURLToPath(import.meta.url)), 'kill-caption-child.ts')],
    bundle: true,
    platform: 'node',
    format: 'esm',
    outfile: child,
    logLevel: 'error',
  })
  input = join(root, 'input')
  await mkdir(join(input, 'more'), { recursive: true })
  for (let i = 0; i < itemCount; i++) {
    const id = `${i < 30 ? '' : 'more/'}${String(i).padStart(2, '0')}.jpg`
    await writeFile(join(input, id), badIds.has(id) ? '' : `picture ${i}`)
  }
})
afterAll(() => rm(root, { recursive: true }))

/** One thread for files: `strace` counts calls thread by thread. */
const environment = { PATH: process.env.PATH, UV_THREADPOOL_SIZE: '1', UV_USE_IO_URING: '0' }

function start(job: KillJob, wrapper: readonly string[] = []) {
  const [command = '', ...args] = [...wrapper, process.execPath, child, JSON.stringify(job)]
  return spawn(command, args, { env: environment, stdio: ['ignore', 'ignore', 'inherit'] })
}

/** Every file of a folder with its content; so leftovers of any kind show. */
async function contents(folder: string): Promise<Record<string, string>> {
  const found: [string, string][] = []
  for (const name of (await readdir(folder, { recursive: true })).sort()) {
    if ((await stat(join(folder, name))).isFile()) found.push([name, await readFile(join(folder, name), 'utf8')])
  }
  return Object.fromEntries(found)
}

async function inFolder<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(root, 'run-'))
  try {
    return await use(folder)
  } finally {
    await rm(folder, { recursive: true })
  }
}

const jobIn = (folder: string, format: KillJob['format'], batchMs: number): KillJob => ({
  input,
  output: join(folder, 'out'),
  format,
  batchMs,
})

function undisturbed(format: KillJob['format']): Promise<Record<string, string>> {
  return inFolder(async (folder) => {
    const summary = await runKillJob(jobIn(folder, format, 0))
    expect(summary).toMatchObject({ status: 'finished', total: itemCount, bad: badIds.size, resumed: 0 })
    return contents(folder)
  })
}

async function finishAndCompare(job: KillJob, folder: string, expected: Record<string, string>, label: string): Promise<void> {
  const summary = await runKillJob({ ...job, batchMs: 0 })
  expect(summary, label).toMatchObject({
    status: 'finished',
    total: itemCount,
    captioned: itemCount - badIds.size,
    bad: badIds.size,
    missing: 0,
    left: 0,
  })
  expect(await contents(folder), label).toEqual(expected)
}

describe('SIGKILL at random moments', () => {
  test.each(['jsonl', 'csv', 'txt'] as const)(
    '%s: after restarts, the files of an undisturbed run',
    { timeout: timeoutMs },
    async (format) => {
      const expected = await undisturbed(format)
      const started = performance.now()
      await inFolder(async (folder) => {
        const [code] = await once(start(jobIn(folder, format, 15)), 'exit')
        expect(code).toBe(0)
        expect(await contents(folder)).toEqual(expected)
      })
      let wholeMs = performance.now() - started
      let kills = 0
      let midway = 0
      const wanted = long ? (format === 'jsonl' ? 100 : 20) : format === 'jsonl' ? 10 : 3
      // A loaded machine may put all of the first kills before or after the work.
      for (let run = 0; kills < wanted || (midway === 0 && run < 40); run++) {
        await inFolder(async (folder) => {
          const job = jobIn(folder, format, 15)
          const moments: number[] = []
          // Killed up to three times over, recovery included, and then left to finish.
          for (let attempt = 0; attempt < 1 + (kills % 3); attempt++) {
            const process = start(job)
            const exit = once(process, 'exit')
            const momentMs = wholeMs * Math.random()
            moments.push(Math.round(momentMs))
            const startedAt = performance.now()
            await Promise.race([pause(momentMs), exit])
            process.kill('SIGKILL')
            const [, signal] = await exit
            // It was faster than the first: the machine is less busy now.
            if (signal === null && moments.length === 1) wholeMs = Math.min(wholeMs, performance.now() - startedAt)
            if (signal === 'SIGKILL') kills++
            if (await rowsAreIncomplete(format === 'txt' ? `${job.output}.rows.jsonl` : job.output)) midway++
          }
          await finishAndCompare(job, folder, expected, `killed after ${moments.join(', ')} ms of ${Math.round(wholeMs)}`)
        })
      }
      expect(midway).toBeGreaterThan(0)
    },
  )
})

/** Some rows are there, not all. */
async function rowsAreIncomplete(path: string): Promise<boolean> {
  const text = await readFile(path, 'utf8').catch(() => '')
  return text !== '' && !text.includes('59.jpg')
}

/** `strace` can kill a process as it enters the K-th call of a kind: every point at which a kill can fall between two changes of the disk. */
const noStrace = (() => {
  if (process.platform !== 'linux') return 'strace is for Linux'
  try {
    execFileSync('strace', ['-qq', '-e', 'trace=none', 'true'], { stdio: 'ignore' })
    return undefined
  } catch {
    return 'strace is not installed, or may not trace here'
  }
})()
const calls = ['pwrite64', 'fsync', 'rename', 'link', 'unlink', 'ftruncate'] as const

describe.skipIf(noStrace !== undefined)(
  `SIGKILL at every call that changes the disk${noStrace === undefined ? '' : ` (skipped: ${noStrace})`}`,
  () => {
    const formats = long ? (['jsonl', 'csv', 'txt'] as const) : (['jsonl'] as const)
    test.each(formats)('%s: after a restart, the files of an undisturbed run', { timeout: timeoutMs }, async (format) => {
      const expected = await undisturbed(format)
      const counts = await inFolder(async (folder) => {
        const trace = join(folder, '..', 'trace.txt')
        const [code] = await once(
          start(jobIn(folder, format, 0), ['strace', '-f', '-qq', '-o', trace, '-e', `trace=${calls.join(',')}`]),
          'exit',
        )
        expect(code).toBe(0)
        const lines = (await readFile(trace, 'utf8')).split('\n').filter((line) => calls.some((call) => line.includes(` ${call}(`)))
        // All on one thread, or the numbers below would not mean what they should.
        expect(new Set(lines.map((line) => line.split(' ')[0])).size).toBe(1)
        return new Map(calls.map((call) => [call, lines.filter((line) => line.includes(` ${call}(`)).length]))
      })
      // A lock, a spec, 15 batches, each written and synced.
      expect(counts.get('pwrite64')).toBeGreaterThanOrEqual(17)
      expect(counts.get('fsync')).toBeGreaterThanOrEqual(17)
      for (const call of ['rename', 'link', 'unlink'] as const) expect(counts.get(call), call).toBeGreaterThanOrEqual(1)

      const points = [...counts].flatMap(([call, count]) => Array.from({ length: count }, (_, i) => ({ call, nth: i + 1 })))
      const killed = async ({ call, nth }: { readonly call: string; readonly nth: number }) =>
        inFolder(async (folder) => {
          const job = jobIn(folder, format, 0)
          const inject = [
            'strace',
            '-f',
            '-qq',
            '-o',
            '/dev/null',
            '-e',
            `trace=${call}`,
            '-e',
            `inject=${call}:signal=SIGKILL:when=${nth}`,
          ]
          const [, signal] = await once(start(job, inject), 'exit')
          expect(signal, `${call} ${nth}`).toBe('SIGKILL')
          // The restart is killed as well, in a run of three.
          if (nth % 3 === 0)
            await once(start(job, [...inject.slice(0, -1), `inject=${call}:signal=SIGKILL:when=${Math.ceil(nth / 2)}`]), 'exit')
          await finishAndCompare(job, folder, expected, `${call} ${nth}`)
        })
      // Two at a time: a start is mostly waiting.
      const queue = points.values()
      await Promise.all(
        [0, 1].map(async () => {
          for (const point of queue) await killed(point)
        }),
      )
    })
  },
)
