/** Every family of language models against Transformers, on small random checkpoints: logits, greedy tokens, gradients. Fixture: test/fixtures/llm-families/make.py. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { linearCrossEntropy } from '../src/graph/composites/cross-entropy.ts'
import { size } from '../src/graph/dim.ts'
import { gradients } from '../src/graph/gradients.ts'
import { gatherNd } from '../src/graph/operators/gather-nd.ts'
import { input, type Tensor } from '../src/graph/tensor.ts'
import { checkpointWeights } from '../src/llm/checkpoint-weights.ts'
import { type Decoder, logitsOf, type WeightLookup } from '../src/llm/decoder.ts'
import { buildDecoder, families } from '../src/llm/families/index.ts'
import { Answer } from '../src/llm/generation/answer.ts'
import { generateTokens } from '../src/llm/generation/generate-tokens.ts'
import { cacheAbilities, generationGraph } from '../src/llm/generation/graph.ts'
import { GenerationLoop } from '../src/llm/generation/loop.ts'
import { relativeBucket } from '../src/llm/relative-bias.ts'
import { sourceContext, sourceFeeds } from '../src/llm/source-tokens.ts'
import { type LoweredModel, lower } from '../src/onnx/lower.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import type { Session } from '../src/runtime/session.ts'
import { int64Tensor, type NamedTensors, type TensorValue } from '../src/tensors.ts'
import { type BatchItem, collate } from '../src/training/batch.ts'
import { stepGraph } from '../src/training/step-graph.ts'
import { openCheckpoint } from '../src/weights/checkpoint.ts'
import { openSafetensors } from '../src/weights/safetensors.ts'

interface Sequence {
  readonly labels: readonly number[]
  readonly weights: readonly number[]
  readonly source: number
  readonly loss: number
}
interface Case {
  readonly name: string
  readonly checkpoint: string
  readonly encoder: boolean
  readonly prompts: readonly (readonly number[])[]
  readonly answers: readonly (readonly number[])[]
  readonly sequences: readonly Sequence[]
}
interface Buckets {
  readonly bidirectional: boolean
  readonly buckets: number
  readonly distance: number
  readonly first: number
  readonly values: readonly number[]
}

const folder = fileURLToPath(new URL('./fixtures/llm-families/', import.meta.url))
const read = (name: string): string => readFileSync(`${folder}${name}`, 'utf8')
const cases: readonly Case[] = JSON.parse(read('cases.json'))

async function reference(name: string): Promise<Float32Array> {
  const { data, dtype } = await (await openSafetensors(`${folder}cases.safetensors`)).read(name)
  if (dtype !== 'float32') throw new Error(`${name} is ${dtype}`)
  return data
}

const configOf = (name: string): Readonly<Record<string, unknown>> => JSON.parse(read(`${name}/config.json`))
const weightsOf = async (name: string): Promise<WeightLookup> => checkpointWeights(await openCheckpoint(`${folder}${name}`))
const decoderOf = async (name: string): Promise<Decoder> => buildDecoder(configOf(name), await weightsOf(name))

async function open({ bytes, externalRoot }: LoweredModel): Promise<Session> {
  const session = await createLocalSession({ bytes, ...(externalRoot !== undefined && { externalRoot }) }, { device: 'cpu', threads: 1 })
  onTestFinished(() => session.dispose())
  return session
}

interface Batch {
  readonly tokens: number
  readonly ids: TensorValue
  readonly positions: TensorValue
  readonly source: NamedTensors
}

/** Right-padded ids and positions 0, 1, 2, ...; `sources`: how many tokens of each row are the encoder's. */
function padded(sequences: readonly (readonly number[])[], sources: readonly number[]): Batch {
  const tokens = Math.max(...sequences.map(({ length }) => length))
  const dims = [sequences.length, tokens]
  // Padding is a token like any other: nothing that is looked at may see it.
  const ids = sequences.flatMap((own) => [...own, ...new Array<number>(tokens - own.length).fill(95)])
  const positions = ids.map((_, index) => index % tokens)
  return {
    tokens,
    ids: int64Tensor(ids, dims),
    positions: int64Tensor(positions, dims),
    source: Math.min(...sources) > 0 ? sourceFeeds(sources, tokens) : {},
  }
}

function floats(tensor: TensorValue | undefined): Float32Array {
  if (tensor?.dtype !== 'float32') throw new Error('not a float32 output')
  return tensor.data
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length)
  return a.reduce((most, value, index) => Math.max(most, Math.abs(value - (b[index] ?? Number.NaN))), 0)
}

function relativeNorm(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length)
  const norm = (values: Float32Array): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))
  return norm(a.map((value, index) => value - (b[index] ?? Number.NaN))) / norm(b)
}

