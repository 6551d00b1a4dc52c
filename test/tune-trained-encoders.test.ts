/** Runs of `tune` that train an encoder, too: pictures and sounds of several lengths; saved, loaded, interrupted and resumed; and what is refused. */
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { SoundFamilyOptions } from '../encoders/blocks/sound-family.ts'
import { clip } from '../encoders/clip.ts'
import { concat } from '../encoders/concat.ts'
import { dinov2 } from '../encoders/dinov2.ts'
import { frames } from '../encoders/frames.ts'
import { siglip } from '../encoders/siglip.ts'
import { tiled } from '../encoders/tiled.ts'
import { vit } from '../encoders/vit.ts'
import { wav2vec2 } from '../encoders/wav2vec2.ts'
import { whisper } from '../encoders/whisper.ts'
import { projectors } from '../projectors/index.ts'
import { mlp } from '../projectors/mlp.ts'
import { pooledMlp } from '../projectors/pooled-mlp.ts'
import { stackedMlp } from '../projectors/stacked-mlp.ts'
import { encoderCatalogue } from '../src/cli/catalogues.ts'
import type { ModalignError } from '../src/errors.ts'
import { initialValues } from '../src/graph/initial-values.ts'
import { normal, type Parameter } from '../src/graph/parameters.ts'
import { adapt } from '../src/llm/adapters/adapt.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import { mediaPath } from '../src/model/branches.ts'
import type { DatasetSource, DecodedAudio, DecodedImage, Encoder, Modality, Projector, Sample } from '../src/model/contracts.ts'
import { compose, type MultimodalModel } from '../src/model/multimodal-model.ts'
import { loadModel } from '../src/model/saved-model.ts'
import { adaptEncoder } from '../src/model/trained-encoder.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { float32Tensor, type NamedTensors } from '../src/tensors.ts'
import { type BatchItem, collate } from '../src/training/batch.ts'
import { openFeatureStore } from '../src/training/feature-store.ts'
import { FeatureMemory } from '../src/training/features.ts'
import { gradientName, type StepGraph, stepGraph } from '../src/training/step-graph.ts'
import { type TuneOptions, type TuneSummary, tune } from '../src/training/tune.ts'
import { longOnly, skipWithout } from './skip.ts'
import { colours, openEncoder, writeDataset, writeLanguageModel } from './tune-tiny-pair.ts'

const long = process.env.MODALIGN_LONG === '1'

let root: string
let llm: LanguageModel
const folderOf = (name: string): string => fileURLToPath(new URL(`./fixtures/${name}`, import.meta.url))

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-trained-'))
  await writeLanguageModel(join(root, 'llm'))
  await writeDataset(join(root, 'data'))
  llm = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1 })
})
afterAll(async () => {
  await llm?.dispose()
  await rm(root, { recursive: true, force: true })
})

/** A medium of a length that hangs on its number: 16 x 16 pictures, or sounds. */
function medium(modality: Modality, number: number): DecodedImage | DecodedAudio {
  if (modality === 'image')
    return { width: 16, height: 16, data: Uint8Array.from({ length: 768 }, (_, at) => (at * 37 + number * 90) % 251) }
  const samples = Float32Array.from({ length: 3_000 + 2_500 * number }, (_, at) => Math.sin((at * (number + 3)) / 40) / 2)
  return { sampleRateHz: 16_000, samples }
}

