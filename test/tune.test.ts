/** Whole runs of `tune`: what they write, and that interruptions, damage and repetition change nothing. */

import { existsSync } from 'node:fs'
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { llava } from '../datasets/llava.ts'
import { projectors } from '../projectors/index.ts'
import { mlp } from '../projectors/mlp.ts'
import { ModalignError } from '../src/errors.ts'
import type { Trainables } from '../src/graph/parameters.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import type { Encoder } from '../src/model/contracts.ts'
import { compose, type MultimodalModel } from '../src/model/multimodal-model.ts'
import { loadModel } from '../src/model/saved-model.ts'
import { type RunEvent, readRunLog, type StepMetrics } from '../src/training/run-log.ts'
import { type TuneOptions, type TuneSummary, tune } from '../src/training/tune.ts'
import { longOnly, skipWithout } from './skip.ts'
import { openEncoder, records, writeDataset, writeLanguageModel } from './tune-tiny-pair.ts'

let root: string
let llm: LanguageModel
let encoder: Encoder<'image'>
let model: MultimodalModel
let initial: Trainables
let dataset: string
/** An undisturbed run of `settings`. */
let whole: Run

const settings = {
  epochs: 3,
  batchSize: 2,
  accumulation: 2,
  learningRate: 2e-2,
  warmupRatio: 0.1,
  checkpointEvery: 2,
  device: 'cpu',
  threads: 1,
} as const
/** 7 records in windows of 4: two updates an epoch. */
const totalSteps = 6

interface Run {
  readonly folder: string
  readonly rows: readonly StepMetrics[]
  readonly summary: TuneSummary
}

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-tune-'))
  await writeLanguageModel(join(root, 'llm'))
  dataset = await writeDataset(join(root, 'data'))
  llm = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1 })
  encoder = await openEncoder(join(root, 'encoder.onnx'))
  model = await compose({ llm, image: { encoder, projector: mlp({ depth: 2 }) } })
  initial = model.parameters
  whole = await run({})
})

afterAll(async () => {
  await model?.dispose()
  await llm?.dispose()
  await rm(root, { recursive: true, force: true })
})

async function newFolder(): Promise<string> {
  return mkdtemp(join(root, 'run-'))
}

/** A run from the first values. `stopAfter`: aborted once that many rows have come. */
async function run({ stopAfter, output, ...options }: Partial<TuneOptions> & { readonly stopAfter?: number }): Promise<Run> {
  model.setParameters(initial)
  const folder = output ?? (await newFolder())
  const controller = new AbortController()
  const rows: StepMetrics[] = []
  const steps = tune(model, llava(dataset), { ...settings, ...options, output: folder, signal: controller.signal })
  for (;;) {
    const next = await steps.next()
    if (next.done === true) return { folder, rows, summary: next.value }
    rows.push(next.value)
    if (rows.length === stopAfter) controller.abort()
  }
}

async function failure(options: Partial<TuneOptions>): Promise<ModalignError> {
  const error: unknown = await run(options).then(
    () => 'no error',
    (thrown: unknown) => thrown,
  )
  if (error instanceof ModalignError) return error
  throw new Error(`not a typed error: ${String(error)}`)
}

async function loggedRows(folder: string): Promise<readonly Omit<StepMetrics, 'seconds'>[]> {
  const text = await readFile(join(folder, 'metrics.jsonl'), 'utf8')
  expect(text.endsWith('\n')).toBe(true)
  return text
    .trimEnd()
    .split('\n')
    .map((line) => {
      const { seconds, ...row }: StepMetrics = JSON.parse(line)
      expect(seconds).toBeGreaterThan(0)
      return row
    })
}

const projectorOf = (folder: string): Promise<Buffer> => readFile(join(folder, 'model', 'projector.safetensors'))

/** Rows and trained values, byte for byte but for the seconds. */
async function expectSameRun(folder: string, other: string): Promise<void> {
  expect(await loggedRows(folder)).toEqual(await loggedRows(other))
  expect((await projectorOf(folder)).equals(await projectorOf(other))).toBe(true)
}

const checkpointNames = async (folder: string): Promise<readonly string[]> => (await readdir(join(folder, 'checkpoints'))).sort()

