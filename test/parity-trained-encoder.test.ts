/** Encoders of which something is trained, against PEFT and PyTorch: CLIP -> mlp -> Llama. Fixture: test/fixtures/trained-encoder/make.py. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeAll, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { clip } from '../encoders/clip.ts'
import { mlp } from '../projectors/mlp.ts'
import type { Trainables, TrainableValue } from '../src/graph/parameters.ts'
import { readPeft } from '../src/llm/adapters/peft.ts'
import { checkpointWeights } from '../src/llm/checkpoint-weights.ts'
import type { Decoder } from '../src/llm/decoder.ts'
import { buildDecoder } from '../src/llm/families/index.ts'
import { mediaPath } from '../src/model/branches.ts'
import type { Encoder } from '../src/model/contracts.ts'
import { type AdaptEncoderOptions, adaptEncoder, saveTrainedEncoder } from '../src/model/trained-encoder.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { type BatchItem, collate } from '../src/training/batch.ts'
import { adamw } from '../src/training/optimizers/adamw.ts'
import { stepGraph } from '../src/training/step-graph.ts'
import { LocalTrainer } from '../src/training/trainer.ts'
import { openCheckpoint } from '../src/weights/checkpoint.ts'
import { toFloat32 } from '../src/weights/float16.ts'
import { openSafetensors } from '../src/weights/safetensors.ts'

const folder = fileURLToPath(new URL('./fixtures/trained-encoder/', import.meta.url))
const llama = fileURLToPath(new URL('./fixtures/parity/step/', import.meta.url))
const model = fileURLToPath(new URL('./fixtures/vision/clip/', import.meta.url))
const runSchema = z.object({ losses: z.array(z.number()), norms: z.array(z.number()) })
const fixture = z
  .object({
    rate: z.number(),
    steps: z.array(z.array(z.object({ ids: z.array(z.int()), weights: z.array(z.number()), pictures: z.array(z.int()) }))),
    runs: z.object({ lora: runSchema, all: runSchema }),
  })
  .parse(JSON.parse(readFileSync(`${folder}runs.json`, 'utf8')))
type Row = (typeof fixture.steps)[number][number]

const patches = 16
let decoder: Decoder

beforeAll(async () => {
  decoder = buildDecoder(JSON.parse(readFileSync(`${llama}config.json`, 'utf8')), checkpointWeights(await openCheckpoint(llama)))
})

/** As make.py has them. */
function picture(number: number) {
  const data = Uint8Array.from({ length: 16 * 16 * 3 }, (_, at) => (at * 37 + Math.floor(at / 48) * (number * 11 + 5) + number * 101) % 251)
  return { width: 16, height: 16, data }
}

async function open(trainable: AdaptEncoderOptions['trainable']): Promise<Encoder<'image'>> {
  const encoder = await adaptEncoder(await clip({ model, layer: -1, device: 'cpu', threads: 1 }), { trainable })
  onTestFinished(() => encoder.dispose())
  return encoder
}

async function itemOf({ trained, preprocess }: Encoder<'image'>, { ids, weights, pictures }: Row): Promise<BatchItem> {
  const starts = ids.flatMap((id, place) => (id < 0 && (ids[place - 1] ?? 0) >= 0 ? [place] : []))
  return {
    ids: Int32Array.from(ids),
    weights: Float32Array.from(weights),
    targets: 5,
    media: starts.map((start, index) => ({ part: { type: 'image', source: `${index}` }, turn: 0, start, length: patches })),
    features: await Promise.all(
      pictures.map(async (number) => ({
        modality: 'image' as const,
        data: new Float32Array(0),
        units: trained?.graph.units(await preprocess(picture(number))) ?? [],
      })),
    ),
  }
}

async function tensorsOf(file: string): Promise<Trainables> {
  const opened = await openSafetensors(join(folder, file))
  const values: Record<string, TrainableValue> = {}
  for (const [name, { shape }] of opened.tensors) values[name] = { dims: shape, data: toFloat32(await opened.read(name)) }
  return values
}

