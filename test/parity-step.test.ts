/** A 20-step projector tuning against the same run in PyTorch: encoder, collation, step graph, clipping, AdamW, schedule. Fixture: test/fixtures/parity/make.py. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { onnxImage } from '../encoders/onnx-image.ts'
import { mlp } from '../projectors/mlp.ts'
import type { Trainables } from '../src/graph/parameters.ts'
import { checkpointWeights } from '../src/llm/checkpoint-weights.ts'
import { buildDecoder } from '../src/llm/families/index.ts'
import type { MediaPath } from '../src/model/splice.ts'
import { imageGrid } from '../src/model/token-grid.ts'
import { makeGraph, makeModel, makeNode, makeTensor, makeValueInfo } from '../src/onnx/build.ts'
import { encodeModel } from '../src/onnx/codec.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import type { Device, ModelSource } from '../src/runtime/session.ts'
import { type Batch, type BatchItem, collate } from '../src/training/batch.ts'
import { adamw } from '../src/training/optimizers/adamw.ts'
import type { NamedArrays, Optimizer } from '../src/training/optimizers/optimizer.ts'
import { cosine } from '../src/training/schedules.ts'
import { type StepGraph, stepGraph } from '../src/training/step-graph.ts'
import { LocalTrainer, type Trainer } from '../src/training/trainer.ts'
import { openTrainer } from '../src/training/worker-trainer.ts'
import { openCheckpoint } from '../src/weights/checkpoint.ts'
import { openSafetensors, type SafetensorsFile } from '../src/weights/safetensors.ts'

interface RunRecord {
  readonly ids: readonly number[]
  readonly weights: readonly number[]
  readonly media: readonly { readonly picture: number; readonly start: number }[]
}
interface ReferenceRun {
  readonly records: readonly RunRecord[]
  readonly order: readonly (readonly number[])[]
  readonly losses: readonly number[]
  readonly norms: readonly number[]
  readonly rates: readonly number[]
  readonly peak: number
  readonly warmupSteps: number
  readonly totalSteps: number
  readonly weightDecay: number
  readonly maxGradientNorm: number
}

const folder = fileURLToPath(new URL('./fixtures/parity/step/', import.meta.url))
const run: ReferenceRun = JSON.parse(readFileSync(`${folder}run.json`, 'utf8'))
const [pictureTokens, featureWidth] = [16, 24]
const mediaPath: MediaPath = { modality: 'image', projector: mlp({ depth: 2 }), grid: imageGrid(4, 4), width: featureWidth }

let values: SafetensorsFile
let graph: StepGraph
let source: ModelSource
let items: readonly BatchItem[]

beforeAll(async () => {
  values = await openSafetensors(`${folder}run.safetensors`)
  const config: unknown = JSON.parse(readFileSync(`${folder}config.json`, 'utf8'))
  const decoder = buildDecoder(config, checkpointWeights(await openCheckpoint(folder)))
  graph = stepGraph({ decoder, media: [mediaPath] })
  const { bytes, externalRoot } = graph.model
  source = { bytes, ...(externalRoot !== undefined && { externalRoot }) }
  items = itemsOf(await encoded())
})

async function float32(name: string): Promise<{ readonly dims: readonly number[]; readonly data: Float32Array }> {
  const value = await values.read(name)
  if (value.dtype !== 'float32') throw new Error(`${name} is ${value.dtype}`)
  return value
}

async function trainables(prefix: string): Promise<Trainables> {
  const names = graph.parameters.map(({ name }) => name)
  return Object.fromEntries(await Promise.all(names.map(async (name) => [name, await float32(`${prefix}/${name}`)] as const)))
}

/** The pictures' features by our own encoder, from their bytes. */
async function encoded(): Promise<readonly Float32Array[]> {
  const convolution = makeNode({
    opType: 'Conv',
    inputs: ['pixels', 'weight', 'bias'],
    outputs: ['map'],
    attributes: { kernel_shape: { ints: [8, 8] }, strides: { ints: [8, 8] } },
  })
  const model = encodeModel(
    makeModel({
      graph: makeGraph({
        nodes: [convolution, makeNode({ opType: 'Relu', inputs: ['map'], outputs: ['features'] })],
        inputs: [makeValueInfo('pixels', 'float32', ['batch', 3, 32, 32])],
        outputs: [makeValueInfo('features', 'float32')],
        initializers: [makeTensor('weight', await values.read('encoder.weight')), makeTensor('bias', await values.read('encoder.bias'))],
      }),
    }),
  )
  const encoder = await onnxImage({
    model,
    output: 'features',
    device: 'cpu',
    preprocessing: {
      resize: { size: { height: 32, width: 32 }, filter: 'bilinear' },
      rescaleFactor: 1 / 255,
      normalize: { mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] },
    },
  })
  try {
    const { dims, data } = await values.read('pictures')
    if (!(data instanceof Uint8Array)) throw new Error('pictures are bytes')
    const [count = 0, height = 0, width = 0] = dims
    const each = height * width * 3
    const inputs = await Promise.all(
      Array.from({ length: count }, (_, index) =>
        encoder.preprocess({ width, height, data: data.subarray(index * each, (index + 1) * each) }),
      ),
    )
    const features = await encoder.encode(inputs)
    expect([features.tokens, features.width]).toEqual([pictureTokens, featureWidth])
    expect(relativeNorm(features.data, (await float32('features')).data)).toBeLessThan(1e-6)
    const size = pictureTokens * featureWidth
    return Array.from({ length: count }, (_, index) => features.data.slice(index * size, (index + 1) * size))
  } finally {
    await encoder.dispose()
  }
}