describe('a run', () => {
  test('writes a row for each update and a model, and the loss falls', async () => {
    const { folder, rows, summary } = whole
    expect(rows.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6])
    expect(rows.map(({ epoch }) => epoch)).toEqual([0.5, 1, 1.5, 2, 2.5, 3])
    expect(await loggedRows(folder)).toEqual(rows.map(({ seconds: _, ...row }) => row))
    expect(summary).toEqual({
      steps: totalSteps,
      samples: records.length,
      badRecords: 0,
      loss: rows.at(-1)?.loss,
      model: join(folder, 'model'),
      device: 'cpu',
      passedOver: [],
    })
    // The answer's tokens and the end of its turn; nothing of the question.
    const epoch = rows.slice(0, 2)
    expect(epoch.reduce((sum, row) => sum + row.supervisedTokens, 0)).toBe(
      records.reduce((sum, { conversations }) => sum + llm.tokenizer.encode(conversations[1]?.value ?? '').length + 1, 0),
    )
    const mean = (part: readonly StepMetrics[]): number => part.reduce((sum, row) => sum + row.loss, 0) / part.length
    expect(mean(rows.slice(4))).toBeLessThan(0.9 * mean(epoch))
    expect((await readdir(folder)).sort()).toEqual(['checkpoints', 'metrics.jsonl', 'model'])
    expect((await readdir(join(folder, 'model'))).sort()).toEqual(['modalign.json', 'projector.safetensors'])
  })

  test('leaves a model that loads and answers as the one that was tuned', async () => {
    const { folder } = await run({})
    const pictures = ['red.png', 'blue.png']
    const options = { root: join(root, 'data'), maxNewTokens: 6 }
    const tuned = await model.caption(pictures, options)
    const loaded = await loadModel(join(folder, 'model'), { encoders: {}, projectors }, { llm, encoders: { image: encoder } })
    expect(loaded.parameters).toEqual(model.parameters)
    expect(loaded.parameters).not.toEqual(initial)
    expect(await loaded.caption(pictures, options)).toEqual(tuned)
  })

  test('is the same again, and another with another seed', async () => {
    await expectSameRun((await run({})).folder, whole.folder)
    const other = await run({ seed: 1 })
    expect(await loggedRows(other.folder)).not.toEqual(await loggedRows(whole.folder))
    expect((await projectorOf(other.folder)).equals(await projectorOf(whole.folder))).toBe(false)
  })

  test('tells listeners what happens, in order', async () => {
    const events: RunEvent[] = []
    await run({ maxSteps: 3, listeners: [(event) => events.push(event)] })
    expect(events.map((event) => (event.type === 'step' ? event.metrics.step : event.type))).toEqual([
      'start',
      1,
      2,
      'checkpoint',
      3,
      'end',
    ])
    expect(events[0]).toEqual({ type: 'start', firstStep: 1, totalSteps: 3 })
    expect(events.at(-1)).toEqual({ type: 'end', step: 3, reason: 'finished' })
  })

  test('trains on text alone', async () => {
    const file = join(root, 'data', 'text.json')
    await writeFile(file, JSON.stringify(records.filter(({ image }) => image === undefined)))
    model.setParameters(initial)
    const rows: StepMetrics[] = []
    for await (const row of tune(model, llava(file), { ...settings, epochs: 1, output: await newFolder() })) rows.push(row)
    expect(rows).toHaveLength(1)
    expect(rows[0]?.gradientNorm).toBe(0)
    expect(model.parameters).toEqual(initial)
  })
})