async function run(encoder: Encoder<'image'>) {
  const path = mediaPath('image', { encoder, projector: mlp() }, 1)
  const graph = stepGraph({ decoder, media: [path] })
  const { bytes, externalRoot } = graph.model
  const session = await createLocalSession(
    { bytes, ...(externalRoot !== undefined && { externalRoot }) },
    { device: 'cpu', threads: 1, memoryPattern: false },
  )
  onTestFinished(() => session.dispose())
  const trainables = { ...(await tensorsOf('projector.safetensors')), ...encoder.trained?.parameters }
  const trainer = new LocalTrainer({ session, trainables, optimizer: adamw({ weightDecay: 0.01 }), maxGradientNorm: 1 })
  const [losses, norms]: [number[], number[]] = [[], []]
  for (const rows of fixture.steps) {
    const items = await Promise.all(rows.map((row) => itemOf(encoder, row)))
    const { feeds, weight } = collate(items, { media: [path], headChunks: graph.headChunks })
    await trainer.accumulate(feeds, weight)
    const update = await trainer.update(fixture.rate)
    losses.push(update.loss)
    norms.push(update.gradientNorm)
  }
  return { losses, norms, final: (await trainer.snapshot()).parameters }
}

function expectClose(ours: ArrayLike<number>, theirs: ArrayLike<number>, name: string): void {
  expect(ours.length, name).toBe(theirs.length)
  const difference = Math.hypot(...Array.from(theirs, (value, index) => value - (ours[index] ?? Number.NaN)))
  expect(difference / Math.hypot(...Array.from(theirs)), name).toBeLessThan(1e-5)
}

test('LoRA in an encoder: eight steps as PEFT makes them, and its file', async () => {
  const encoder = await open({ lora: { rank: 4, alpha: 8, targets: ['q_proj', 'v_proj', 'fc2'] } })
  const [frozen] = await Promise.all([encoder.encode([await encoder.preprocess(picture(1))])])
  encoder.trained?.setParameters((await readPeft(`${folder}lora/initial`, 'image-encoder')).values)
  // B is 0: nothing has changed yet.
  expect((await encoder.encode([await encoder.preprocess(picture(1))])).data).toEqual(frozen?.data)
  const { losses, norms, final } = await run(encoder)
  expectClose(losses, fixture.runs.lora.losses, 'losses')
  expectClose(norms, fixture.runs.lora.norms, 'norms')
  const adapter = (await readPeft(`${folder}lora/final`, 'image-encoder')).values
  const theirs = { ...(await tensorsOf('lora.safetensors')), ...adapter }
  expect(Object.keys(final).sort()).toEqual(Object.keys(theirs).sort())
  for (const [name, { data }] of Object.entries(theirs)) expectClose(final[name]?.data ?? [], data, name)

  const target = mkdtempSync(join(tmpdir(), 'modalign-trained-encoder-'))
  onTestFinished(() => rmSync(target, { recursive: true }))
  encoder.trained?.setParameters(
    Object.fromEntries(Object.keys(adapter).map((name) => [name, final[name] ?? { dims: [], data: new Float32Array() }])),
  )
  await saveTrainedEncoder(encoder, target)
  const [ours, reference] = await Promise.all([
    openSafetensors(join(target, 'lora', 'adapter_model.safetensors')),
    openSafetensors(`${folder}lora/final/adapter_model.safetensors`),
  ])
  const shapes = ({ tensors }: typeof ours) => [...tensors].map(([name, { shape }]) => `${name} ${shape.join()}`).sort()
  expect(shapes(ours)).toEqual(shapes(reference))
})

test('all weights of an encoder: eight steps as PyTorch makes them', async () => {
  const encoder = await open(true)
  const { losses, norms, final } = await run(encoder)
  expectClose(losses, fixture.runs.all.losses, 'losses')
  expectClose(norms, fixture.runs.all.norms, 'norms')
  const theirs = Object.entries(await tensorsOf('all.safetensors')).map(
    ([name, value]) => [name.startsWith('image.') ? name : `image-encoder.${name}`, value] as const,
  )
  expect(Object.keys(final).sort()).toEqual(theirs.map(([name]) => name).sort())
  // Softmax does not see a key's bias: its gradient is 0 but for rounding, which Adam scales up to whole steps.
  for (const [name, { data }] of theirs) if (!name.endsWith('k_proj.bias')) expectClose(final[name]?.data ?? [], data, name)
})