function itemsOf(features: readonly Float32Array[]): readonly BatchItem[] {
  return run.records.map(({ ids, weights, media }) => ({
    ids: Int32Array.from(ids),
    weights: Float32Array.from(weights),
    targets: weights.filter((weight) => weight > 0).length,
    media: media.map(({ picture, start }) => ({
      part: { type: 'image' as const, source: `${picture}` },
      turn: 0,
      start,
      length: pictureTokens,
    })),
    features: media.map(({ picture }) => ({ modality: 'image' as const, data: features[picture] ?? new Float32Array(0) })),
  }))
}

function batchOf(indices: readonly number[]): Batch {
  const chosen = indices.flatMap((index) => items[index] ?? [])
  return collate(chosen, { media: [mediaPath], headChunks: graph.headChunks })
}

function relativeNorm(ours: Iterable<number>, theirs: Iterable<number>): number {
  const [a, b] = [Array.from(ours), Array.from(theirs)]
  expect(a.length).toBe(b.length)
  return Math.hypot(...a.map((value, index) => value - (b[index] ?? Number.NaN))) / Math.hypot(...b)
}

/** The run with each step's samples cut into passes of `batchSize`. */
async function replay(trainer: Trainer, batchSize: number): Promise<{ readonly losses: number[]; readonly norms: number[] }> {
  const { peak, warmupSteps, totalSteps } = run
  const rate = cosine({ peak, warmupSteps, totalSteps })
  const [losses, norms]: [number[], number[]] = [[], []]
  for (const [step, indices] of run.order.entries()) {
    for (let start = 0; start < indices.length; start += batchSize) {
      const { feeds, weight } = batchOf(indices.slice(start, start + batchSize))
      await trainer.accumulate(feeds, weight)
    }
    expect(rate(step)).toBeCloseTo(run.rates[step] ?? Number.NaN, 12)
    const update = await trainer.update(rate(step))
    losses.push(update.loss)
    norms.push(update.gradientNorm)
  }
  return { losses, norms }
}

async function expectReferenceRun(trainer: Trainer, batchSize: number): Promise<void> {
  const { losses, norms } = await replay(trainer, batchSize)
  for (const [step, loss] of losses.entries())
    expect(Math.abs(loss - (run.losses[step] ?? Number.NaN)), `loss of step ${step}`).toBeLessThan(1e-4)
  for (const [step, norm] of norms.entries()) {
    const expected = run.norms[step] ?? Number.NaN
    expect(Math.abs(norm - expected), `gradient norm of step ${step}`).toBeLessThan(1e-3 * Math.max(1, expected))
  }
  const mean = (part: readonly number[]): number => part.reduce((sum, loss) => sum + loss, 0) / part.length
  expect(mean(losses.slice(-5))).toBeLessThan(0.7 * mean(losses.slice(0, 5)))
  const { parameters } = await trainer.snapshot()
  for (const [name, { data }] of Object.entries(await trainables('final')))
    expect(relativeNorm(parameters[name]?.data ?? [], data), name).toBeLessThan(1e-4)
}

async function localTrainer(optimizer: Optimizer, device: Device = 'cpu'): Promise<LocalTrainer> {
  const session = await createLocalSession(source, { device, threads: 1, memoryPattern: false })
  onTestFinished(() => session.dispose())
  return new LocalTrainer({
    session,
    trainables: await trainables('initial'),
    optimizer,
    maxGradientNorm: run.maxGradientNorm,
  })
}

