/** Media of different lengths: what stands beside them in a batch, and how much padding, changes nothing; and whole runs on sounds and pictures together. */
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { messages } from '../datasets/messages.ts'
import { projectors } from '../projectors/index.ts'
import { linear } from '../projectors/linear.ts'
import { mlp } from '../projectors/mlp.ts'
import { stackedMlp } from '../projectors/stacked-mlp.ts'
import { initialValues } from '../src/graph/initial-values.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import type { DecodedAudio, Encoder, Turn } from '../src/model/contracts.ts'
import { localReader } from '../src/model/media-reader.ts'
import { compose, type MultimodalModel } from '../src/model/multimodal-model.ts'
import { loadModel, saveModel } from '../src/model/saved-model.ts'
import { rowGrid } from '../src/model/token-grid.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { float32Tensor, type NamedTensors } from '../src/tensors.ts'
import { labelSpans, withMediaLengths } from '../src/text/label-spans.ts'
import { type BatchItem, collate } from '../src/training/batch.ts'
import type { StepMetrics } from '../src/training/run-log.ts'
import { gradientName, stepGraph } from '../src/training/step-graph.ts'
import { tune } from '../src/training/tune.ts'
import { openEncoder, writeDataset, writeLanguageModel } from './tune-tiny-pair.ts'

let root: string
let llm: LanguageModel
let sounds: Encoder<'audio'>
let model: MultimodalModel

/** Every 100 samples become one feature of width 4: their mean, deviation, first and last. */
const frame = 100
function soundStatistics(): Encoder<'audio'> {
  return {
    modality: 'audio',
    fingerprint: 'sound statistics',
    label: 'sound statistics',
    width: 4,
    sampleRateHz: 1000,
    grid: ({ seconds = 1 }) => ({ segments: [{ frames: Math.ceil((seconds * 1000) / frame), rows: 1, columns: 1 }] }),
    preprocess: async ({ samples }: DecodedAudio) => ({ samples: float32Tensor(samples, [samples.length]) }),
    async encode(inputs) {
      const each = inputs.map(({ samples }) => featuresOf(samples?.data ?? []))
      const tokens = (each[0]?.length ?? 0) / 4
      return { count: inputs.length, tokens, width: 4, data: Float32Array.from(each.flat()) }
    },
    dispose: async () => undefined,
  }
}

function featuresOf(samples: ArrayLike<number | bigint>): readonly number[] {
  const values = Array.from(samples, Number)
  return Array.from({ length: Math.ceil(values.length / frame) }, (_, index) => {
    const own = values.slice(index * frame, (index + 1) * frame)
    const mean = own.reduce((sum, one) => sum + one, 0) / own.length
    const deviation = Math.sqrt(own.reduce((sum, one) => sum + (one - mean) ** 2, 0) / own.length)
    return [mean, deviation, own[0] ?? 0, own.at(-1) ?? 0]
  }).flat()
}

/** 16-bit PCM, 1000 samples a second. */
function wav(samples: readonly number[]): Uint8Array {
  const bytes = Buffer.alloc(44 + samples.length * 2)
  bytes.write('RIFF', 0)
  bytes.writeUInt32LE(36 + samples.length * 2, 4)
  bytes.write('WAVEfmt ', 8)
  bytes.writeUInt32LE(16, 16)
  bytes.writeUInt16LE(1, 20)
  bytes.writeUInt16LE(1, 22)
  bytes.writeUInt32LE(1000, 24)
  bytes.writeUInt32LE(2000, 28)
  bytes.writeUInt16LE(2, 32)
  bytes.writeUInt16LE(16, 34)
  bytes.write('data', 36)
  bytes.writeUInt32LE(samples.length * 2, 40)
  for (const [index, value] of samples.entries()) bytes.writeInt16LE(Math.round(value * 32767), 44 + index * 2)
  return bytes
}

const tone = (length: number, step: number): readonly number[] => Array.from({ length }, (_, index) => Math.sin(index * step) * 0.5)

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-sounds-'))
  await writeLanguageModel(join(root, 'llm'))
  await writeDataset(join(root, 'data'))
  for (const [name, length, step] of [
    ['low', 420, 0.05],
    ['high', 930, 1.3],
    ['mid', 100, 0.4],
  ] as const)
    await writeFile(join(root, 'data', `${name}.wav`), wav(tone(length, step)))
  llm = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1 })
  sounds = soundStatistics()
  model = await compose({
    llm,
    image: { encoder: await openEncoder(join(root, 'encoder.onnx')), projector: linear() },
    audio: { encoder: sounds, projector: stackedMlp({ stack: 3 }) },
  })
})
afterAll(async () => {
  await model?.dispose()
  await llm?.dispose()
  await rm(root, { recursive: true, force: true })
})

