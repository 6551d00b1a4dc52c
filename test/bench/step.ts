/**
 * The training step of SmolLM2-135M's shape: batch 4 x 256 tokens, 64 media tokens and 64 supervised tokens in each, an MLP projector trained through the frozen model.
 * What `tune` runs, in the worker that it runs in.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { mlp } from '../../projectors/mlp.ts'
import { initialValues } from '../../src/graph/initial-values.ts'
import { matmul } from '../../src/graph/operators/matmul.ts'
import { reduceMax } from '../../src/graph/operators/reduce-max.ts'
import type { Trainables } from '../../src/graph/parameters.ts'
import { constant, input } from '../../src/graph/tensor.ts'
import type { Decoder } from '../../src/llm/decoder.ts'
import { createGenerator } from '../../src/llm/generation/generator.ts'
import type { MediaPath } from '../../src/model/splice.ts'
import { imageGrid } from '../../src/model/token-grid.ts'
import { lower } from '../../src/onnx/lower.ts'
import { createLocalSession } from '../../src/runtime/local.ts'
import { createSession } from '../../src/runtime/node.ts'
import { float32Tensor, type NamedTensors } from '../../src/tensors.ts'
import { type BatchItem, collate } from '../../src/training/batch.ts'
import { stepGraph } from '../../src/training/step-graph.ts'
import { openTrainer } from '../../src/training/worker-trainer.ts'
import { peakRssGB, pssGB } from './memory.ts'
import { sourceOf } from './model-source.ts'
import { randomSmollm2, smollm2 } from './smollm2.ts'

const batch = 4
const tokens = 256
const mediaTokens = 64
const supervised = 64
const featureWidth = 768
const headChunks = 4

export interface StepFigures {
  readonly secondsPerStep: number
  readonly tokensPerSecond: number
  readonly gflops: number
  readonly peakGflops: number
  readonly ratioToPeak: number
  readonly peakRssGB: number | undefined
  /** What a sample and an evaluation in the middle of a run add to the memory of the steps, by Pss: their highest over the steps', less 1. */
  readonly sampleMemoryRatio: number | undefined
  readonly loss: number
}