/** An optimizer that changes nothing and keeps what it was given. */
function recorder(): { readonly optimizer: Optimizer; readonly last: () => NamedArrays } {
  let last: NamedArrays = {}
  return {
    optimizer: {
      name: 'recorder',
      init: () => ({ step: 0, slots: {} }),
      update(_, gradients, state) {
        last = Object.fromEntries(Object.entries(gradients).map(([name, data]) => [name, data.slice()]))
        return state
      },
    },
    last: () => last,
  }
}

describe('20 steps as in PyTorch', () => {
  test('each step in one pass', async () => {
    await expectReferenceRun(await localTrainer(adamw({ weightDecay: run.weightDecay })), 6)
  })

  test('each step accumulated over passes of unequal supervised lengths', async () => {
    await expectReferenceRun(await localTrainer(adamw({ weightDecay: run.weightDecay })), 2)
  })

  test('in a worker thread', async () => {
    await using trainer = await openTrainer({
      model: source,
      session: { device: 'cpu', threads: 1, memoryPattern: false },
      trainables: await trainables('initial'),
      optimizer: { name: 'adamw', weightDecay: run.weightDecay },
      maxGradientNorm: run.maxGradientNorm,
    })
    expect(trainer.device).toBe('cpu')
    await expectReferenceRun(trainer, 4)
  })
})

describe.each(['cpu', 'wasm'] as const)('on %s', (device) => {
  test("the first step's gradient is PyTorch's", async () => {
    const { optimizer, last } = recorder()
    const session = await createLocalSession(source, { device, threads: 1 })
    onTestFinished(() => session.dispose())
    const trainer = new LocalTrainer({ session, trainables: await trainables('initial'), optimizer })
    const { feeds, weight } = batchOf(run.order[0] ?? [])
    await trainer.accumulate(feeds, weight)
    await trainer.update(1)
    for (const [name, { data }] of Object.entries(await trainables('gradient')))
      expect(relativeNorm(last()[name] ?? [], data), name).toBeLessThan(1e-4)
  })

  test('a batch without a picture has a loss, and a gradient of zeros', async () => {
    const { optimizer, last } = recorder()
    const trainer = await localTrainer(optimizer, device)
    const textOnly = run.records.flatMap(({ media }, index) => (media.length === 0 ? [index] : []))
    const { feeds, weight } = batchOf(textOnly)
    expect(feeds['image.features']?.dims).toEqual([0, pictureTokens, featureWidth])
    expect(feeds['image.rows']?.dims).toEqual([0, pictureTokens, 2])
    await trainer.accumulate(feeds, weight)
    const { loss, gradientNorm } = await trainer.update(1)
    expect(loss).toBeGreaterThan(0)
    expect(gradientNorm).toBe(0)
    for (const gradient of Object.values(last())) expect(gradient.every((value) => value === 0)).toBe(true)
    expect(await trainer.loss(feeds)).toBeCloseTo(loss * weight, 3)
  })
})

describe('accumulation', () => {
  test('k passes of unequal supervised lengths give the gradient of one', async () => {
    const { optimizer, last } = recorder()
    const session = await createLocalSession(source, { device: 'cpu', threads: 1 })
    onTestFinished(() => session.dispose())
    const trainer = new LocalTrainer({ session, trainables: await trainables('initial'), optimizer })
    const all = items.map((_, index) => index)
    const gradientOf = async (passes: readonly (readonly number[])[]): Promise<number[]> => {
      for (const indices of passes) {
        const { feeds, weight } = batchOf(indices)
        await trainer.accumulate(feeds, weight)
      }
      await trainer.update(1)
      return Object.values(last()).flatMap((data) => Array.from(data))
    }
    const whole = await gradientOf([all])
    const partitions = fc.array(fc.nat({ max: 4 }), { minLength: all.length, maxLength: all.length }).map((groups) => {
      const passes = [0, 1, 2, 3, 4].map((group) => all.filter((index) => groups[index] === group))
      return passes.filter(({ length }) => length > 0)
    })
    await fc.assert(
      fc.asyncProperty(partitions, async (passes) => {
        expect(relativeNorm(await gradientOf(passes), whole)).toBeLessThan(1e-5)
      }),
      { numRuns: 12, seed: 1 },
    )
    // A mean of the passes' means is another thing: the law would notice.
    const weights = [all.slice(0, 3), all.slice(3)].map((indices) => batchOf(indices).weight)
    expect(weights[0]).not.toBe(weights[1])
  })
})