describe('evaluation', () => {
  const prompts = [{ text: 'What colour is this?', image: '' }, 'What colour?']
  const evaluated = (): Partial<TuneOptions> => ({
    evaluation: llava(dataset),
    evaluateEvery: 2,
    prompts: prompts.map((one) => (typeof one === 'string' ? one : { ...one, image: join(root, 'data', 'red.png') })),
    promptTokens: 6,
  })

  test('says how the run does on held-out data, and changes nothing of it', async () => {
    const { folder, rows } = await run(evaluated())
    expect(rows.map(({ evaluation }) => evaluation !== undefined)).toEqual([false, true, false, true, false, true])
    expect(rows.map(({ answers }) => answers?.length)).toEqual([undefined, 2, undefined, 2, undefined, 2])
    expect(await loggedRows(folder)).toEqual(rows.map(({ seconds: _, ...row }) => row))
    const logged: StepMetrics[] = []
    for await (const row of readRunLog(join(folder, 'metrics.jsonl'))) logged.push(row)
    expect(logged).toEqual(rows)
    expect(rows.map(({ seconds: _, evaluation: __, answers: ___, ...row }) => row)).toEqual(await loggedRows(whole.folder))
    expect((await projectorOf(folder)).equals(await projectorOf(whole.folder))).toBe(true)
    expect((await readdir(folder)).sort()).toEqual(['checkpoints', 'metrics.jsonl', 'model'])
    const losses = rows.flatMap(({ evaluation }) => evaluation?.loss ?? [])
    expect(losses[2]).toBeLessThan((losses[0] ?? 0) * 0.95)
    // The last answers are those of the model that the run leaves.
    const captions = await model.caption(['red.png'], { root: join(root, 'data'), prompt: 'What colour is this?', maxNewTokens: 6 })
    expect(rows.at(-1)?.answers?.[0]).toEqual({ prompt: 'What colour is this?', answer: captions[0] })
  })

  test('is the loss that training on the same samples begins with', async () => {
    const all = { epochs: 1, batchSize: 7, accumulation: 1, learningRate: 1e-12, checkpointEvery: 0 }
    const { rows } = await run({ ...all, evaluation: llava(dataset) })
    expect(rows[0]?.evaluation?.loss).toBeCloseTo(rows[0]?.loss ?? 0, 5)
    expect(rows[0]?.evaluation?.supervisedTokens).toBe(rows[0]?.supervisedTokens)
    const few = await run({ ...all, evaluation: llava(dataset), evaluationSamples: 3 })
    expect(few.rows[0]?.evaluation?.supervisedTokens).toBeLessThan((rows[0]?.supervisedTokens ?? 0) / 2)
  })

  // Eleven more openings of sessions: with the long tests.
  skipWithout(process.env.MODALIGN_LONG === '1' ? undefined : longOnly).test(
    'goes on after an interruption as if there had been none',
    async () => {
      const undisturbed = await run(evaluated())
      const { folder } = await run({ ...evaluated(), stopAfter: 3 })
      await run({ ...evaluated(), output: folder, resume: true })
      await expectSameRun(folder, undisturbed.folder)
    },
  )

  test('leaves a held-out record out whose picture cannot be read, or fails with it', async () => {
    const file = join(root, 'data', 'held-out.json')
    await writeFile(file, JSON.stringify([...records.slice(0, 2), { ...records[2], image: 'missing.png' }]))
    const reported: string[] = []
    const { summary, rows } = await run({
      evaluation: llava(file),
      maxSteps: 2,
      evaluateEvery: 1,
      onBad: 'skip',
      onBadRecord: ({ details }) => reported.push(`${details.file} ${details.record}`),
    })
    expect(reported).toEqual([`${file} 2`])
    expect(summary.badRecords).toBe(1)
    expect(rows.map(({ evaluation }) => evaluation !== undefined)).toEqual([true, true])
    expect(await failure({ evaluation: llava(file) })).toMatchObject({ details: { file, record: 2 } })
  })
})

