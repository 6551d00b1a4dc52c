/** Pictures of unequal size, which become unequal numbers of tokens: seen in tiles, with separators, and in patches as many as their proportions give. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { siglip2 } from '../encoders/siglip2.ts'
import { tiled } from '../encoders/tiled.ts'
import { projectors } from '../projectors/index.ts'
import { mlp } from '../projectors/mlp.ts'
import { stackedMlp } from '../projectors/stacked-mlp.ts'
import { initialValues } from '../src/graph/initial-values.ts'
import { adapt } from '../src/llm/adapters/adapt.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import type { DatasetSource, Encoder, Projector, Sample } from '../src/model/contracts.ts'
import { compose, type MultimodalModel } from '../src/model/multimodal-model.ts'
import { loadModel } from '../src/model/saved-model.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { float32Tensor, type NamedTensors } from '../src/tensors.ts'
import { labelSpans, withMediaLengths } from '../src/text/label-spans.ts'
import { type BatchItem, collate } from '../src/training/batch.ts'
import { openFeatureStore } from '../src/training/feature-store.ts'
import { FeatureMemory } from '../src/training/features.ts'
import type { StepMetrics } from '../src/training/run-log.ts'
import { gradientName, stepGraph } from '../src/training/step-graph.ts'
import { tune } from '../src/training/tune.ts'
import { colours, openEncoder, writeLanguageModel } from './tune-tiny-pair.ts'

let root: string
let llm: LanguageModel
let tiles: Encoder<'image'>

/** Width and height of each colour's picture: one tile, two beside or below another, four, and sizes that leave padding. */
const sizes: Readonly<Record<string, readonly [number, number]>> = {
  red: [16, 16],
  green: [40, 18],
  blue: [17, 44],
  white: [60, 64],
  black: [31, 17],
  yellow: [16, 23],
}
const resolutions = [
  [16, 32],
  [32, 16],
  [32, 32],
].map(([height = 0, width = 0]) => ({ height, width }))

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-tiles-'))
  await writeLanguageModel(join(root, 'llm'))
  llm = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1 })
  tiles = tiled(await openEncoder(join(root, 'encoder.onnx')), { tiling: { kind: 'anyres', resolutions } })
  for (const [name, [width, height]] of Object.entries(sizes)) {
    const [r = 0, g = 0, b = 0] = Object.entries(colours).find(([colour]) => colour === name)?.[1] ?? []
    await writeFile(
      join(root, `${name}.png`),
      await sharp({ create: { width, height, channels: 3, background: { r, g, b } } })
        .png()
        .toBuffer(),
    )
  }
})
afterAll(async () => {
  await tiles?.dispose()
  await llm?.dispose()
  await rm(root, { recursive: true, force: true })
})

/** Each colour once, and two of them in one conversation. */
function dataset(): DatasetSource {
  const asked = (...names: readonly string[]): Sample => ({
    id: names.join(),
    turns: names.flatMap((name): Sample['turns'] => [
      {
        role: 'user',
        content: [
          { type: 'image', source: `${name}.png` },
          { type: 'text', text: '\nWhat colour is this?' },
        ],
      },
      { role: 'assistant', content: [{ type: 'text', text: `It is ${name}.` }] },
    ]),
  })
  const samples = [...Object.keys(sizes).map((name) => asked(name)), asked('red', 'green')]
  return {
    name: 'colours',
    root,
    async *samples() {
      yield* samples
    },
  }
}

async function itemsOf(model: MultimodalModel): Promise<readonly BatchItem[]> {
  const found: BatchItem[] = []
  for await (const sample of dataset().samples()) {
    const planned = labelSpans(sample, {
      tokenizer: llm.tokenizer,
      template: llm.template,
      mediaTokens: (part) => model.plannedTokens(part),
    })
    const features = await model.encode(
      planned.media.map(({ part }) => part),
      { root },
    )
    const lengths = features.map(({ tokensOut }) => tokensOut)
    found.push({ ...withMediaLengths(planned, lengths, {}), features })
  }
  return found
}

test.each<[string, () => Projector, readonly number[]]>([
  // 4 tokens of the whole, then the map without its padding: rows x (columns + separator). The two smallest pictures fill half of their tiles.
  [
    'token by token, each row of the map followed by a separator',
    () => mlp(),
    [4 + 2 * 3, 4 + 2 * 5, 4 + 4 * 3, 4 + 4 * 5, 4 + 2 * 5, 4 + 2 * 3],
  ],
  ['stacked: nothing is left of the rows', () => stackedMlp({ stack: 3 }), []],
])('tiles, %s: the same loss and gradients together as one by one', async (_, projector, lengths) => {
  await using model = await compose({ llm, image: { encoder: { ...tiles, dispose: async () => undefined }, projector: projector() } })
  const all = await itemsOf(model)
  if (lengths.length > 0) expect(all.slice(0, -1).map(({ media }) => media[0]?.length)).toEqual(lengths)
  expect(Object.hasOwn(model.parameters, 'image.separator')).toBe(lengths.length > 0)
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
  const together = await run(all)
  const alone = await Promise.all(all.map((item) => run([item])))
  for (const name of outputs) {
    const whole = together.get(name) ?? []
    const sum = whole.map((__, index) => alone.reduce((total, one) => total + (one.get(name)?.[index] ?? Number.NaN), 0))
    const size = Math.hypot(...sum)
    expect(size, name).toBeGreaterThan(0)
    expect(Math.hypot(...sum.map((value, index) => value - (whole[index] ?? 0))) / size, name).toBeLessThan(1e-5)
  }
})

