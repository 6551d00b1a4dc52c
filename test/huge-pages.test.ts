/** The program as a process: whether it starts again for huge pages, and that nothing else changes. */
import { execFile, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { canRestart, hugePageSetting, hugePageTunables } from '../src/runtime/huge-pages.ts'

const main = fileURLToPath(new URL('../src/cli/main.ts', import.meta.url))
const tsx = import.meta.resolve('tsx')
/** Says at every start of a program which process it is, and what glibc was told. */
const witness = `data:text/javascript,${encodeURIComponent(
  `import { isMainThread } from 'node:worker_threads'
  if (isMainThread) console.error('started', process.pid, String(process.env.GLIBC_TUNABLES), process.argv.slice(2).join('|'))`,
)}`
const { GLIBC_TUNABLES: _, ...plain } = process.env
const restarts = canRestart && hugePageSetting() === 'madvise'

interface Outcome {
  readonly code: number
  readonly starts: readonly { readonly process: string; readonly tunables: string; readonly words: string }[]
}

const startsIn = (stderr: string): Outcome['starts'] =>
  [...stderr.matchAll(/^started (\d+) (\S+) (.*)$/gm)].map(([, process = '', tunables = '', words = '']) => ({ process, tunables, words }))

function start(words: readonly string[], env: NodeJS.ProcessEnv = plain): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = execFile(process.execPath, ['--import', tsx, '--import', witness, main, ...words], { env }, (_error, _stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, starts: startsIn(stderr) }),
    )
  })
}

const question = ['chat', '--llm', '/no such/model.gguf', 'Why?']

describe('modalign as a process', { timeout: 60_000 }, () => {
  test(`starts ${restarts ? 'again as the same process' : `once: Linux says ${hugePageSetting()}, process.execve ${canRestart ? 'is' : 'is not'} there`}`, async () => {
    const { code, starts } = await start(question)
    const [first, second, ...others] = starts
    expect(others).toEqual([])
    expect(first).toMatchObject({ tunables: 'undefined', words: question.join('|') })
    expect(second).toEqual(restarts ? { ...first, tunables: hugePageTunables } : undefined)
    expect(code).toBe((await start(question, { ...plain, GLIBC_TUNABLES: '' })).code)
    expect(code).not.toBe(0)
  })

  test('starts once where the command reads no weights, where the user has decided, and where it is a child that talks to its parent', async () => {
    expect((await start(['inspect', '/no such/model.gguf'])).starts).toHaveLength(1)
    const own = 'glibc.malloc.check=0'
    expect((await start(question, { ...plain, GLIBC_TUNABLES: own })).starts).toMatchObject([{ tunables: own }])
    const child = fork(main, question, {
      execArgv: ['--import', tsx, '--import', witness],
      env: plain,
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    })
    let stderr = ''
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    await once(child, 'close')
    expect(startsIn(stderr)).toHaveLength(1)
  })
})