describe('an interrupted run', () => {
  test.each([2, 5])('goes on after %d updates as if it had not been', async (stopAfter) => {
    const { folder, rows, summary } = await run({ stopAfter })
    expect(rows).toHaveLength(stopAfter)
    expect(summary).toMatchObject({ steps: stopAfter, model: undefined })
    expect(existsSync(join(folder, 'model'))).toBe(false)
    const rest = await run({ output: folder, resume: true })
    expect(rest.rows.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6].slice(stopAfter))
    await expectSameRun(folder, whole.folder)
  })

  test('that was killed behind its last checkpoint repeats what came after it', async () => {
    const folder = await newFolder()
    // Leaving the loop is what a kill leaves: rows up to 3, the checkpoint of step 2.
    model.setParameters(initial)
    for await (const { step } of tune(model, llava(dataset), { ...settings, output: folder })) if (step === 3) break
    expect(await checkpointNames(folder)).toEqual(['step-000000002'])
    expect(await loggedRows(folder)).toHaveLength(3)
    const rest = await run({ output: folder, resume: true })
    expect(rest.rows[0]?.step).toBe(3)
    await expectSameRun(folder, whole.folder)
  })

  test('that was killed before its first checkpoint begins again; unasked, nothing is overwritten', async () => {
    const folder = await newFolder()
    model.setParameters(initial)
    for await (const _ of tune(model, llava(dataset), { ...settings, output: folder })) break
    const rows = await readFile(join(folder, 'metrics.jsonl'), 'utf8')
    expect((await failure({ output: folder })).code).toBe('RUN_LOG_EXISTS')
    expect(await readFile(join(folder, 'metrics.jsonl'), 'utf8')).toBe(rows)
    await run({ output: folder, resume: true })
    await expectSameRun(folder, whole.folder)
    // What the killed start had logged is still there.
    expect(await readFile(join(folder, 'metrics.1.jsonl'), 'utf8')).toBe(rows)
  })

  test('with a damaged newest checkpoint goes on from the one before', async () => {
    const { folder } = await run({ stopAfter: 5 })
    expect(await checkpointNames(folder)).toEqual(['step-000000004', 'step-000000005'])
    const newest = join(folder, 'checkpoints', 'step-000000005')
    await flipBit(join(newest, 'tensors.safetensors'))
    const reported: ModalignError[] = []
    const rest = await run({ output: folder, resume: true, onDamagedCheckpoint: (error) => reported.push(error) })
    expect(reported.map(({ code, details }) => [code, details.file])).toEqual([['CHECKPOINT_DAMAGED', newest]])
    expect(rest.rows.map(({ step }) => step)).toEqual([5, 6])
    await expectSameRun(folder, whole.folder)
  })

  test('is resumed by the same run only, and not begun again where its checkpoints are damaged', async () => {
    const { folder } = await run({ stopAfter: 3 })
    const before = await contentsOf(folder)
    const others: readonly Partial<TuneOptions>[] = [
      { learningRate: 1e-2 },
      { seed: 9 },
      { batchSize: 3 },
      { epochs: 4 },
      { onBad: 'skip' },
    ]
    for (const options of others) {
      const error = await failure({ output: folder, resume: true, ...options })
      expect(error).toMatchObject({ code: 'TUNE_RESUME', details: { file: join(folder, 'checkpoints', 'step-000000003') } })
    }
    const other = join(root, 'data', 'fewer.json')
    await writeFile(other, JSON.stringify(records.slice(1)))
    const resume = { ...settings, output: folder, resume: true }
    await expect(tune(model, llava(other), resume).next()).rejects.toMatchObject({ code: 'TUNE_RESUME' })
    const deeper = await compose({ llm, image: { encoder, projector: mlp({ depth: 3 }) } })
    await expect(tune(deeper, llava(dataset), resume).next()).rejects.toMatchObject({ code: 'TUNE_RESUME' })
    expect(await contentsOf(folder)).toEqual(before)

    for (const name of await checkpointNames(folder)) await flipBit(join(folder, 'checkpoints', name, 'tensors.safetensors'))
    const rows = await readFile(join(folder, 'metrics.jsonl'), 'utf8')
    expect(await failure({ output: folder, resume: true })).toMatchObject({ code: 'CHECKPOINT_DAMAGED' })
    expect(await readFile(join(folder, 'metrics.jsonl'), 'utf8')).toBe(rows)
  })
})

test('options are checked before anything is written', async () => {
  const wrong: readonly (readonly [Partial<TuneOptions> | { readonly learning_rate: number }, string])[] = [
    [{ epochs: 0 }, '/epochs'],
    [{ batchSize: 1.5 }, '/batchSize'],
    [{ learningRate: Number.NaN }, '/learningRate'],
    [{ warmupRatio: 2 }, '/warmupRatio'],
    [{ learning_rate: 1 }, '/learning_rate'],
    [{ optimizer: { name: 'adamw', betas: [0.9, 1] } }, '/optimizer/betas/1'],
  ]
  for (const [options, field] of wrong) {
    const output = join(root, 'never')
    expect(await failure({ ...options, output })).toMatchObject({ code: 'TUNE_OPTIONS', details: { field } })
    expect(existsSync(output)).toBe(false)
  }
})

test('a folder takes one run at a time', async () => {
  const output = await newFolder()
  model.setParameters(initial)
  const first = tune(model, llava(dataset), { ...settings, output })
  await first.next()
  expect((await failure({ output, resume: true })).code).toBe('OUTPUT_LOCKED')
  await first.return({ steps: 0, samples: 0, badRecords: 0, loss: 0, model: undefined, device: 'cpu', passedOver: [] })
})

async function flipBit(file: string): Promise<void> {
  const bytes = await readFile(file)
  bytes.writeUInt8(bytes.readUInt8(bytes.length - 3) ^ 1, bytes.length - 3)
  await writeFile(file, bytes)
}

async function contentsOf(folder: string): Promise<ReadonlyMap<string, string>> {
  const found = new Map<string, string>()
  for (const name of (await readdir(folder, { recursive: true })).sort()) {
    const path = join(folder, name)
    if ((await stat(path)).isFile()) found.set(name, (await readFile(path)).toString('base64'))
  }
  return found
}