interface Family {
  readonly name: string
  readonly open: () => Promise<Encoder<'image'> | Encoder<'audio'>>
  readonly projector: Projector
  /** Windows have the length of their sounds, and go into a batch alone. */
  readonly alone?: boolean
}
const place = { device: 'cpu', threads: 1 } as const
const picture = (name: string, open: typeof clip): Family => ({
  name,
  open: () => open({ ...place, model: folderOf(`vision/${name}`) }),
  projector: mlp(),
})
const sound = (name: string, open: (options: SoundFamilyOptions) => Promise<Encoder<'audio'>>, alone = false): Family => ({
  name,
  open: () => open({ ...place, model: folderOf(`audio/families/${name}`) }),
  projector: stackedMlp({ stack: 3 }),
  alone,
})
const families: readonly Family[] = [
  sound('whisper', whisper),
  ...(long
    ? [
        { ...picture('clip', clip), name: 'clip, stacked with padding', projector: stackedMlp({ stack: 3 }) },
        picture('clip', clip),
        picture('siglip', siglip),
        picture('dinov2', dinov2),
        picture('vit', vit),
        sound('wav2vec2-group', wav2vec2, true),
        sound('wav2vec2-layer', wav2vec2, true),
      ]
    : []),
]

describe.each(families)('$name', ({ open, projector, alone = false }) => {
  test('a step over its layers has the loss of a step over its features, before and after an update, and a gradient that points uphill', async () => {
    const base = await open()
    // The frozen one is asked after the trained one has closed it.
    const frozen = { ...base, dispose: async () => undefined }
    const encoder: Encoder = base.modality === 'image' ? await adapted(base) : await adapted(base)
    onTestFinished(() => encoder.dispose())
    const { modality } = base
    const path = mediaPath(modality, { encoder, projector }, 1)
    const plain = mediaPath(modality, { encoder: frozen, projector }, 1)
    const [through, over] = [
      stepGraph({ decoder: llm.decoder, media: [path] }),
      stepGraph({ decoder: llm.decoder, media: [plain], gradients: false }),
    ]
    const [trainedSession, plainSession] = await Promise.all([sessionOf(through), sessionOf(over)])
    const { trained } = encoder
    if (trained === undefined) throw new Error('nothing is trained')
    // B is drawn, too: with 0 there, A has no gradient.
    const values = initialValues(
      through.parameters.map((one): Parameter => (one.initializer.kind === 'constant' ? { ...one, initializer: normal(0.1) } : one)),
      5,
    )
    const feedsOf = (all: typeof values): NamedTensors =>
      Object.fromEntries(Object.entries(all).map(([name, { dims, data }]) => [name, float32Tensor(data, dims)]))
    const groups = alone ? [[0], [1]] : [[0, 1]]
    const lossOf = async (
      all: typeof values,
    ): Promise<{ readonly loss: number; readonly gradients: ReadonlyMap<string, Float32Array> }> => {
      const gradients = new Map<string, Float32Array>()
      let loss = 0
      for (const group of groups) {
        const items = await itemsOf(encoder, projector, group)
        const { feeds } = collate(items, { media: [path], headChunks: through.headChunks })
        const found = await trainedSession.run({ ...feeds, ...feedsOf(all) })
        loss += Number(found.loss?.data[0])
        for (const { name } of through.parameters) {
          const sum = gradients.get(name) ?? new Float32Array(all[name]?.data.length ?? 0)
          const own = found[gradientName({ name })]?.data ?? []
          for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] ?? 0) + Number(own[i])
          gradients.set(name, sum)
        }
      }
      return { loss, gradients }
    }
    const own = (all: typeof values) => Object.fromEntries(Object.entries(all).filter(([name]) => Object.hasOwn(trained.parameters, name)))
    const overFeatures = async (all: typeof values): Promise<number> => {
      trained.setParameters(own(all))
      let loss = 0
      for (const number of [0, 1]) {
        const items = await itemsOf(encoder, projector, [number], true)
        const { feeds } = collate(items, { media: [plain], headChunks: over.headChunks })
        const projected = Object.fromEntries(Object.entries(feedsOf(all)).filter(([name]) => !Object.hasOwn(trained.parameters, name)))
        const { loss: one } = await plainSession.run({ ...feeds, ...projected }, { fetch: ['loss'] })
        loss += Number(one?.data[0])
      }
      return loss
    }
    const { loss, gradients } = await lossOf(values)
    expect(Math.abs(loss / (await overFeatures(values)) - 1)).toBeLessThan(1e-5)
    const adapters = Object.keys(trained.parameters)
    const squares = adapters.map((name) => Array.from(gradients.get(name) ?? []).reduce((sum, value) => sum + value * value, 0))
    for (const [index, name] of adapters.entries()) expect(squares[index], name).toBeGreaterThan(0)
    // Along the gradient of the adapters alone, the loss changes by its length.
    const length = Math.sqrt(squares.reduce((sum, value) => sum + value, 0))
    const step = 2e-3
    const moved = (sign: number) =>
      Object.fromEntries(
        Object.entries(values).map(([name, { dims, data }]) => {
          const gradient = Object.hasOwn(trained.parameters, name) ? gradients.get(name) : undefined
          return [name, { dims, data: data.map((value, i) => value + (sign * step * (gradient?.[i] ?? 0)) / length) }]
        }),
      )
    const [up, down] = [moved(1), moved(-1)]
    const [higher, lower] = [(await lossOf(up)).loss, (await lossOf(down)).loss]
    expect(Math.abs((higher - lower) / (2 * step) / length - 1)).toBeLessThan(0.02)
    expect(Math.abs(higher / (await overFeatures(up)) - 1)).toBeLessThan(1e-5)
  })
})