const records = [
  { messages: [asks('<audio>What is this?'), answers('It is blue.')], audios: ['low.wav'] },
  {
    messages: [asks('What colour?<audio>'), answers('It is red.'), asks('And <audio>?'), answers('It is black.')],
    audios: ['high.wav', 'mid.wav'],
  },
  { messages: [asks('What colour is<image> this?'), answers('It is white.')], images: ['white.png'] },
  { messages: [asks('<audio><image>What colour?'), answers('It is green.')], images: ['green.png'], audios: ['mid.wav'] },
]
function asks(content: string) {
  return { role: 'user', content }
}
function answers(content: string) {
  return { role: 'assistant', content }
}

async function writeRecords(): Promise<string> {
  const file = join(root, 'data', 'talk.json')
  await writeFile(file, JSON.stringify(records))
  return file
}

async function items(): Promise<readonly BatchItem[]> {
  const found: BatchItem[] = []
  for await (const sample of messages(await writeRecords()).samples()) {
    const options = {
      tokenizer: llm.tokenizer,
      template: llm.template,
      mediaTokens: (part: Parameters<MultimodalModel['plannedTokens']>[0]) => model.plannedTokens(part),
    }
    const planned = labelSpans(sample, options)
    const features = await model.encode(
      planned.media.map(({ part }) => part),
      { root: join(root, 'data') },
    )
    found.push({
      ...withMediaLengths(
        planned,
        features.map(({ tokensOut }) => tokensOut),
        {},
      ),
      features,
    })
  }
  return found
}

describe('media of different lengths', () => {
  test('take as many places as the projector makes of them', async () => {
    const found = await items()
    // 5, 10 and 1 features, stacked by 3; 4 features of a picture.
    expect(found.map(({ media }) => media.map(({ length }) => length))).toEqual([[2], [4, 1], [4], [1, 4]])
    for (const { ids, weights, media } of found) {
      expect(weights).toHaveLength(ids.length)
      for (const [index, { start, length }] of media.entries()) {
        expect(Array.from(ids.subarray(start, start + length))).toEqual(new Array(length).fill(-(index + 1)))
        expect(ids[start + length]).not.toBe(-(index + 1))
      }
    }
  })

  test('give the same loss and gradients together as one by one', async () => {
    const graph = stepGraph({ decoder: llm.decoder, media: model.mediaPaths, headChunks: 2 })
    const { bytes, externalRoot } = graph.model
    await using session = await createLocalSession(
      { bytes, ...(externalRoot !== undefined && { externalRoot }) },
      { device: 'cpu', threads: 1, memoryPattern: false },
    )
    const parameters: NamedTensors = Object.fromEntries(
      Object.entries(initialValues(graph.parameters, 3)).map(([name, { dims, data }]) => [name, float32Tensor(data, dims)]),
    )
    const outputs = ['loss', ...graph.parameters.map(gradientName)]
    const run = async (some: readonly BatchItem[]): Promise<ReadonlyMap<string, readonly number[]>> => {
      const { feeds } = collate(some, { media: model.mediaPaths, headChunks: 2 })
      const values = await session.run({ ...feeds, ...parameters }, { fetch: outputs })
      return new Map(outputs.map((name) => [name, Array.from(values[name]?.data ?? [], Number)]))
    }
    const all = await items()
    const together = await run(all)
    const alone = await Promise.all(all.map((item) => run([item])))
    for (const name of outputs) {
      const whole = together.get(name) ?? []
      const sum = whole.map((_, index) => alone.reduce((total, one) => total + (one.get(name)?.[index] ?? Number.NaN), 0))
      const size = Math.hypot(...sum)
      expect(size).toBeGreaterThan(0)
      expect(Math.hypot(...sum.map((value, index) => value - (whole[index] ?? 0))) / size).toBeLessThan(1e-5)
    }
  })

  test('longer than the sample may be are an error of the record, or cut the sample', async () => {
    const [, , , last] = await items()
    if (last === undefined) throw new Error('no sample')
    const full = last.ids.length
    const shrunk = withMediaLengths(last, [1, 1], {})
    expect(withMediaLengths(shrunk, [1, 4], { maxLength: full }).ids).toEqual(last.ids)
    expect(() => withMediaLengths(shrunk, [1, 5], { maxLength: full })).toThrow('DATA_TOO_LONG')
    expect(withMediaLengths(shrunk, [1, 5], { maxLength: full, overflow: 'truncate' }).ids).toHaveLength(full)
    expect(() => withMediaLengths(shrunk, [1, 0], {})).toThrow('MEDIA_TOKEN_COUNT')
  })
})

