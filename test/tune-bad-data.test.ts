/** Records that cannot be trained on: each a typed error that names its place, nothing half-written; skipped where that is asked for, counted and reported once. */
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { llava } from '../datasets/llava.ts'
import { mlp } from '../projectors/mlp.ts'
import { type ErrorData, ModalignError } from '../src/errors.ts'
import type { Trainables } from '../src/graph/parameters.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import { compose, type MultimodalModel } from '../src/model/multimodal-model.ts'
import type { StepMetrics } from '../src/training/run-log.ts'
import { type TuneOptions, type TuneSummary, tune } from '../src/training/tune.ts'
import { openEncoder, recordOf, records, writeDataset, writeLanguageModel } from './tune-tiny-pair.ts'

let root: string
let data: string
let llm: LanguageModel
let model: MultimodalModel
let initial: Trainables

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-bad-data-'))
  data = join(root, 'data')
  await Promise.all([writeLanguageModel(join(root, 'llm')), writeDataset(data)])
  llm = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1 })
  model = await compose({ llm, image: { encoder: await openEncoder(join(root, 'encoder.onnx')), projector: mlp({ depth: 1 }) } })
  initial = model.parameters
  const png = await readFile(join(data, 'red.png'))
  await Promise.all([
    writeFile(join(data, 'empty.png'), ''),
    writeFile(join(data, 'truncated.png'), png.subarray(0, png.length - 30)),
    writeFile(join(data, 'text.png'), 'not a picture, whatever its name says'),
    writeFile(join(data, 'huge.png'), hugePng(png)),
    mkdir(join(data, 'folder.png')),
  ])
})

afterAll(async () => {
  await model?.dispose()
  await llm?.dispose()
  await rm(root, { recursive: true, force: true })
})

/** A PNG whose header promises 60,000 x 60,000 pixels. */
function hugePng(png: Buffer): Buffer {
  const huge = Buffer.from(png)
  huge.writeUInt32BE(60_000, 16)
  huge.writeUInt32BE(60_000, 20)
  huge.writeUInt32BE(crc32(huge.subarray(12, 29)), 29)
  return huge
}

function crc32(bytes: Uint8Array): number {
  let crc = -1
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0)
  }
  return ~crc >>> 0
}

interface Run {
  readonly folder: string
  readonly file: string
  readonly rows: readonly StepMetrics[]
  readonly summary: TuneSummary | undefined
  readonly error: unknown
  readonly reported: readonly ModalignError[]
}

async function run(content: readonly unknown[] | string, options: Partial<TuneOptions>): Promise<Run> {
  model.setParameters(initial)
  const folder = await mkdtemp(join(root, 'run-'))
  const file = join(folder, 'data.json')
  await writeFile(file, typeof content === 'string' ? content : JSON.stringify(content))
  const [rows, reported]: [StepMetrics[], ModalignError[]] = [[], []]
  const output = join(folder, 'output')
  const all: TuneOptions = {
    epochs: 1,
    batchSize: 4,
    device: 'cpu',
    threads: 1,
    ...options,
    output,
    onBadRecord: (error) => reported.push(error),
  }
  const steps = tune(model, llava(file, { root: data }), all)
  try {
    for (;;) {
      const next = await steps.next()
      if (next.done === true) return { folder: output, file, rows, reported, summary: next.value, error: undefined }
      rows.push(next.value)
    }
  } catch (error) {
    return { folder: output, file, rows, reported, summary: undefined, error }
  }
}

function details(error: unknown): ErrorData {
  if (!(error instanceof ModalignError)) throw new Error(`not a typed error: ${String(error)}`)
  return error.details
}

const good = records.slice(0, 3)
const question = { from: 'human', value: '<image>\nWhat colour is this?' }
const answer = { from: 'gpt', value: 'It is red.' }

/** Bad records that reading and labelling find, before anything is trained. */
const badRecords: readonly (readonly [string, unknown, Partial<ErrorData>])[] = [
  ['no object', 17, { code: 'DATASET_RECORD_TYPE' }],
  [
    'a placeholder too many',
    { id: 'a', conversations: [question, answer] },
    { code: 'DATASET_PLACEHOLDER_COUNT', field: '/conversations/0/value' },
  ],
  [
    'a picture too many',
    { id: 'a', image: ['red.png', 'blue.png'], conversations: [question, answer] },
    { code: 'DATASET_PLACEHOLDER_COUNT', field: '/image' },
  ],
  [
    'a path out of the folder',
    { id: 'a', image: '../red.png', conversations: [question, answer] },
    { code: 'PATH_ESCAPE', field: '/image' },
  ],
  [
    'an empty answer',
    { id: 'a', image: 'red.png', conversations: [question, { from: 'gpt', value: ' ' }] },
    { code: 'DATASET_TURN_EMPTY', field: '/conversations/1/value' },
  ],
  [
    'more tokens than the model holds',
    { id: 'a', image: 'red.png', conversations: [question, { from: 'gpt', value: 'It is red. '.repeat(60) }] },
    { code: 'DATA_TOO_LONG' },
  ],
]

