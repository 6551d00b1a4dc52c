import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { durationText, type ProgressState, renderProgress, renderProgressPlain } from './progress.ts'
import { type ProgressOptions, showProgress } from './progress-writer.ts'

const state: ProgressState = {
  label: 'tune',
  done: 420,
  total: 1000,
  elapsedMs: 84_000,
  unit: 'steps',
  facts: [
    ['loss', '2.314'],
    ['lr', '8.1e-4'],
  ],
}
// biome-ignore lint/suspicious/noControlCharactersInRegex: the escape character begins a colour code
const plain = (text: string) => text.replace(/\u001b\[[0-9;]*[A-Za-z]/g, '')

describe('the line of a terminal', () => {
  test.each([
    [120, 'tune ━━━━━━━━━━━━╺━━━━━━━━━━━━━━━━━  42%  420/1000  loss 2.314  lr 8.1e-4  5.0 steps/s  1m 56s left'],
    [80, 'tune ━━━━╺━━━━━  42%  420/1000  loss 2.314  lr 8.1e-4  5.0 steps/s  1m 56s left'],
    [70, 'tune ━━━━╺━━━━━━  42%  420/1000  loss 2.314  5.0 steps/s  1m 56s left'],
    [60, 'tune ━━━━━╺━━━━━━━  42%  420/1000  5.0 steps/s  1m 56s left'],
    [45, 'tune ━━━━╺━━━━━━  42%  420/1000  1m 56s left'],
    [38, 'tune  42%  420/1000  1m 56s left'],
    [22, 'tune  42%  420/1000'],
    [11, 'tune  42%'],
    [5, '42%'],
    [3, ''],
  ])('%d columns', (columns, line) => {
    expect(renderProgress(state, { columns })).toBe(line)
  })

  test('ASCII where the locale has no box characters', () => {
    expect(renderProgress(state, { columns: 60, unicode: false })).toBe('tune [====       ]  42%  420/1000  5.0 steps/s  1m 56s left')
  })

  test('colours change nothing but the colour', () => {
    const colored = renderProgress(state, { columns: 80, color: true })
    expect(colored).not.toBe(plain(colored))
    expect(plain(colored)).toBe(renderProgress(state, { columns: 80 }))
  })

  test('law: never wider than the terminal, whatever is shown', () => {
    const text = fc.string({ unit: 'grapheme', maxLength: 12 })
    fc.assert(
      fc.property(
        fc.record({
          label: text,
          done: fc.nat(),
          total: fc.nat(),
          elapsedMs: fc.double({ min: 0, max: 1e12, noNaN: true }),
          unit: fc.constant('steps'),
          facts: fc.array(fc.tuple(text, text), { maxLength: 4 }),
        }),
        fc.integer({ min: 0, max: 200 }),
        fc.boolean(),
        (anyState, columns, color) => {
          const line = plain(renderProgress(anyState, { columns, color }))
          // Every wide character of a line counts at least once: a lower bound of its width that does not rest on the code under test.
          expect([...line.replace(/[\p{M}\p{Cf}]/gu, '')].length).toBeLessThanOrEqual(Math.max(0, columns - 1))
          expect(line).not.toMatch(/[\r\n]/)
        },
      ),
    )
  })

  test('wide characters take two columns', () => {
    const line = renderProgress({ ...state, label: '調整', facts: [] }, { columns: 41 })
    expect(line.startsWith('調整 ')).toBe(true)
    expect([...line].length + 2).toBeLessThanOrEqual(40)
  })

  test('the end, the beginning, nothing to do', () => {
    expect(renderProgressPlain({ ...state, done: 1000 })).toBe(
      'tune: 1000/1000 steps (100%), loss 2.314, lr 8.1e-4, 11.9 steps/s, in 1m 24s',
    )
    expect(renderProgressPlain({ ...state, done: 0, elapsedMs: 0, facts: [] })).toBe('tune: 0/1000 steps (0%)')
    expect(renderProgressPlain({ ...state, done: 0, total: 0, elapsedMs: 0, facts: [] })).toBe('tune: 0/0 steps (100%), in 0s')
    expect(renderProgressPlain({ ...state, done: 999, facts: [] })).toContain('(99%)')
  })

  test('steps of an earlier session do not make this one look fast', () => {
    expect(renderProgressPlain({ ...state, skipped: 400, facts: [] })).toBe('tune: 420/1000 steps (42%), 4.2 s/step, 40m 36s left')
  })

  test.each([
    [0.4, '0s'],
    [59.4, '59s'],
    [59.6, '1m 00s'],
    [3599.6, '1h 00m'],
    [3725, '1h 02m'],
    [86_399, '1d 00h'],
    [200_000, '2d 08h'],
  ])('%d s', (seconds, text) => {
    expect(durationText(seconds)).toBe(text)
  })
})

describe('the writer', () => {
  function open(options: Partial<ProgressOptions> & { readonly isTTY?: boolean; readonly columns?: number } = {}) {
    let time = 0
    const written: string[] = []
    const listeners: ((error: Error) => void)[] = []
    const stream = {
      isTTY: options.isTTY ?? false,
      columns: options.columns ?? 80,
      write: (text: string) => written.push(text),
      on: (_event: 'error', listener: (error: Error) => void) => listeners.push(listener),
    }
    const progress = showProgress({ label: 'tune', total: 100, stream, env: { LANG: 'C.UTF-8' }, now: () => time, ...options })
    return { progress, written, stream, listeners, advance: (ms: number) => (time += ms) }
  }

  test('a terminal: one line redrawn, not too often, ended by a newline', () => {
    const { progress, written, advance } = open({ isTTY: true, env: { LANG: 'C.UTF-8', NO_COLOR: '1' } })
    for (let done = 1; done <= 20; done++) {
      advance(10)
      progress.update(done)
    }
    expect(written.length).toBeLessThanOrEqual(3)
    expect(written.every((text) => text.startsWith('\r\u001b[2K') && !text.includes('\n'))).toBe(true)
    progress.finish()
    expect(written.at(-2)).toContain('20%')
    expect(written.at(-1)).toBe('\n')
    const count = written.length
    progress.finish()
    progress.update(50)
    expect(written.length).toBe(count)
  })

  test('NO_COLOR and a dumb terminal', () => {
    const draw = (env: Readonly<Record<string, string>>) => {
      const { progress, written } = open({ isTTY: true, env })
      progress.update(1)
      return written.join('')
    }
    expect(draw({ LANG: 'C.UTF-8' })).toContain('\u001b[1m')
    expect(draw({ LANG: 'C.UTF-8', NO_COLOR: '' })).toContain('\u001b[1m')
    expect(draw({ LANG: 'C.UTF-8', NO_COLOR: '1' }).replace('\r\u001b[2K', '')).not.toContain('\u001b')
    expect(draw({ TERM: 'dumb' })).toBe('tune: 1/100 steps (1%)\n')
    expect(draw({ TERM: 'linux', LANG: 'C.UTF-8' })).toContain('[')
  })

  test('a pipe: plain lines at intervals, and the last state', () => {
    const { progress, written, advance } = open({ plainIntervalMs: 1000 })
    for (let done = 1; done <= 100; done++) {
      advance(25)
      progress.update(done, [['loss', '1.00']])
    }
    progress.finish()
    expect(written).toEqual([
      'tune: 1/100 steps (1%), loss 1.00, 40.0 steps/s, 2s left\n',
      'tune: 41/100 steps (41%), loss 1.00, 40.0 steps/s, 1s left\n',
      'tune: 81/100 steps (81%), loss 1.00, 40.0 steps/s, 0s left\n',
      'tune: 100/100 steps (100%), loss 1.00, 40.0 steps/s, in 3s\n',
    ])
  })

  test('the speed shown follows the speed of now', () => {
    const { progress, written, advance } = open({ total: 10_000, plainIntervalMs: 0 })
    let done = 0
    for (let i = 0; i < 100; i++) {
      advance(100)
      done += 10
      progress.update(done)
    }
    for (let i = 0; i < 60; i++) {
      advance(1000)
      done++
      progress.update(done)
    }
    const shown = Number(/([\d.]+) steps\/s/.exec(written.at(-1) ?? '')?.[1])
    expect(shown).toBeLessThan(4) // the average of the session is 15
  })

  test('a message stands above the line', () => {
    const { progress, written } = open({ isTTY: true, env: { NO_COLOR: '1', LANG: 'C.UTF-8' } })
    progress.update(1)
    progress.message('record 7 left out')
    expect(written[1]).toBe('\r\u001b[2Krecord 7 left out\n')
    expect(written[2]).toContain('1/100')
  })

  test('a stream that breaks, now or later, does not end the job', () => {
    const { progress, written, listeners } = open({ plainIntervalMs: 0 })
    progress.update(1)
    for (const listener of listeners) listener(new Error('write EPIPE'))
    progress.update(2)
    progress.finish()
    expect(written).toHaveLength(1)
    const throwing = showProgress({
      label: 'tune',
      total: 1,
      stream: {
        write() {
          throw new Error('write EPIPE')
        },
        on: () => undefined,
      },
    })
    throwing.update(1)
    throwing.finish()
  })

  test('a real pipe whose reader has gone: the process ends well', async () => {
    const module = new URL('./progress-writer.ts', import.meta.url).href
    const script = `import { showProgress } from ${JSON.stringify(module)}
      const progress = showProgress({ label: 'tune', total: 50, plainIntervalMs: 0 })
      let done = 0
      const timer = setInterval(() => {
        progress.update(++done)
        if (done === 50) { clearInterval(timer); progress.finish(); console.log('finished') }
      }, 2)`
    const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
      cwd: fileURLToPath(new URL('../..', import.meta.url)),
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    child.stderr.once('data', () => child.stderr.destroy())
    let output = ''
    child.stdout.on('data', (data: Buffer) => {
      output += data.toString()
    })
    const code = await new Promise((resolve) => child.once('exit', resolve))
    expect([code, output]).toEqual([0, 'finished\n'])
  })
})