test('a run on sounds and pictures together lowers the loss, leaves a file for each projector, and answers about both', async () => {
  const output = join(root, 'run')
  const rows: StepMetrics[] = []
  const options = { output, epochs: 12, batchSize: 4, learningRate: 3e-2, device: 'cpu', threads: 1, checkpointEvery: 0 } as const
  const dataset = messages(await writeRecords())
  for await (const row of tune(model, dataset, { ...options, prompts: [{ text: 'What?', audio: join(root, 'data', 'low.wav') }] }))
    rows.push(row)
  expect(rows.at(-1)?.loss).toBeLessThan(0.75 * (rows[0]?.loss ?? 0))
  expect((await readdir(join(output, 'model'))).sort()).toEqual(['audio-projector.safetensors', 'modalign.json', 'projector.safetensors'])
  expect(rows.at(-1)?.answers?.[0]?.prompt).toBe('What?')

  const { image } = model.branches
  if (image === undefined) throw new Error('no eyes')
  const loaded = await loadModel(
    join(output, 'model'),
    { encoders: {}, projectors },
    { llm, encoders: { image: image.encoder, audio: sounds } },
  )
  expect(loaded.parameters).toEqual(model.parameters)
  const about = (name: string) => ({ root: join(root, 'data'), modality: 'audio' as const, prompt: `What of ${name}?`, maxNewTokens: 6 })
  expect(await loaded.caption(['low.wav', 'high.wav'], about('it'))).toEqual(await model.caption(['low.wav', 'high.wav'], about('it')))
  // One by one as in a batch.
  const [high] = await loaded.caption(['high.wav'], about('it'))
  expect((await loaded.caption(['low.wav', 'high.wav'], about('it')))[1]).toBe(high)
  const turns: readonly Turn[] = [
    {
      role: 'user',
      content: [
        { type: 'audio', source: 'low.wav' },
        { type: 'image', source: 'red.png' },
        { type: 'text', text: 'What?' },
      ],
    },
  ]
  let answer = ''
  for await (const text of loaded.chat(turns, { root: join(root, 'data'), maxNewTokens: 4 })) answer += text
  expect(answer.length).toBeGreaterThan(0)

  const other = { ...sounds, fingerprint: 'another', width: 5 }
  await expect(
    loadModel(join(output, 'model'), { encoders: {}, projectors }, { llm, encoders: { image: image.encoder, audio: other } }),
  ).rejects.toMatchObject({
    code: 'MODEL_MISMATCH',
    details: { expected: expect.stringContaining('audio encoder: trained with sound statistics (sound statis), given') },
  })
})

test('what a model has no encoder or reader for is refused by name', async () => {
  await expect(model.caption(['a.mp4'], { modality: 'video' })).rejects.toMatchObject({ code: 'MODEL_MODALITY', details: { got: 'video' } })
  await expect(compose({ llm })).rejects.toMatchObject({ code: 'MODEL_MODALITY' })
  const deaf = await compose({ llm, audio: { encoder: sounds, projector: mlp() }, reader: { image: localReader.image } })
  await expect(deaf.caption(['low.wav'], { modality: 'audio', root: join(root, 'data') })).rejects.toMatchObject({ code: 'MEDIA_READER' })
  expect(rowGrid(3)).toEqual({ segments: [{ frames: 1, rows: 1, columns: 3 }] })
  onTestFinished(() => deaf.dispose())
  await saveModel(deaf, join(root, 'deaf'))
  expect(JSON.parse(await readFile(join(root, 'deaf', 'modalign.json'), 'utf8'))).not.toHaveProperty('image')
})