async function adapted<M extends Modality>(encoder: Encoder<M>): Promise<Encoder<M>> {
  return adaptEncoder(encoder, { trainable: { lora: { rank: 2, alpha: 4 } } })
}

async function sessionOf({ model: { bytes, externalRoot } }: StepGraph) {
  const session = await createLocalSession(
    { bytes, ...(externalRoot !== undefined && { externalRoot }) },
    { device: 'cpu', threads: 1, memoryPattern: false },
  )
  onTestFinished(() => session.dispose())
  return session
}

/** One item for each number, with its medium between words. `encoded`: as features. */
async function itemsOf(encoder: Encoder, projector: Projector, numbers: readonly number[], encoded = false): Promise<readonly BatchItem[]> {
  return Promise.all(
    numbers.map(async (number): Promise<BatchItem> => {
      const given = medium(encoder.modality, number)
      const inputs = await prepared(encoder, given)
      const size = 'samples' in given ? { seconds: given.samples.length / given.sampleRateHz } : { width: 16, height: 16 }
      const [segment] = projector.definition.tokens(encoder.grid(size), projector.options).segments
      const length = (segment?.frames ?? 0) * (segment?.rows ?? 0) * (segment?.columns ?? 0)
      const ids = [5, 6, ...new Array<number>(length).fill(-1), 20 + number, 30, 40 + number]
      const { modality } = encoder
      const features = encoded
        ? { modality, data: (await encoder.encode([inputs])).data }
        : { modality, data: new Float32Array(0), units: encoder.trained?.graph.units(inputs) ?? [] }
      return {
        ids: Int32Array.from(ids),
        weights: Float32Array.from(ids, (_, index) => (index >= ids.length - 3 ? 1 : 0)),
        targets: 3,
        media: [{ part: { type: modality, source: `${number}` }, turn: 0, start: 2, length }],
        features: [features],
      }
    }),
  )
}

async function prepared(encoder: Encoder, given: DecodedImage | DecodedAudio): Promise<NamedTensors> {
  const isSound = (one: Encoder): one is Encoder & Encoder<'audio'> => one.modality === 'audio'
  const isPicture = (one: Encoder): one is Encoder & Encoder<'image'> => one.modality === 'image'
  if ('samples' in given && isSound(encoder)) return encoder.preprocess(given)
  if ('width' in given && isPicture(encoder)) return encoder.preprocess(given)
  throw new Error('another modality')
}

/** Each colour once. */
function dataset(): DatasetSource {
  const samples = Object.keys(colours).map(
    (name): Sample => ({
      id: name,
      turns: [
        {
          role: 'user',
          content: [
            { type: 'image', source: `${name}.png` },
            { type: 'text', text: '\nWhat colour is this?' },
          ],
        },
        { role: 'assistant', content: [{ type: 'text', text: `It is ${name}.` }] },
      ],
    }),
  )
  return {
    name: 'colours',
    root: join(root, 'data'),
    async *samples() {
      yield* samples
    },
  }
}

