/** Runs of `tune` with real frozen models, on real pictures and on real recordings, against the same runs in PyTorch. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished } from 'vitest'
import { z } from 'zod'
import { messages } from '../datasets/messages.ts'
import { mobilenetV2 } from '../encoders/mobilenet-v2.ts'
import { whisper } from '../encoders/whisper.ts'
import { mlp } from '../projectors/mlp.ts'
import { stackedMlp } from '../projectors/stacked-mlp.ts'
import type { Trainables } from '../src/graph/parameters.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import type { Branches } from '../src/model/branches.ts'
import { compose } from '../src/model/multimodal-model.ts'
import type { StepMetrics } from '../src/training/run-log.ts'
import { tune } from '../src/training/tune.ts'
import { longOnly, skipWithout, testDataMissing } from './skip.ts'

const data = process.env.MODALIGN_TEST_DATA ?? ''
const missing = data === '' ? testDataMissing : process.env.MODALIGN_LONG === '1' ? undefined : longOnly

const fixtureSchema = z.object({
  steps: z.number(),
  learningRate: z.number(),
  warmupRatio: z.number(),
  records: z.string(),
  first: z.number().optional(),
  samples: z.array(z.object({ ids: z.array(z.number()), answers: z.array(z.number()) })),
  losses: z.array(z.number()),
  /** The same run in float64. */
  exact: z.array(z.number()),
})

/** As make.py: uniform in +-1/sqrt(fanIn), by a hash of the element's number. */
function scrambled(salt: number, dims: readonly number[], fanIn: number): Trainables[string] {
  const length = dims.reduce((product, dim) => product * dim, 1)
  const data = Float32Array.from({ length }, (_, index) => {
    let x = (Math.imul(index, 2_654_435_761) + salt) >>> 0
    for (let round = 0; round < 2; round++) x = Math.imul(x ^ (x >>> 16), 0x45d9f3b) >>> 0
    x = (x ^ (x >>> 16)) >>> 0
    return ((x / 2 ** 32) * 2 - 1) / Math.sqrt(fanIn)
  })
  return { dims, data }
}

/** The run of a fixture, through `tune` from the files on. */
async function run(name: string, branchesOf: (llm: LanguageModel) => Promise<Branches>, modality: string, inner: number) {
  const root = await mkdtemp(join(tmpdir(), 'modalign-tuning-'))
  onTestFinished(() => rm(root, { recursive: true, force: true }))
  const fixture = fixtureSchema.parse(JSON.parse(await readFile(new URL(`./fixtures/tuning/${name}`, import.meta.url), 'utf8')))
  const records: unknown[] = JSON.parse(await readFile(join(data, 'records', fixture.records), 'utf8'))
  const file = join(root, 'records.json')
  await writeFile(file, JSON.stringify(records.slice(0, fixture.first)))
  await using llm = await loadLanguageModel(join(data, 'smollm2_135m_instruct', 'SmolLM2-135M-Instruct.Q4_1.gguf'), {
    device: 'cpu',
    cacheFolder: join(root, 'cache'),
  })
  const width = llm.decoder.hiddenSize
  await using model = await compose({
    ...(await branchesOf(llm)),
    llm,
    parameters: {
      [`${modality}.0.weight`]: scrambled(1, [width, inner], inner),
      [`${modality}.0.bias`]: scrambled(2, [width], inner),
      [`${modality}.2.weight`]: scrambled(3, [width, width], width),
      [`${modality}.2.bias`]: scrambled(4, [width], width),
    },
  })
  const rows: StepMetrics[] = []
  const steps = tune(model, messages(file, { root: join(data, 'records') }), {
    output: join(root, 'run'),
    epochs: fixture.steps,
    batchSize: fixture.samples.length,
    learningRate: fixture.learningRate,
    schedule: 'cosine',
    warmupRatio: fixture.warmupRatio,
    checkpointEvery: 0,
    device: 'cpu',
  })
  for await (const row of steps) rows.push(row)
  return { fixture, rows }
}

async function expectSameCurve({ fixture, rows }: Awaited<ReturnType<typeof run>>): Promise<void> {
  expect(rows).toHaveLength(fixture.steps)
  expect(rows[0]?.tokens).toBe(fixture.samples.reduce((sum, { ids }) => sum + ids.length, 0))
  expect(rows[0]?.supervisedTokens).toBe(fixture.samples.reduce((sum, { answers }) => sum + answers.length, 0))
  const largest = (losses: readonly number[], others: readonly number[]): number =>
    Math.max(...losses.map((loss, step) => Math.abs(loss - (others[step] ?? Number.NaN))))
  const losses = rows.map(({ loss }) => loss)
  const figures = { ours: largest(losses, fixture.losses), oursToFloat64: largest(losses, fixture.exact) }
  const own = largest(fixture.losses, fixture.exact)
  console.info(
    `largest difference of ${losses.length} losses: ${JSON.stringify(figures)}, PyTorch's own: ${own}; ${losses[0]} to ${losses.at(-1)}`,
  )
  // A run on which PyTorch agreed with itself no better could not tell anything about ours.
  expect(own).toBeLessThan(1e-4)
  expect(figures.ours).toBeLessThan(1e-3)
  expect(losses.at(-1)).toBeLessThan(0.8 * (losses[0] ?? 0))
}

skipWithout(missing).test('Whisper, an MLP over ten stacked frames and SmolLM2 on recordings', async () => {
  const encoder = await whisper({ model: join(data, 'whisper_base_encoder'), device: 'cpu' })
  await expectSameCurve(await run('sounds.json', async () => ({ audio: { encoder, projector: stackedMlp({ stack: 10 }) } }), 'audio', 5120))
})

skipWithout(missing).test('MobileNetV2, an MLP and SmolLM2 on pictures, one of them in a later turn', async () => {
  const encoder = await mobilenetV2({ model: join(data, 'mobilenet_v2', 'model.onnx'), device: 'cpu' })
  await expectSameCurve(await run('pictures.json', async () => ({ image: { encoder, projector: mlp() } }), 'image', 1280))
})