/** Logits at every place of a batch [batch, tokens, vocabulary]. */
async function logitsAt(decoder: Decoder, batch: Batch): Promise<Float32Array> {
  const shape = [size('batch'), size('tokens')]
  const [ids, positions] = [input('ids', 'int64', shape), input('positions', 'int64', shape)]
  const { hidden } = decoder.decode(decoder.embed(ids), { positions, ...sourceContext(decoder, size('batch')) })
  const session = await open(lower({ outputs: { logits: logitsOf(decoder, hidden) }, inputs: [ids, positions] }))
  return floats((await session.run({ ids: batch.ids, positions: batch.positions, ...batch.source })).logits)
}

interface Generated {
  readonly answers: readonly (readonly number[])[]
  /** The logits of every call, [calls][rows * vocabulary]. */
  readonly logits: readonly Float32Array[]
}

/** 32 greedy tokens after each prompt, as one batch of unequal lengths. */
async function generated(
  decoder: Decoder,
  prompts: readonly (readonly number[])[],
  kind: 'appending' | 'growing' | 'formula',
): Promise<Generated> {
  const lowered = generationGraph(decoder, { fused: kind !== 'formula', appends: kind === 'appending' })
  const session = await open(lowered)
  const { appends } = cacheAbilities(lowered, decoder, session.device)
  const logits: Float32Array[] = []
  const run = async (...given: Parameters<Session['run']>): Promise<NamedTensors> => {
    const outputs = await session.run(...given)
    logits.push(floats(outputs.logits).slice())
    return outputs
  }
  const watched: Session = Object.assign(Object.create(session), { run })
  const answers: number[][] = prompts.map(() => [])
  const requests = prompts.map((ids) => ({ ids }))
  for await (const event of generateTokens({ session: watched, decoder, appends }, requests, {
    maxNewTokens: 32,
    stopTokenIds: [],
    draw: () => 0,
  }))
    if (event.type === 'token') answers[event.row]?.push(event.id)
  return { answers, logits }
}

test('every family has a case', () => {
  const types = new Set(cases.map(({ checkpoint }) => configOf(checkpoint).model_type))
  // The checkpoints of gemma3 with a vision tower: see below.
  expect([...types, 'gemma3'].sort()).toEqual(Object.keys(families).sort())
})

