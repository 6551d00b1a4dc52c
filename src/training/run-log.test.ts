import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { openRunLog, type RunEvent, readRunLog, type StepMetrics } from './run-log.ts'

let folder: string
let count = 0
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-run-log-'))
})
afterAll(() => rm(folder, { recursive: true }))
const fresh = () => join(folder, `${count++}.jsonl`)

const metrics = (step: number, more: Partial<StepMetrics> = {}): StepMetrics => ({
  step,
  epoch: step / 10,
  loss: 3 / step,
  learningRate: 1e-3,
  gradientNorm: 0.5,
  supervisedTokens: 64,
  tokens: 256,
  seconds: 0.1,
  ...more,
})
const step = (number: number, more?: Partial<StepMetrics>): RunEvent => ({ type: 'step', metrics: metrics(number, more) })

const steps = async (path: string) => {
  const rows: StepMetrics[] = []
  for await (const row of readRunLog(path)) rows.push(row)
  return rows
}

describe('run log', () => {
  test('steps become rows; every event reaches every listener, after its row', async () => {
    const path = fresh()
    const seen: string[] = []
    const log = await openRunLog(path, { listeners: [(event) => seen.push(`a ${event.type}`), (event) => seen.push(`b ${event.type}`)] })
    await log.emit({ type: 'start', firstStep: 1, totalSteps: 2 })
    await log.emit(step(1))
    await log.emit(step(2, { evaluation: { exactMatch: 0.5 } }))
    await log.emit({ type: 'checkpoint', step: 2, path: 'step-2' })
    await log.emit({ type: 'end', step: 2, reason: 'finished' })
    await log.close()
    expect(seen).toEqual(['start', 'step', 'step', 'checkpoint', 'end'].flatMap((type) => [`a ${type}`, `b ${type}`]))
    expect(await steps(path)).toEqual([metrics(1), metrics(2, { evaluation: { exactMatch: 0.5 } })])
    expect(log.length).toBe((await readFile(path)).length)
  })

  test('a resumed run has every step once, and the bytes of an undisturbed one', async () => {
    const [killed, whole] = [fresh(), fresh()]
    const first = await openRunLog(killed)
    await first.emit(step(1))
    await first.emit(step(2))
    const keepBytes = first.length
    await first.emit(step(3))
    await first.close()
    await writeFile(killed, '{"step": 4, "lo', { flag: 'a' })
    const second = await openRunLog(killed, { keepBytes })
    expect(second.length).toBe(keepBytes)
    for (const number of [3, 4]) await second.emit(step(number))
    await second.close()
    const undisturbed = await openRunLog(whole)
    for (const number of [1, 2, 3, 4]) await undisturbed.emit(step(number))
    await undisturbed.close()
    expect(await readFile(killed, 'utf8')).toBe(await readFile(whole, 'utf8'))
  })

  test('a new run does not write over an old one', async () => {
    const path = fresh()
    await writeFile(path, 'precious\n')
    await expect(openRunLog(path)).rejects.toMatchObject({ code: 'RUN_LOG_EXISTS', details: { file: path } })
    expect(await readFile(path, 'utf8')).toBe('precious\n')
  })

  test('a file that the checkpoint does not know is left alone', async () => {
    const path = fresh()
    await writeFile(path, '{"step": 1}\n')
    await expect(openRunLog(path, { keepBytes: 5 })).rejects.toMatchObject({ code: 'RUN_LOG_MISMATCH' })
    await expect(openRunLog(path, { keepBytes: 500 })).rejects.toMatchObject({ code: 'RUN_LOG_MISMATCH' })
    expect(await readFile(path, 'utf8')).toBe('{"step": 1}\n')
  })

  test.each([{ loss: Number.NaN }, { gradientNorm: Number.POSITIVE_INFINITY }, { evaluation: { exactMatch: Number.NaN } }])(
    '%o is refused, not written',
    async (more) => {
      const path = fresh()
      const log = await openRunLog(path)
      await log.emit(step(1))
      await expect(log.emit(step(2, more))).rejects.toMatchObject({ code: 'METRIC_NOT_FINITE' })
      await log.close()
      expect(await steps(path)).toEqual([metrics(1)])
    },
  )

  test.each(['[]', '{"step": "1"}', '{"step": 1, "epoch": 0}', JSON.stringify({ ...metrics(1), evaluation: { a: 'b' } })])(
    'a foreign row is named: %s',
    async (row) => {
      const path = fresh()
      await writeFile(path, `${JSON.stringify(metrics(1))}\n${row}\n`)
      await expect(steps(path)).rejects.toMatchObject({ code: 'RUN_LOG_ROW', details: { file: path, line: 2, record: 1 } })
    },
  )
})
