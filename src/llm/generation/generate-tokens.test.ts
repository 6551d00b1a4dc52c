import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ModalignError } from '../../errors.ts'
import { randomStream } from '../../random.ts'
import { createLocalSession } from '../../runtime/local.ts'
import type { Session } from '../../runtime/session.ts'
import type { NamedTensors } from '../../tensors.ts'
import { openCheckpoint } from '../../weights/checkpoint.ts'
import { openSafetensors } from '../../weights/safetensors.ts'
import { checkpointWeights } from '../checkpoint-weights.ts'
import type { Decoder } from '../decoder.ts'
import { buildDecoder } from '../families/index.ts'
import { type FinishReason, type GenerationOptions, type GenerationRequest, generateTokens } from './generate-tokens.ts'
import { generationGraph } from './graph.ts'

const folder = fileURLToPath(new URL('../../../test/fixtures/parity/llama/untied-biases-wide-heads/', import.meta.url))
const config: { readonly vocab_size: number; readonly hidden_size: number } = JSON.parse(readFileSync(`${folder}config.json`, 'utf8'))
const vocabulary = config.vocab_size
const width = config.hidden_size

let decoder: Decoder
let embeddings: Float32Array

beforeAll(async () => {
  decoder = buildDecoder(config, checkpointWeights(await openCheckpoint(folder)))
  const value = await (await openSafetensors(`${folder}model.safetensors`)).read('model.embed_tokens.weight')
  if (value.dtype !== 'float32') throw new Error(`embeddings are ${value.dtype}`)
  embeddings = value.data
})

interface Answer {
  readonly ids: number[]
  reason: FinishReason | undefined
}
interface Generated {
  readonly answers: readonly Answer[]
  /** The logits of every call of the session, [calls][rows * vocabulary]. */
  readonly logits: readonly Float32Array[]
}
interface Given extends GenerationOptions {
  readonly signal?: AbortSignal
  readonly keys?: readonly string[]
}

/** A session whose logits are kept. */
function watched(session: Session): { readonly session: Session; readonly logits: Float32Array[] } {
  const logits: Float32Array[] = []
  const run = async (feeds: NamedTensors, options: Parameters<Session['run']>[1]): Promise<NamedTensors> => {
    const outputs = await session.run(feeds, options)
    if (outputs.logits?.dtype === 'float32') logits.push(outputs.logits.data.slice())
    return outputs
  }
  return { session: Object.assign(Object.create(session), { run }), logits }
}

const drawOf =
  (seed: number, keys: readonly string[]) =>
  (row: number, index: number): number =>
    randomStream({ seed, stream: keys[row] ?? `${row}` }).uniform(index)

const prompts: readonly (readonly number[])[] = [[5, 17, 60], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [42], [90, 3, 3, 3, 71, 20]]