interface Run {
  readonly losses: readonly number[]
  readonly heldOut: number | undefined
  readonly summary: TuneSummary
}

async function run(
  model: MultimodalModel,
  output: string,
  { stopAfter, ...options }: Partial<TuneOptions> & { readonly stopAfter?: number } = {},
): Promise<Run> {
  const controller = new AbortController()
  const losses: number[] = []
  let heldOut: number | undefined
  const settings = { epochs: 6, batchSize: 6, learningRate: 1e-2, schedule: 'constant', warmupRatio: 0, ...place } as const
  const steps = tune(model, dataset(), { ...settings, ...options, output, signal: controller.signal, evaluation: dataset() })
  for (;;) {
    const next = await steps.next()
    if (next.done === true) return { losses, heldOut, summary: next.value }
    losses.push(next.value.loss)
    heldOut = next.value.evaluation?.loss
    if (losses.length === stopAfter) controller.abort()
  }
}

async function trainedModel(): Promise<MultimodalModel> {
  const encoder = await adaptEncoder(await clip({ ...place, model: folderOf('vision/clip') }), {
    trainable: { lora: { rank: 2, alpha: 4, targets: ['q_proj', 'v_proj', 'fc1'] }, unfreeze: ['**.embeddings.class_embedding'] },
    seed: 1,
    threads: 1,
  })
  const whole = await adapt(llm, { lora: { rank: 2, alpha: 4 }, seed: 1 })
  return compose({ llm: whole, image: { encoder, projector: mlp() } })
}

test('a run trains encoder, projector and language model together; what is loaded answers as what is in memory', async () => {
  const model = await trainedModel()
  const first = model.parameters
  const output = join(root, 'whole')
  const { losses, heldOut, summary } = await run(model, output)
  expect(losses.at(-1)).toBeLessThan(0.8 * (losses[0] ?? 0))
  for (const [name, { data }] of Object.entries(model.parameters)) expect(data, name).not.toEqual(first[name]?.data)
  // The loss of the whole data after the last step is about that before it.
  expect(heldOut).toBeLessThan(losses.at(-1) ?? 0)

  const folder = summary.model ?? ''
  expect((await readdir(folder)).sort()).toEqual(['adapters', 'image-encoder', 'modalign.json', 'projector.safetensors'])
  expect((await readdir(join(folder, 'image-encoder'))).sort()).toEqual(['lora', 'unfrozen.safetensors'])
  expect(JSON.parse(await readFile(join(folder, 'image-encoder', 'lora', 'adapter_config.json'), 'utf8'))).toMatchObject({
    peft_type: 'LORA',
    task_type: null,
    r: 2,
    lora_alpha: 4,
  })
  const pictures = Object.keys(colours).map((name) => `${name}.png`)
  const ask = { root: join(root, 'data'), prompt: 'What colour is this?', maxNewTokens: 8 }
  const answers = await model.caption(pictures, ask)
  const loaded = await loadModel(folder, { projectors, encoders: encoderCatalogue(place) }, { ...place, llm })
  expect(loaded.parameters).toEqual(model.parameters)
  expect(await loaded.caption(pictures, ask)).toEqual(answers)
  expect(loaded.branches.image?.encoder.fingerprint).toBe(model.branches.image?.encoder.fingerprint)
  // Its encoder gives other features than the published one.
  const [published] = await Promise.all([clip({ ...place, model: folderOf('vision/clip') })])
  onTestFinished(() => published.dispose())
  const given = await published.preprocess({ width: 16, height: 16, data: new Uint8Array(768).fill(90) })
  expect((await loaded.branches.image?.encoder.encode([given]))?.data).not.toEqual((await published.encode([given])).data)

  const copy = join(root, 'copy')
  await cp(folder, copy, { recursive: true })
  const manifest = await readFile(join(copy, 'modalign.json'), 'utf8')
  // As near as the folder that was copied.
  await writeFile(join(copy, 'modalign.json'), manifest.replaceAll('"../../', '"../').replace(/(.*)"rank": 2/s, '$1"rank": 3'))
  await expect(loadModel(copy, { projectors, encoders: encoderCatalogue(place) }, { ...place, llm })).rejects.toMatchObject({
    code: 'ADAPTER_PARAMETERS',
    details: { file: join(copy, 'image-encoder') },
  })

  if (long) {
    // Interrupted and resumed, it ends the same.
    const resumed = await trainedModel()
    const halves = join(root, 'halves')
    expect((await run(resumed, halves, { stopAfter: 2 })).summary.model).toBeUndefined()
    expect((await run(resumed, halves, { resume: true })).losses).toEqual(losses.slice(2))
    expect(resumed.parameters).toEqual(model.parameters)
    await resumed.dispose()
    await resumed.llm.dispose()
  }
  await Promise.all([model.dispose(), loaded.dispose()])
  await Promise.all([model.llm.dispose(), loaded.llm.dispose()])
})