describe.each(cases)('$name', ({ name, checkpoint, encoder, prompts, answers, sequences }) => {
  test('logits at every place of prompts of unequal length', async () => {
    const decoder = await decoderOf(checkpoint)
    const whole = encoder ? prompts.map((prompt, row) => [...prompt, ...(answers[row] ?? []).slice(0, 4)]) : prompts
    const batch = padded(
      whole,
      prompts.map(({ length }) => (encoder ? length : 0)),
    )
    const all = await logitsAt(decoder, batch)
    for (const [row, prompt] of prompts.entries()) {
      const [first, last] = [encoder ? prompt.length - 1 : 0, whole[row]?.length ?? 0]
      const place = (index: number): number => (row * batch.tokens + index) * decoder.vocabularySize
      expect(largestDifference(all.subarray(place(first), place(last)), await reference(`${name}/${row}/logits`))).toBeLessThan(2e-4)
    }
  })

  test('32 greedy tokens after each prompt, as one batch, with fused operators and without', async () => {
    const decoder = await decoderOf(checkpoint)
    const plain = await generated(decoder, prompts, 'formula')
    expect(plain.answers).toEqual(answers)
    // What ONNX Runtime's attention makes of windows, soft caps and angles is the formula's; so is that over a cache which stays where it is.
    for (const kind of ['growing', 'appending'] as const) {
      const fused = await generated(decoder, prompts, kind)
      expect(fused.answers).toEqual(answers)
      expect(fused.logits).toHaveLength(plain.logits.length)
      for (const [call, logits] of fused.logits.entries())
        expect(largestDifference(logits, plain.logits[call] ?? new Float32Array(0))).toBeLessThan(2e-4)
    }
  })

  test("the training step's loss", async () => {
    const decoder = await decoderOf(checkpoint)
    const { model, headChunks } = stepGraph({ decoder, media: [], gradients: false })
    const session = await open(model)
    let expected = 0
    const items: BatchItem[] = []
    for (const [row, prompt] of prompts.entries()) {
      // An encoder's prompt is no target; a decoder's is, but for its first token.
      const ids = encoder ? [...prompt, ...(answers[row] ?? []).slice(0, 4)] : prompt
      const first = encoder ? prompt.length : 1
      const logits = await reference(`${name}/${row}/logits`)
      for (const [index, id] of ids.slice(first).entries()) {
        const scores = logits.subarray(index * decoder.vocabularySize, (index + 1) * decoder.vocabularySize)
        expected += Math.log(scores.reduce((sum, score) => sum + Math.exp(score), 0)) - (scores[id] ?? Number.NaN)
      }
      const weights = Float32Array.from(ids, (_, place) => (place < first ? 0 : 1))
      items.push({ ids: Int32Array.from(ids), weights, targets: ids.length - first, media: [], features: [] })
    }
    const { feeds } = collate(items, { media: [], headChunks, source: encoder })
    const loss = floats((await session.run(feeds)).loss)[0] ?? Number.NaN
    expect(Math.abs(loss - expected) / expected).toBeLessThan(1e-5)
  })

  test('gradient with respect to the input embeddings', async () => {
    const decoder = await decoderOf(checkpoint)
    const [batch, tokens, rows] = [size('batch'), size('tokens'), size('rows')]
    const embeds = input('embeds', 'float32', [batch, tokens, decoder.hiddenSize])
    const positions = input('positions', 'int64', [batch, tokens])
    const supervised = input('supervised', 'int64', [1, rows, 2])
    const [labels, weights] = [input('labels', 'int64', [1, rows]), input('weights', 'float32', [1, rows])]
    const { hidden } = decoder.decode(embeds, { positions, ...sourceContext(decoder, batch) })
    const { sum } = linearCrossEntropy(gatherNd(hidden, supervised), decoder.head, labels, weights, { softcap: decoder.logitSoftcap })
    const [gradient] = gradients(sum, [embeds])
    if (gradient === undefined) throw new Error('no gradient')
    const session = await open(lower({ outputs: { loss: sum, gradient }, inputs: [embeds, positions] }))

    const feeds = padded(
      sequences.map((one) => one.labels),
      sequences.map(({ source }) => source),
    )
    const width = feeds.tokens * decoder.hiddenSize
    const data = new Float32Array(sequences.length * width).fill(3)
    for (const row of sequences.keys()) data.set(await reference(`${name}/${row}/embeds`), row * width)
    const targets = sequences.flatMap((one, row) =>
      one.labels.flatMap((label, place) => {
        const weight = one.weights[place] ?? 0
        return weight === 0 ? [] : [{ row, place: place - 1, label, weight }]
      }),
    )
    const outputs = await session.run({
      embeds: { dtype: 'float32', dims: [sequences.length, feeds.tokens, decoder.hiddenSize], data },
      positions: feeds.positions,
      ...feeds.source,
      supervised: int64Tensor(
        targets.flatMap(({ row, place }) => [row, place]),
        [1, targets.length, 2],
      ),
      labels: int64Tensor(
        targets.map(({ label }) => label),
        [1, targets.length],
      ),
      weights: { dtype: 'float32', dims: [1, targets.length], data: Float32Array.from(targets, ({ weight }) => weight) },
    })
    const total = sequences.reduce((all, { loss }) => all + loss, 0)
    expect(Math.abs((floats(outputs.loss)[0] ?? Number.NaN) - total) / total).toBeLessThan(1e-5)
    for (const [row, { labels: own }] of sequences.entries()) {
      const got = floats(outputs.gradient).subarray(row * width, row * width + own.length * decoder.hiddenSize)
      expect(relativeNorm(got, await reference(`${name}/${row}/gradient`))).toBeLessThan(1e-4)
    }
  })
})

describe('names of published checkpoints', () => {
  /** The same weights under other names. */
  function renamed(lookup: WeightLookup, names: (name: string) => string | undefined): WeightLookup {
    return Object.assign(
      (name: string, shape: readonly number[]): Tensor => {
        const own = names(name)
        if (own === undefined) throw new Error(`no ${name}`)
        return lookup(own, shape)
      },
      {
        has: (name: string) => {
          const own = names(name)
          return own !== undefined && (lookup.has?.(own) ?? false)
        },
      },
    )
  }
  const swap =
    (from: string, to: string) =>
    (name: string): string | undefined =>
      name.startsWith(from) ? to + name.slice(from.length) : undefined

  test.each([
    ['gpt2', 'with its prefix', swap('transformer.', '')],
    ['bloom', 'with its prefix', swap('transformer.', '')],
    ['opt', 'without model.', swap('decoder.', 'model.decoder.')],
    ['gpt-neox-sequential', 'without its prefix', swap('', 'gpt_neox.')],
    ['llama3-rope', 'without its prefix', swap('', 'model.')],
    ['qwen2', 'inside a vision model', swap('language_model.model.', 'model.')],
  ] as const)('%s %s', async (name, _, names) => {
    const lookup = await weightsOf(name)
    const batch = padded([[5, 17, 60]], [0])
    const expected = await logitsAt(buildDecoder(configOf(name), lookup), batch)
    const decoder = buildDecoder(configOf(name), renamed(lookup, names))
    expect(await logitsAt(decoder, batch)).toEqual(expected)
  })

  test.each(['model.language_model.', 'language_model.model.'])('gemma3 with a vision tower: %s', async (prefix) => {
    const lookup = await weightsOf('gemma3')
    const batch = padded([[5, 17, 60, 8, 9, 10, 11]], [0])
    const expected = await logitsAt(buildDecoder(configOf('gemma3'), lookup), batch)
    const config = { model_type: 'gemma3', text_config: configOf('gemma3'), vision_config: {} }
    expect(await logitsAt(buildDecoder(config, renamed(lookup, swap(prefix, 'model.'))), batch)).toEqual(expected)
  })
})

