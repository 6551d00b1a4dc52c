import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { generationModel, type WatchedModel } from '../../../test/generation-model.ts'
import { Answer } from './answer.ts'
import type { GenerationEvent, GenerationOptions } from './generate-tokens.ts'
import { GenerationLoop } from './loop.ts'

const promptOf = (length: number, seed: number): readonly number[] => Array.from({ length }, (_, index) => (index * 37 + seed * 11) % 96)

describe.each(['appending', 'growing', 'formula'] as const)('a cache %s', (kind) => {
  let model: WatchedModel
  beforeAll(async () => {
    model = await generationModel(kind)
  })
  afterAll(() => model.session.dispose())

  const answerOf = (ids: readonly number[], options: GenerationOptions = {}, row = 0): Answer =>
    new Answer({ request: { ids }, options: { ...options, stopTokenIds: [] }, row, draw: () => 0 }, model.decoder.maxPositions)

  async function collect(events: AsyncIterable<GenerationEvent>): Promise<readonly (readonly number[])[]> {
    const answers: number[][] = []
    for await (const event of events) {
      answers[event.row] ??= []
      if (event.type === 'token') answers[event.row]?.push(event.id)
    }
    return answers
  }

  async function alone(ids: readonly number[], options: GenerationOptions): Promise<readonly number[]> {
    const loop = new GenerationLoop(model, { batchSize: 1 })
    const [answer = []] = await collect(loop.answer([answerOf(ids, options)]))
    await loop.dispose()
    return answer
  }

  test('more requests than rows, of unequal lengths: others take the places of those that end, and each answers as it does alone', async () => {
    const loop = new GenerationLoop(model, { batchSize: 3 })
    const requests = Array.from({ length: 9 }, (_, row) => ({
      ids: promptOf(1 + ((row * 7) % 19), row),
      options: { maxNewTokens: 2 + ((row * 5) % 11) },
    }))
    const { length } = model.runs
    const answers = await collect(loop.answer(requests.map(({ ids, options }, row) => answerOf(ids, options, row))))
    const steps = model.runs.slice(length).filter(([, tokens]) => tokens === 1)
    await loop.dispose()
    for (const [row, { ids, options }] of requests.entries()) expect(answers[row]).toEqual(await alone(ids, options))
    // Nobody waits for the longest of a batch: rows times steps is about what is said.
    const said = requests.reduce((sum, { options }) => sum + options.maxNewTokens, 0)
    expect(Math.max(...steps.map(([rows = 0]) => rows))).toBe(3)
    expect(steps.reduce((sum, [rows = 0]) => sum + rows, 0)).toBeLessThanOrEqual(said)
  })

  test('calls join each other with options of their own; one that is left or aborted disturbs nobody', async () => {
    const loop = new GenerationLoop(model, { batchSize: 8 })
    const controller = new AbortController()
    const first = collect(loop.answer([answerOf(promptOf(5, 1), { maxNewTokens: 20 })]))
    const left = (async () => {
      for await (const event of loop.answer([answerOf(promptOf(9, 2), { maxNewTokens: 30 })])) if (event.type === 'token') break
    })()
    const aborted = (async () => {
      let count = 0
      for await (const _ of loop.answer([answerOf(promptOf(3, 3), { maxNewTokens: 30 })], controller.signal))
        if (++count === 3) controller.abort()
    })()
    const penalised = collect(loop.answer([answerOf(promptOf(4, 4), { maxNewTokens: 12, repetitionPenalty: 50 })]))
    await left
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' })
    const late = collect(loop.answer([answerOf(promptOf(12, 5), { maxNewTokens: 6 })]))
    expect(await first).toEqual([await alone(promptOf(5, 1), { maxNewTokens: 20 })])
    expect(await penalised).toEqual([await alone(promptOf(4, 4), { maxNewTokens: 12, repetitionPenalty: 50 })])
    expect(await late).toEqual([await alone(promptOf(12, 5), { maxNewTokens: 6 })])
    await loop.dispose()
  })

  test('what all prompts begin with is read once, and stays for the next call', async () => {
    const loop = new GenerationLoop(model, { batchSize: 8 })
    const system = promptOf(30, 7)
    const prompts = Array.from({ length: 4 }, (_, row) => [...system, ...promptOf(1 + row, row)])
    const options = { maxNewTokens: 5 }
    const ask = () => collect(loop.answer(prompts.map((ids, row) => answerOf(ids, options, row))))
    const start = model.runs.length
    const answers = await ask()
    const read = model.runs.slice(start).filter(([, tokens = 0]) => tokens > 1)
    expect(read.reduce((sum, [rows = 0, tokens = 0]) => sum + rows * tokens, 0)).toBeLessThan(30 + 4 * 5)
    const again = model.runs.length
    expect(await ask()).toEqual(answers)
    expect(model.runs.slice(again).every(([, tokens = 0]) => tokens <= 4)).toBe(true)
    await loop.dispose()
    for (const [row, ids] of prompts.entries()) expect(answers[row]).toEqual(await alone(ids, options))
  })

  test('a conversation goes on from the cache of its last answer', async () => {
    const loop = new GenerationLoop(model, { batchSize: 8 })
    const question = promptOf(20, 1)
    const options = { maxNewTokens: 6 }
    const [answer = []] = await collect(loop.answer([answerOf(question, options)]))
    const turned = [...question, ...answer, 3, 1, 4]
    const { length } = model.runs
    const [next = []] = await collect(loop.answer([answerOf(turned, options)]))
    // All but the answer's last token, which nobody has read yet, and the new ones.
    expect(model.runs[length]).toEqual([1, 4])
    await loop.dispose()
    expect(next).toEqual(await alone(turned, options))
  })

  test('media are part of what prompts begin with', async () => {
    const loop = new GenerationLoop(model, { batchSize: 4 })
    const { hiddenSize } = model.decoder
    const picture = (seed: number): Float32Array => Float32Array.from({ length: 20 * hiddenSize }, (_, i) => Math.sin(i * seed))
    const request = (seed: number, last: number) => ({ ids: [5, ...new Array<number>(20).fill(-1), last], media: picture(seed) })
    const requests = [request(1, 7), request(1, 8), request(2, 7)]
    const ask = (given: readonly { readonly ids: readonly number[]; readonly media: Float32Array }[], within: GenerationLoop) =>
      collect(
        within.answer(
          given.map(
            (one, row) =>
              new Answer({ request: one, options: { stopTokenIds: [], maxNewTokens: 4 }, row, draw: () => 0 }, model.decoder.maxPositions),
          ),
        ),
      )
    const { length } = model.runs
    const together = [...(await ask(requests.slice(0, 2), loop)), ...(await ask(requests.slice(2), loop))]
    // The second picture is read although its places carry the same ids.
    expect(model.runs.slice(length).filter(([, tokens = 0]) => tokens > 20)).toHaveLength(2)
    await loop.dispose()
    for (const [row, one] of requests.entries()) {
      const fresh = new GenerationLoop(model, { batchSize: 1 })
      expect(together[row]).toEqual((await ask([one], fresh))[0])
      await fresh.dispose()
    }
  })
})

test("log-probabilities are the model's, before penalties", async () => {
  const model = await generationModel()
  try {
    const loop = new GenerationLoop(model, { batchSize: 1 })
    const options = { stopTokenIds: [], maxNewTokens: 4, topLogprobs: 96, repetitionPenalty: 3 }
    const answer = new Answer({ request: { ids: [1, 2, 3] }, options, row: 0, draw: () => 0 }, model.decoder.maxPositions)
    for await (const event of loop.answer([answer])) {
      if (event.type !== 'token') continue
      expect(event.topLogprobs).toHaveLength(96)
      expect(event.topLogprobs?.reduce((sum, { logprob }) => sum + Math.exp(logprob), 0)).toBeCloseTo(1, 5)
      expect(event.topLogprobs?.find(({ id }) => id === event.id)?.logprob).toBe(event.logprob)
      const ranked = event.topLogprobs?.map(({ logprob }) => logprob) ?? []
      expect(ranked).toEqual([...ranked].sort((a, b) => b - a))
    }
    await loop.dispose()
  } finally {
    await model.session.dispose()
  }
})