skipWithout(long ? undefined : longOnly).test(
  'sounds whose windows have lengths of their own: batches are cut by them, a sample with several is left out',
  async () => {
    const encoder = await adapted(await wav2vec2({ ...place, model: folderOf('audio/families/wav2vec2-group') }))
    const whole = await adapt(llm, { lora: { rank: 2, dropout: 0.1 } })
    const model = await compose({ llm: whole, audio: { encoder, projector: stackedMlp({ stack: 3 }) } })
    const wav = (seconds: number): Uint8Array => {
      const count = 16_000 * seconds
      const bytes = Buffer.alloc(44 + 2 * count)
      bytes.write('RIFF', 0)
      bytes.writeUInt32LE(36 + 2 * count, 4)
      bytes.write('WAVEfmt ', 8)
      for (const [at, value] of [16, 0x1_0001, 16_000, 32_000, 0x10_0002].entries()) bytes.writeUInt32LE(value, 16 + 4 * at)
      bytes.write('data', 36)
      bytes.writeUInt32LE(2 * count, 40)
      for (let at = 0; at < count; at++) bytes.writeInt16LE(Math.round(9_000 * Math.sin(at / (7 + 30 * seconds))), 44 + 2 * at)
      return bytes
    }
    const [short, long] = [wav(0.2), wav(0.45)]
    const sampleOf = (sources: readonly Uint8Array[], answer: string): Sample => ({
      id: answer,
      turns: [
        { role: 'user', content: [...sources.map((source) => ({ type: 'audio' as const, source })), { type: 'text', text: '\nWhat?' }] },
        { role: 'assistant', content: [{ type: 'text', text: answer }] },
      ],
    })
    const samples = [
      sampleOf([short], 'It is red.'),
      sampleOf([long], 'It is blue.'),
      sampleOf([short, short], 'It is white.'),
      sampleOf([short, long], 'No.'),
    ]
    const data: DatasetSource = {
      name: 'sounds',
      async *samples() {
        yield* samples
      },
    }
    const bad: string[] = []
    const rows: number[] = []
    const options = { epochs: 8, batchSize: 4, learningRate: 1e-2, schedule: 'constant', warmupRatio: 0, ...place } as const
    const onBadRecord = (error: ModalignError): void => void bad.push(error.details.code)
    for await (const { loss, supervisedTokens } of tune(model, data, {
      ...options,
      output: join(root, 'sounds'),
      onBad: 'skip',
      onBadRecord,
      evaluation: data,
    })) {
      rows.push(loss)
      expect(supervisedTokens).toBeGreaterThan(10)
    }
    // Once in training, once among the held-out.
    expect(bad).toEqual(['BATCH_UNITS', 'BATCH_UNITS'])
    expect(rows.at(-1)).toBeLessThan(0.8 * (rows[0] ?? 0))
    expect(await model.caption([short, long], { modality: 'audio', prompt: 'What?', maxNewTokens: 3 })).toHaveLength(2)
    await model.dispose()
    await whole.dispose()
  },
)