test.each(['llama3-rope', 'phi3-longrope', 'phi3-longrope-long'])('%s: angles of contexts too long for a table', async (name) => {
  const found = cases.find((one) => one.name === name)
  if (found === undefined) throw new Error(`no case ${name}`)
  const config = configOf(found.checkpoint)
  const rope = config.rope_parameters
  // What the reference would derive from the shorter context.
  const scaled = name === 'llama3-rope' ? rope : { ...(typeof rope === 'object' && rope), factor: 128 / 48 }
  const longer = { ...config, max_position_embeddings: 131_072, rope_parameters: scaled }
  const decoder = buildDecoder(longer, await weightsOf(found.checkpoint))
  expect((await generated(decoder, found.prompts, 'appending')).answers).toEqual(found.answers)
  const batch = padded(found.prompts, [0])
  const expected = await logitsAt(await decoderOf(found.checkpoint), batch)
  expect(largestDifference(await logitsAt(decoder, batch), expected)).toBeLessThan(2e-4)
})

test.each(['mistral-window', 'gemma2', 'bloom', 'phi3-longrope-crossing', 't5'])(
  '%s: rows that join a batch as others leave',
  async (name) => {
    const found = cases.find((one) => one.name === name)
    if (found === undefined) throw new Error(`no case ${name}`)
    const decoder = await decoderOf(found.checkpoint)
    const lowered = generationGraph(decoder)
    const loop = new GenerationLoop({ session: await open(lowered), decoder, ...cacheAbilities(lowered, decoder, 'cpu') }, { batchSize: 2 })
    // Answers end at different times: the third prompt joins after the first answer's end, the first one again after the second's.
    const order = [0, 1, 2, 0]
    const lengths = [9, 20, 32, 32]
    const made: number[][] = order.map(() => [])
    const answers = order.map((prompt, row) => {
      const options = { maxNewTokens: lengths[row] ?? 0, stopTokenIds: [] }
      return new Answer({ request: { ids: found.prompts[prompt] ?? [] }, options, row, draw: () => 0 }, decoder.maxPositions)
    })
    for await (const event of loop.answer(answers)) if (event.type === 'token') made[event.row]?.push(event.id)
    await loop.dispose()
    expect(made).toEqual(order.map((prompt, row) => (found.answers[prompt] ?? []).slice(0, lengths[row])))
  },
)

test('every linear layer passes the hook, named as Transformers names it', async () => {
  for (const { checkpoint } of cases) {
    const lookup = await weightsOf(checkpoint)
    const seen = new Map<string, string>()
    const asked: string[] = []
    const decoder = buildDecoder(
      configOf(checkpoint),
      Object.assign(
        (name: string, shape: readonly number[]): Tensor => {
          asked.push(name)
          return lookup(name, shape)
        },
        {
          has: (name: string) => lookup.has?.(name) ?? false,
          linear: (_: Tensor, layer: Parameters<NonNullable<WeightLookup['linear']>>[1], plain: () => Tensor): Tensor => {
            seen.set(layer.weight, layer.module)
            return plain()
          },
        },
      ),
    )
    const ids = input('ids', 'int64', [size('batch'), size('tokens')])
    const positions = input('positions', 'int64', [size('batch'), size('tokens')])
    decoder.decode(decoder.embed(ids), { positions, ...sourceContext(decoder, size('batch')) })
    // What is no linear layer: tables, norms, biases, the output matrix.
    const others = /norm|ln_|bias|embed|wte|wpe|shared|lm_head|embed_out/
    const matrices = new Set(asked.filter((name) => name.endsWith('.weight') && !others.test(name)))
    expect(new Set(seen.keys())).toEqual(matrices)
    for (const [weight, module] of seen) expect(`${module}.weight`.endsWith(weight)).toBe(true)
    expect(seen.size).toBeGreaterThan(0)
  }
})

test("the buckets of relative positions are the reference's", () => {
  const tables: readonly Buckets[] = JSON.parse(read('t5-buckets.json'))
  for (const { bidirectional, buckets, distance, first, values } of tables) {
    const direction = bidirectional ? 'both' : 'past'
    expect(values.map((_, index) => relativeBucket(first + index, { buckets, distance, direction }))).toEqual(values)
  }
})
