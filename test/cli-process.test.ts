import { type ChildProcess, spawn } from 'node:child_process'
import { copyFile, mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { call, makeWorld, type World } from './cli-world.ts'

vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 })

let world: World
beforeAll(async () => {
  world = await makeWorld()
})
afterAll(() => world[Symbol.asyncDispose]())

const program = fileURLToPath(new URL('../src/cli/main.ts', import.meta.url))
const loader = import.meta.resolve('tsx')

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

/** The program in a process of its own. */
function start(
  argv: readonly string[],
  onError: (text: string, child: ChildProcess) => void = () => undefined,
): { readonly child: ChildProcess; readonly ended: Promise<Ended> } {
  const child = spawn(process.execPath, ['--import', loader, program, ...argv], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NO_COLOR: '1' },
  })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
    onError(stderr, child)
  })
  return { child, ended: new Promise((resolve) => child.once('close', (code) => resolve({ code, stdout, stderr }))) }
}

test('without a command: help on stderr and exit 2; an unknown one: one line', async () => {
  const [none, unknown] = await Promise.all([start([]).ended, start(['tunee']).ended])
  expect([none.code, none.stdout]).toEqual([2, ''])
  expect(none.stderr).toContain('Usage: modalign')
  expect(unknown).toEqual({ code: 2, stdout: '', stderr: expect.stringMatching(/^CLI_USAGE: .*Did you mean tune\?.*\n$/) })
})

test('a reader that goes away (| head) is a silent success', async () => {
  const { child, ended } = start(['inspect', world.llm, '--tensors'])
  child.stdout?.destroy()
  expect(await ended).toMatchObject({ code: 0, stderr: '' })
})

test('two Ctrl-C end a job at once; the next run goes on where it was', async () => {
  const tuned = await call(['tune', world.runFile, '--max-steps', '1'])
  expect(tuned.code).toBe(0)
  const folder = world.path('many')
  await mkdir(folder)
  for (let i = 0; i < 15; i++) await copyFile(join(world.pictures, 'red.png'), join(folder, `${String(i).padStart(2, '0')}.png`))
  const output = world.path('captions.jsonl')
  const argv = [
    'caption',
    folder,
    '--output',
    output,
    '--batch-size',
    '1',
    '--model',
    world.path('runs', 'first', 'model'),
    '--device',
    'cpu',
    '--threads',
    '1',
    '--max-new-tokens',
    '8',
  ]
  let sent = 0
  const { ended } = start(argv, (text, child) => {
    if (sent === 0 && text.includes('caption: 1/15')) {
      sent = 1
      child.kill('SIGINT')
    } else if (sent === 1 && text.includes('press Ctrl-C again')) {
      sent = 2
      child.kill('SIGINT')
    }
  })
  expect((await ended).code).toBe(130)
  expect(sent).toBe(2)
  const before = (await readFile(output, 'utf8')).split('\n').length - 1
  expect(before).toBeLessThan(15)
  const resumed = await start([...argv, '--json']).ended
  expect(resumed.code).toBe(0)
  expect(JSON.parse(resumed.stdout)).toMatchObject({ type: 'summary', captioned: 15, bad: 0 })
  const rows = (await readFile(output, 'utf8'))
    .trimEnd()
    .split('\n')
    .map((line): { id: string; caption: string } => JSON.parse(line))
  expect(rows.map(({ id }) => id)).toEqual(Array.from({ length: 15 }, (_, i) => `${String(i).padStart(2, '0')}.png`))
  expect(new Set(rows.map(({ caption }) => caption)).size).toBe(1)
})