skipWithout(long ? undefined : longOnly).test(
  'projectors that begin with statistics of the data have those of the encoder as it begins',
  async () => {
    const base = await clip({ ...place, model: folderOf('vision/clip') })
    const encoder = await adaptEncoder(base, { trainable: { lora: {} } })
    const model = await compose({ llm, image: { encoder, projector: pooledMlp() } })
    onTestFinished(() => model.dispose())
    await run(model, join(root, 'statistics'), { epochs: 1 })
    const mean = model.parameters['image.features.mean']?.data ?? new Float32Array(0)
    expect(mean.some((value) => value !== 0)).toBe(true)
  },
)

describe('refused', () => {
  test('encoders without layers of their own, and those made of others', async () => {
    const file = await openEncoder(join(root, 'encoder.onnx'))
    onTestFinished(() => file.dispose())
    await expect(adaptEncoder(file, { trainable: true })).rejects.toMatchObject({ code: 'ENCODER_NOT_TRAINABLE' })
    const inner = await clip({ ...place, model: folderOf('vision/clip') })
    onTestFinished(() => inner.dispose())
    const tiles = tiled(inner, { tiling: { kind: 'dynamic', minTiles: 1, maxTiles: 4 } })
    await expect(adaptEncoder(tiles, { trainable: true })).rejects.toMatchObject({ code: 'ENCODER_NOT_TRAINABLE' })
    const onnx = await clip({ ...place, model: folderOf('vision/onnx-community/clip') })
    onTestFinished(() => onnx.dispose())
    await expect(adaptEncoder(onnx, { trainable: { lora: {} } })).rejects.toMatchObject({ code: 'ENCODER_NOT_TRAINABLE' })
  })

  test('settings that train nothing or choose nothing, dropout, and training twice', async () => {
    const encoder = await clip({ ...place, model: folderOf('vision/clip') })
    onTestFinished(() => encoder.dispose())
    const refused = (trainable: Parameters<typeof adaptEncoder>[1]['trainable']) => expect(adaptEncoder(encoder, { trainable })).rejects
    await refused({}).toMatchObject({ code: 'ADAPTER_OPTIONS' })
    await refused({ lora: { targets: ['o_proj'] } }).toMatchObject({ code: 'ADAPTER_TARGET' })
    await refused({ unfreeze: ['nothing.**'] }).toMatchObject({ code: 'ADAPTER_TARGET' })
    await refused(JSON.parse('{"lora":{"dropout":0.1}}')).toMatchObject({
      code: 'ADAPTER_OPTIONS',
      details: { field: '/trainable/lora/dropout' },
    })
    const once = await adaptEncoder(encoder, { trainable: { lora: {} } })
    await expect(adaptEncoder(once, { trainable: { lora: {} } })).rejects.toMatchObject({ code: 'ADAPTER_TWICE' })
    // Through an encoder that is made of others nothing is trained: that is said rather than done.
    expect(() => frames(once)).toThrow(expect.objectContaining({ code: 'ENCODER_NOT_TRAINABLE' }))
    expect(() => concat([once, encoder])).toThrow(expect.objectContaining({ code: 'ENCODER_NOT_TRAINABLE' }))
    const tiling = { kind: 'dynamic', minTiles: 1, maxTiles: 4 } as const
    expect(() => tiled({ ...encoder, ...once }, { tiling })).toThrow(expect.objectContaining({ code: 'ENCODER_NOT_TRAINABLE' }))
  })

  test('a feature store: features change from step to step', async () => {
    await using store = await openFeatureStore(join(root, 'store'))
    const model = await trainedModel()
    onTestFinished(() => model.dispose())
    expect(() => new FeatureMemory(model, { store })).toThrow(expect.objectContaining({ code: 'FEATURES_NOT_FROZEN' }))
    await model.llm.dispose()
  })
})