test('a run on tiles learns the answers, from a feature store too; the loaded model gives them, one by one and together', async () => {
  const whole = await adapt(llm, { unfreeze: 'all' })
  const model = await compose({ llm: whole, image: { encoder: tiles, projector: mlp() } })
  const first = model.parameters
  await using store = await openFeatureStore(join(root, 'store'), { dtype: 'float32' })
  const options = {
    batchSize: 7,
    learningRate: 1e-2,
    device: 'cpu',
    threads: 1,
    checkpointEvery: 0,
    schedule: 'constant',
    warmupRatio: 0,
  } as const
  const run = async (name: string, epochs: number): Promise<readonly StepMetrics[]> => {
    model.setParameters(first)
    const found: StepMetrics[] = []
    const features = new FeatureMemory(model, { root, store })
    const steps = tune(model, dataset(), { ...options, epochs, output: join(root, name), features, evaluation: dataset() })
    for await (const row of steps) found.push(row)
    return found
  }
  const short = await run('short', 1)
  const names = Object.keys(sizes)
  expect([store.counts.written, store.counts.hits]).toEqual([names.length, 0])
  const rows = await run('run', 24)
  expect([store.counts.written, store.counts.hits]).toEqual([names.length, names.length])
  expect(rows.slice(0, 1).map(({ loss }) => loss)).toEqual(short.map(({ loss }) => loss))
  // The whole data again, without gradients.
  expect(rows.at(-1)?.evaluation?.loss).toBeLessThan(0.05)
  expect(model.parameters['image.separator']?.data).not.toEqual(first['image.separator']?.data)

  const loaded = await loadModel(join(root, 'run', 'model'), { encoders: {}, projectors }, { llm, encoders: { image: tiles } })
  const ask = { root, prompt: 'What colour is this?', maxNewTokens: 8 }
  const pictures = names.map((name) => `${name}.png`)
  expect(await loaded.caption(pictures, ask)).toEqual(names.map((name) => `It is ${name}.`))
  for (const name of ['blue', 'white']) expect(await loaded.caption([`${name}.png`], ask)).toEqual([`It is ${name}.`])
  let answer = ''
  const question = { type: 'text', text: '\nWhat colour is this?' } as const
  const turns = [{ role: 'user', content: [{ type: 'image', source: 'black.png' }, question] }] as const
  for await (const text of loaded.chat(turns, { root, maxNewTokens: 8 })) answer += text
  expect(answer.trim()).toBe('It is black.')
  await Promise.all([loaded.llm.dispose(), whole.dispose()])
})

test('NaFlex: grids of as many patches but other proportions stand in one batch', async () => {
  const folder = fileURLToPath(new URL('./fixtures/vision/siglip2', import.meta.url))
  const encoder = await siglip2({ model: folder, device: 'cpu', threads: 1 })
  const model = await compose({ llm, image: { encoder, projector: mlp() } })
  const all = await itemsOf(model)
  expect(new Set(all.map(({ media }) => media[0]?.length)).size).toBeGreaterThan(1)
  // Lying and standing pictures of the same area.
  const parts = await Promise.all(
    [
      [40, 20],
      [20, 40],
    ].map(async ([width = 0, height = 0]) => ({
      type: 'image' as const,
      source: await sharp({ create: { width, height, channels: 3, background: '#a06020' } })
        .png()
        .toBuffer(),
    })),
  )
  const both = await model.encode(parts)
  expect(both[0]?.tokensOut).toBe(both[1]?.tokensOut)
  for (const [index, part] of parts.entries()) expect((await model.encode([part]))[0]?.data).toEqual(both[index]?.data)
  if (process.env.MODALIGN_LONG === '1') {
    const rows: StepMetrics[] = []
    const options = { epochs: 4, batchSize: 7, learningRate: 2e-2, device: 'cpu', threads: 1, checkpointEvery: 0 } as const
    for await (const row of tune(model, dataset(), { ...options, output: join(root, 'naflex') })) rows.push(row)
    expect(rows.at(-1)?.loss).toBeLessThan(0.9 * (rows[0]?.loss ?? 0))
  }
  await encoder.dispose()
})