export async function benchStep({ steps = 5 }: { readonly steps?: number } = {}): Promise<StepFigures> {
  const folder = await mkdtemp(join(tmpdir(), 'modalign-bench-'))
  try {
    const decoder = await randomSmollm2(folder)
    const media: readonly MediaPath[] = [{ modality: 'image', projector: mlp({ depth: 2 }), grid: imageGrid(8, 8), width: featureWidth }]
    const graph = stepGraph({
      decoder,
      media,
      headChunks,
    })
    const { feeds, weight } = collate(
      Array.from({ length: batch }, (_, row) => item(row)),
      {
        media,
        headChunks,
      },
    )
    const peakBefore = await peakMatMul()
    await using trainer = await openTrainer({
      model: sourceOf(graph.model),
      session: { device: 'cpu', memoryPattern: false },
      trainables: initialValues(graph.parameters, 0),
      optimizer: { name: 'adamw', weightDecay: 0 },
      maxGradientNorm: 1,
    })
    const seconds: number[] = []
    let loss = 0
    for (let step = 0; step <= steps; step++) {
      const started = performance.now()
      await trainer.accumulate(feeds, weight)
      ;({ loss } = await trainer.update(1e-4))
      // The first one fills the arenas.
      if (step > 0) seconds.push((performance.now() - started) / 1000)
    }
    const [rss, pss] = [peakRssGB(), pssGB()]
    const pssAfter = await highestPss(async () => {
      // As `tune` does between two steps.
      await trainer.suspend()
      const { parameters } = await trainer.snapshot()
      await evaluate(decoder, media, { ...feeds, ...parameterFeeds(parameters) })
      await sample(decoder)
    })
    const peak = Math.max(peakBefore, await peakMatMul())
    const best = Math.min(...seconds)
    const gflops = stepFlops() / best / 1e9
    return {
      secondsPerStep: best,
      tokensPerSecond: (batch * tokens) / best,
      gflops,
      peakGflops: peak,
      ratioToPeak: gflops / peak,
      peakRssGB: rss,
      sampleMemoryRatio: pss === undefined || pssAfter === undefined ? undefined : pssAfter / pss - 1,
      loss,
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** The loss without gradients, in a session that maps the weights. */
async function evaluate(decoder: Decoder, media: readonly MediaPath[], feeds: NamedTensors): Promise<void> {
  const { model } = stepGraph({ decoder, media, headChunks, gradients: false })
  await using session = await createSession(sourceOf(model), { device: 'cpu', memoryPattern: false, prepacking: false })
  await session.run(feeds, { fetch: ['loss'] })
}

async function sample(decoder: Decoder): Promise<void> {
  await using generator = createGenerator({ decoder, stopTokenIds: [], defaults: {} }, { device: 'cpu', prepacking: false })
  for await (const _ of generator.generate([{ ids: Array.from({ length: 32 }, (_, id) => id + 5) }], { maxNewTokens: 8 }));
}

/** The most memory that is in use while the work goes on, looked at ten times a second. */
async function highestPss(work: () => Promise<void>): Promise<number | undefined> {
  let highest = pssGB()
  const timer = setInterval(() => {
    const now = pssGB()
    if (now !== undefined) highest = Math.max(highest ?? 0, now)
  }, 100)
  try {
    await work()
  } finally {
    clearInterval(timer)
  }
  return highest
}

function parameterFeeds(parameters: Trainables): NamedTensors {
  return Object.fromEntries(Object.entries(parameters).map(([name, { dims, data }]) => [name, float32Tensor(data, dims)]))
}

/** 2MNK over the products of one step: forward, and backward down to the projector's weights. */
function stepFlops(): number {
  const {
    hidden_size: width,
    intermediate_size: inner,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    vocab_size: vocabulary,
  } = smollm2
  const kvWidth = (width / heads) * (smollm2.num_key_value_heads ?? heads)
  const rows = batch * tokens
  const linears = 2 * rows * (2 * width * width + 2 * width * kvWidth + 3 * width * inner)
  // Q K^T and P V over all keys, masked ones too.
  const attention = 2 * 2 * batch * tokens * tokens * width
  // Backward: one product for each linear (no frozen weight gets a gradient), two for each of attention's.
  const layer = 2 * linears + 3 * attention
  const head = 2 * 2 * batch * supervised * width * vocabulary
  const media = batch * mediaTokens
  const projector = 2 * media * (2 * featureWidth * width + 3 * width * width)
  return layers * layer + head + projector
}

/** The best of several products of the step's own shapes, in GFLOP/s: what ONNX Runtime's MatMul reaches on the same threads in the same process. */
async function peakMatMul(): Promise<number> {
  const shapes = [
    [1024, 1536, 576],
    [1024, 576, 1536],
    [1024, 576, 576],
  ] as const
  const repeats = 16
  let best = 0
  for (const [m, n, k] of shapes) {
    const a = input('a', 'float32', [m, k])
    // Different constants, so that no product is left out, and one number out of each, so that only multiplying takes time.
    const outputs = Object.fromEntries(
      Array.from({ length: repeats }, (_, index) => {
        const b = constant(float32Tensor(noise(k * n, index + 1), [k, n]))
        return [`y${index}`, reduceMax(matmul(a, b), [0, 1])] as const
      }),
    )
    await using session = await createLocalSession(sourceOf(lower({ outputs })), { device: 'cpu' })
    const feeds = { a: float32Tensor(noise(m * k, 0), [m, k]) }
    for (let run = 0; run < 8; run++) {
      const started = performance.now()
      await session.run(feeds)
      if (run > 0) best = Math.max(best, (repeats * 2 * m * n * k) / ((performance.now() - started) / 1000) / 1e9)
    }
  }
  return best
}

function noise(length: number, seed: number): Float32Array {
  return Float32Array.from({ length }, (_, i) => ((i * 37 + seed * 11) % 101) / 101 - 0.5)
}

function item(row: number): BatchItem {
  const ids = Int32Array.from({ length: tokens }, (_, place) =>
    place >= 4 && place < 4 + mediaTokens ? -1 : (place * 7919 + row * 104_729) % smollm2.vocab_size,
  )
  const weights = Float32Array.from({ length: tokens }, (_, place) => (place >= tokens - supervised ? 1 : 0))
  const part = { type: 'image' as const, source: `${row}` }
  const features = [
    { modality: 'image' as const, data: Float32Array.from({ length: mediaTokens * featureWidth }, (_, i) => Math.sin(i + row)) },
  ]
  return { ids, weights, targets: supervised, media: [{ part, turn: 0, start: 4, length: mediaTokens }], features }
}
