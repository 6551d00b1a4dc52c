/**
 * What huge pages gain in decoding: SmolLM2-135M's shape, one row, in two processes that generate in turn, one as it is and one that glibc gives huge pages
 * (see src/runtime/huge-pages.ts). Memory that each process has to itself beside it.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { z } from 'zod'
import { hugePageSetting, hugePageTunables } from '../../src/runtime/huge-pages.ts'
import { median } from './median.ts'

const child = fileURLToPath(new URL(import.meta.url.endsWith('.ts') ? './pages-child.ts' : './pages-child.js', import.meta.url))
const rounds = 20

/** By kind of weights: middle milliseconds a token without and with, the middle of the rounds' ratios (with over without), and megabytes. */
export type PagesFigures = Readonly<Record<string, number>>

export async function benchPages(): Promise<PagesFigures> {
  if (hugePageSetting() !== 'madvise')
    throw new Error(`nothing to compare: huge pages are ${hugePageSetting() ?? 'not there'}, not given to those who ask`)
  return { ...(await compare('fp32')), ...(await compare('q4')) }
}

async function compare(kind: string): Promise<PagesFigures> {
  const folder = await mkdtemp(join(tmpdir(), 'modalign-bench-'))
  const { GLIBC_TUNABLES: _, ...plain } = process.env
  const children: ChildProcess[] = []
  try {
    const open = async (name: string, env: NodeJS.ProcessEnv): Promise<ChildProcess> => {
      const own = join(folder, name)
      await mkdir(own)
      const opened = fork(child, [kind, own], { env })
      children.push(opened)
      await answer(opened)
      return opened
    }
    const [small, huge] = [await open('small', plain), await open('huge', { ...plain, GLIBC_TUNABLES: hugePageTunables })]
    const times = { small: [] as number[], huge: [] as number[] }
    const turn = async (process: ChildProcess, into: number[]): Promise<void> => {
      process.send('generate')
      into.push(await answer(process))
    }
    for (let round = 0; round < rounds; round++) {
      const turns = [() => turn(small, times.small), () => turn(huge, times.huge)]
      for (const take of round % 2 === 0 ? turns : turns.reverse()) await take()
    }
    return {
      [`${kind}Milliseconds`]: median(times.small),
      [`${kind}MillisecondsHuge`]: median(times.huge),
      [`${kind}Ratio`]: median(times.huge.map((time, round) => time / (times.small[round] ?? Number.NaN))),
      [`${kind}Megabytes`]: await megabytes(small, 'Pss_Anon'),
      [`${kind}MegabytesHuge`]: await megabytes(huge, 'Pss_Anon'),
      [`${kind}MegabytesOnHugePages`]: await megabytes(huge, 'AnonHugePages'),
    }
  } finally {
    for (const opened of children) opened.kill()
    await rm(folder, { recursive: true, force: true })
  }
}

async function answer(process: ChildProcess): Promise<number> {
  const settled = new AbortController()
  const { signal } = settled
  const ended = once(process, 'exit', { signal }).then(([code]) => Promise.reject(new Error(`a measured process ended with ${code}`)))
  try {
    const [message] = await Promise.race([once(process, 'message', { signal }), ended])
    return z.number().parse(message)
  } finally {
    ended.catch(() => undefined)
    settled.abort()
  }
}

async function megabytes({ pid }: ChildProcess, name: string): Promise<number> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8')
  return Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1]) / 1024
}