/** Pictures that cannot be used: found when they are first read. */
const badPictures: readonly (readonly [string, string, string])[] = [
  ['missing', 'nowhere.png', 'FILE_MISSING'],
  ['empty', 'empty.png', 'IMAGE_EMPTY'],
  ['truncated', 'truncated.png', 'IMAGE_TRUNCATED'],
  ['text', 'text.png', 'IMAGE_NOT_IMAGE'],
  ['a folder', 'folder.png', 'FILE_NOT_REGULAR'],
  ['too large', 'huge.png', 'IMAGE_TOO_LARGE'],
]

describe('fail', () => {
  test.each(badRecords)('a record that is %s', async (_, record, expected) => {
    const { error, file, folder } = await run([...good, record], {})
    expect(details(error)).toMatchObject({ ...expected, file, record: 3 })
    expect(existsSync(join(folder, 'metrics.jsonl'))).toBe(false)
    expect(model.parameters).toEqual(initial)
  })

  test('JSON that breaks off', async () => {
    const { error, file } = await run(JSON.stringify(records).slice(0, -30), {})
    expect(details(error)).toMatchObject({ file, record: records.length - 1 })
    expect(details(error).code).toMatch(/^JSON_/)
  })

  test.each(badPictures.slice(0, 3))('a picture that is %s names the record, and no model is written', async (_, image, code) => {
    const { error, file, folder, rows } = await run([...good, recordOf('bad', 'red', image)], { batchSize: 2 })
    expect(details(error)).toMatchObject({ code, file, record: 3, field: '/turns/0' })
    expect(details(error).got).toContain(image)
    expect(details(error).hint).toBeTruthy()
    // The bad record is in the first or in the second window.
    expect(rows.length).toBeLessThan(2)
    expect(await readdir(folder)).toEqual(['metrics.jsonl'])
    const text = await readFile(join(folder, 'metrics.jsonl'), 'utf8')
    expect(text.split('\n').length - 1).toBe(rows.length)
  })
})

describe('skip', () => {
  test('leaves out every bad record, counts and reports each once, and trains on the rest as if they had never been there', async () => {
    const bad = [...badRecords.map(([, record]) => record), ...badPictures.map(([, image]) => recordOf('bad', 'red', image))]
    // One good picture in a record does not save it from its bad one.
    const mixed = {
      id: 'mixed',
      image: ['red.png', 'empty.png'],
      conversations: [{ from: 'human', value: '<image><image>' }, answer],
    }
    const content = [...good, ...bad, mixed, ...records.slice(3)]
    const { summary, reported, rows, file } = await run(content, { onBad: 'skip', epochs: 3, batchSize: 64 })
    expect(reported).toHaveLength(bad.length + 1)
    expect(summary).toMatchObject({ badRecords: bad.length + 1, steps: 3 })
    expect(reported.map((error) => details(error).record).sort((a = 0, b = 0) => a - b)).toEqual(
      Array.from({ length: bad.length + 1 }, (_, index) => 3 + index),
    )
    const byRecord = new Map(reported.map((error) => [details(error).record, details(error)]))
    for (const [index, [, , expected]] of badRecords.entries()) expect(byRecord.get(3 + index)).toMatchObject({ ...expected, file })
    for (const [index, [, image, code]] of [...badPictures, ['mixed', 'empty.png', 'IMAGE_EMPTY'] as const].entries()) {
      const found = byRecord.get(3 + badRecords.length + index)
      expect(found).toMatchObject({ code, file, field: '/turns/0' })
      expect(found?.got).toContain(image)
      expect(found?.hint).toBeTruthy()
    }

    // One window is one epoch: the order of its samples is another one, its sums are the same.
    const trained = model.parameters
    const clean = await run([...records], { epochs: 3, batchSize: 64 })
    expect(rows).toHaveLength(3)
    for (const [step, row] of rows.entries()) {
      expect(row.loss).toBeCloseTo(clean.rows[step]?.loss ?? Number.NaN, 5)
      expect(row.supervisedTokens).toBe(clean.rows[step]?.supervisedTokens)
      expect(row.tokens).toBe(clean.rows[step]?.tokens)
    }
    for (const [name, { data: values }] of Object.entries(model.parameters))
      for (const [at, value] of values.entries()) expect(trained[name]?.data[at]).toBeCloseTo(value, 4)
  })

  test('goes on where whole windows are bad, and refuses a run of which nothing is left', async () => {
    const missing = Array.from({ length: 4 }, (_, index) => recordOf(`bad ${index}`, 'red', 'nowhere.png'))
    const some = await run([...good, ...missing], { onBad: 'skip', batchSize: 1 })
    expect(some.summary).toMatchObject({ steps: 7, badRecords: 4 })
    expect(some.rows).toHaveLength(3)
    expect(new Set(some.rows.map(({ step }) => step)).size).toBe(3)
    const none = await run(missing, { onBad: 'skip', batchSize: 2 })
    expect(details(none.error)).toMatchObject({ code: 'DATASET_NO_SAMPLES', got: '4 bad records and no good one' })
    expect(existsSync(join(none.folder, 'model'))).toBe(false)
  })
})