describe.each([
  { fused: true, appends: false },
  { fused: true, appends: true },
  { fused: false, appends: false },
])('fused operators: $fused, new places appended: $appends', ({ fused, appends }) => {
  let session: Session
  beforeAll(async () => {
    const { bytes, externalRoot } = generationGraph(decoder, { fused, appends })
    session = await createLocalSession({ bytes, ...(externalRoot !== undefined && { externalRoot }) }, { device: 'cpu', threads: 1 })
  })
  afterAll(() => session.dispose())

  async function generate(
    requests: readonly GenerationRequest[],
    { keys = [], signal, stopTokenIds = [], ...options }: Given,
  ): Promise<Generated> {
    const { session: watching, logits } = watched(session)
    const answers: readonly Answer[] = requests.map(() => ({ ids: [], reason: undefined }))
    const model = { session: watching, decoder, appends, continues: true }
    const all = { ...options, stopTokenIds, draw: drawOf(options.seed ?? 0, keys), ...(signal && { signal }) }
    for await (const event of generateTokens(model, requests, all)) {
      const answer = answers[event.row]
      if (answer === undefined) throw new Error('an event of no row')
      // After its end a row is silent.
      expect(answer.reason).toBeUndefined()
      if (event.type === 'token') answer.ids.push(event.id)
      else answer.reason = event.reason
    }
    return { answers, logits }
  }

  test('a batch of unequal prompts equals each prompt alone', async () => {
    const requests = prompts.map((ids) => ({ ids }))
    const options = { maxNewTokens: 12 }
    const together = await generate(requests, options)
    for (const [row, request] of requests.entries()) {
      const alone = await generate([request], options)
      const [answer] = alone.answers
      for (const [call, own] of alone.logits.entries()) {
        const shared = together.logits[call]?.subarray(row * vocabulary, (row + 1) * vocabulary) ?? new Float32Array(0)
        expect(largestDifference(own, shared)).toBeLessThan(1e-4)
        const [best = 0, second = 0] = Float32Array.from(own).sort().reverse()
        // Where two tokens are as good as equal, batching may decide between them: from there the answers are different ones.
        if (best - second <= 1e-3) break
        expect(together.answers[row]?.ids[call]).toBe(answer?.ids[call])
      }
    }
    expect(together.answers.map(({ reason }) => reason)).toEqual(prompts.map(() => 'length'))
  })

  test('the order of a batch, and who else is in it, decide nothing about a sampled answer', async () => {
    const options = { maxNewTokens: 10, temperature: 1.2, topK: 20, seed: 3 }
    const keys = ['a', 'b', 'c', 'd']
    const one = await generate(
      prompts.map((ids) => ({ ids })),
      { ...options, keys },
    )
    const order = [2, 0, 3, 1]
    const other = await generate(
      order.map((index) => ({ ids: prompts[index] ?? [] })),
      { ...options, keys: order.map((index) => keys[index] ?? '') },
    )
    for (const [place, index] of order.entries()) expect(other.answers[place]).toEqual(one.answers[index])
    const alone = await generate([{ ids: prompts[3] ?? [] }], { ...options, keys: ['d'] })
    expect(alone.answers[0]).toEqual(one.answers[3])
    const otherSeed = await generate(
      prompts.map((ids) => ({ ids })),
      { ...options, keys, seed: 4 },
    )
    expect(otherSeed.answers).not.toEqual(one.answers)
  })

  test('embedding rows given as media are as good as the tokens', async () => {
    const placed = (ids: readonly number[], places: readonly number[]): GenerationRequest => ({
      ids: ids.map((id, index) => (places.includes(index) ? -1 - places.indexOf(index) : id)),
      media: Float32Array.from(
        places.flatMap((place) => Array.from(embeddings.subarray((ids[place] ?? 0) * width, ((ids[place] ?? 0) + 1) * width))),
      ),
    })
    // At the start, at the end, in the middle, everywhere, and a row without any.
    const places = [[0], [3, 4, 10], [0], []]
    const options = { maxNewTokens: 6 }
    const asTokens = await generate(
      prompts.map((ids) => ({ ids })),
      options,
    )
    const asMedia = await generate(
      prompts.map((ids, row) => placed(ids, places[row] ?? [])),
      options,
    )
    expect(asMedia.answers).toEqual(asTokens.answers)
    for (const [call, logits] of asMedia.logits.entries())
      expect(largestDifference(logits, asTokens.logits[call] ?? new Float32Array(0))).toBeLessThan(1e-5)
    // The places differ from each other: media in another order give other logits.
    const [, second] = prompts
    const swapped = placed(second ?? [], [3, 4])
    const turned = {
      ids: swapped.ids,
      media: Float32Array.from([...(swapped.media?.slice(width) ?? []), ...(swapped.media?.slice(0, width) ?? [])]),
    }
    const [right, wrong] = [await generate([swapped], options), await generate([turned], options)]
    expect(largestDifference(right.logits[0] ?? new Float32Array(0), wrong.logits[0] ?? new Float32Array(0))).toBeGreaterThan(1e-2)
  })

  test('a row ends at its stop token, which is not part of the answer; the others go on', async () => {
    const requests = prompts.map((ids) => ({ ids }))
    const free = await generate(requests, { maxNewTokens: 8 })
    const stop = free.answers[0]?.ids[3] ?? 0
    const stopped = await generate(requests, { maxNewTokens: 8, stopTokenIds: [stop] })
    for (const [row, { ids }] of free.answers.entries()) {
      const at = ids.indexOf(stop)
      expect(stopped.answers[row]).toEqual(at < 0 ? { ids, reason: 'length' } : { ids: ids.slice(0, at), reason: 'stop' })
    }
    expect(stopped.answers[0]?.reason).toBe('stop')
    expect(stopped.answers.some(({ reason }) => reason === 'length')).toBe(true)
  })

  test('maxNewTokens', async () => {
    const requests = prompts.map((ids) => ({ ids }))
    const longer = await generate(requests, { maxNewTokens: 5 })
    const { answers, logits } = await generate(requests, { maxNewTokens: 1 })
    expect(answers).toEqual(longer.answers.map(({ ids }) => ({ ids: ids.slice(0, 1), reason: 'length' })))
    expect(logits).toHaveLength(1)
  })

  test("a row ends where the model's positions end; shorter ones go on", async () => {
    const long = Array.from({ length: decoder.maxPositions - 2 }, (_, index) => (7 * index) % vocabulary)
    const { answers } = await generate([{ ids: long }, { ids: [4, 5] }], { maxNewTokens: 8 })
    expect(answers[0]).toMatchObject({ reason: 'context' })
    expect(answers[0]?.ids).toHaveLength(2)
    expect(answers[1]).toMatchObject({ reason: 'length' })
    const alone = await generate([{ ids: [4, 5] }], { maxNewTokens: 8 })
    expect(answers[1]).toEqual(alone.answers[0])
    // To the last position: prompt and answer fill it.
    const filled = await generate([{ ids: [4, 5] }], { maxNewTokens: 1000 })
    expect(filled.answers[0]?.reason).toBe('context')
    expect(filled.answers[0]?.ids).toHaveLength(decoder.maxPositions - 2)
  })

  test('an abort ends it between tokens; the session serves the next batch', async () => {
    const controller = new AbortController()
    const reason = new Error('enough')
    const received: number[] = []
    const requests = prompts.map((ids) => ({ ids }))
    const events = generateTokens({ session, decoder, appends, continues: true }, requests, {
      maxNewTokens: 50,
      stopTokenIds: [],
      draw: () => 0,
      signal: controller.signal,
    })
    const consume = async (): Promise<void> => {
      for await (const event of events) {
        if (event.type === 'token') received.push(event.id)
        if (received.length === 6) controller.abort(reason)
      }
    }
    await expect(consume()).rejects.toMatchObject({ name: 'AbortError' })
    // The tokens of the call under way still come.
    expect(received).toHaveLength(8)
    const before = AbortSignal.abort()
    await expect(generate(requests, { maxNewTokens: 1, signal: before })).rejects.toMatchObject({ name: 'AbortError' })
    const { answers } = await generate([{ ids: prompts[0] ?? [] }], { maxNewTokens: 3 })
    expect(answers[0]?.ids).toEqual((await generate([{ ids: prompts[0] ?? [] }], { maxNewTokens: 5 })).answers[0]?.ids.slice(0, 3))
  })

  test('the repetition penalty sees the prompt and the answer so far', async () => {
    const [answer] = (await generate([{ ids: [5, 17, 60] }], { maxNewTokens: 20, repetitionPenalty: 100 })).answers
    expect(new Set([5, 17, 60, ...(answer?.ids ?? [])]).size).toBe(23)
    const [free] = (await generate([{ ids: [5, 17, 60] }], { maxNewTokens: 20 })).answers
    expect(new Set(free?.ids).size).toBeLessThan(20)
  })

  test.each<[string, GenerationRequest, string]>([
    ['no token', { ids: [] }, 'GENERATION_EMPTY'],
    ['as many tokens as positions', { ids: new Array<number>(64).fill(1) }, 'GENERATION_TOO_LONG'],
    ['places without media', { ids: [1, -1, 2] }, 'GENERATION_MEDIA'],
    ['media without places', { ids: [1, 2], media: new Float32Array(32) }, 'GENERATION_MEDIA'],
    ['half a medium', { ids: [1, -1], media: new Float32Array(16) }, 'GENERATION_MEDIA'],
    ['media that are NaN', { ids: [1, -1], media: new Float32Array(32).fill(Number.NaN) }, 'GENERATION_NOT_FINITE'],
  ])('refuses a prompt with %s', async (_, request, code) => {
    const error = await generate([{ ids: [1] }, request], { maxNewTokens: 2 }).catch((thrown: unknown) => thrown)
    expect(error).toBeInstanceOf(ModalignError)
    expect(error).toMatchObject({ code })
  })
})

function largestDifference(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length)
  return a.reduce((most, value, index) => Math.max(most, Math.abs(value - (b[index] ?? Number.NaN))), 0)
}
