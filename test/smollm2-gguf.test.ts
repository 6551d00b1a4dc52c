/** The real SmolLM2-135M-Instruct from its Q4_1 GGUF file, beside Transformers on the same weights dequantised. */
import { readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { z } from 'zod'
import { linearCrossEntropy } from '../src/graph/composites/cross-entropy.ts'
import { size } from '../src/graph/dim.ts'
import { gradients } from '../src/graph/gradients.ts'
import { argMax } from '../src/graph/operators/arg-max.ts'
import { gather } from '../src/graph/operators/gather.ts'
import { slice } from '../src/graph/operators/slice.ts'
import { input, integers } from '../src/graph/tensor.ts'
import { logitsOf } from '../src/llm/decoder.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import type { WeightForm } from '../src/llm/sources/index.ts'
import { lower } from '../src/onnx/lower.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { float32Tensor, int64Tensor, type TensorValue } from '../src/tensors.ts'
import { longOnly, skipWithout, testDataMissing } from './skip.ts'

const data = process.env.MODALIGN_TEST_DATA ?? ''
const missing = data === '' ? testDataMissing : process.env.MODALIGN_LONG === '1' ? undefined : longOnly
const float32s = z.string().transform((text) => new Float32Array(new Uint8Array(Buffer.from(text, 'base64')).buffer))
const schema = z.object({
  ids: z.array(z.int()),
  places: z.array(z.int()),
  logits: z.array(float32s),
  top: z.array(z.int()),
  loss: z.number(),
  prompt: z.array(z.int()),
  greedy: z.array(z.int()),
  margins: z.array(z.number()),
  gradient: z.object({ norm: z.number(), every: z.int(), rows: float32s }),
  alpaca: z.object({ perToken: z.number(), tokens: z.int(), losses: z.array(z.number()) }),
})
const fixture = new URL('fixtures/smollm2/', import.meta.url)
const records = z.array(z.object({ instruction: z.string(), input: z.string(), output: z.string() }))

skipWithout(missing).describe('SmolLM2-135M-Instruct, Q4_1', () => {
  const expected = schema.parse(JSON.parse(readFileSync(new URL('expected.json', fixture), 'utf8')))
  const models = new Map<WeightForm, LanguageModel>()
  let cacheFolder: string

  beforeAll(async () => {
    cacheFolder = await mkdtemp(join(tmpdir(), 'modalign-smollm2-'))
    for (const weights of ['float32', 'quantised'] as const) {
      const path = join(data, 'smollm2_135m_instruct', 'SmolLM2-135M-Instruct.Q4_1.gguf')
      models.set(weights, await loadLanguageModel(path, { device: 'cpu', weights, cacheFolder }))
    }
  }, 600_000)
  afterAll(async () => {
    for (const model of models.values()) await model.dispose()
    await rm(cacheFolder, { recursive: true })
  })

  function model(form: WeightForm): LanguageModel {
    const found = models.get(form)
    if (found === undefined) throw new Error('it was loaded')
    return found
  }

  /** Of one sequence: all logits, the likeliest token at every place, the summed loss of the last `supervised` tokens and its gradient with respect to the embeddings. */
  async function look(
    form: WeightForm,
    sequences: readonly { readonly ids: readonly number[]; readonly supervised: number }[],
    wantGradient = false,
  ) {
    const { decoder } = model(form)
    const tokens = size('tokens')
    const [ids, positions] = [input('ids', 'int64', [1, tokens]), input('positions', 'int64', [1, tokens])]
    const embeddings = input('embeddings', 'float32', [1, tokens, decoder.hiddenSize])
    const labels = input('labels', 'int64', [1, tokens])
    const weights = input('weights', 'float32', [1, tokens])
    const { hidden } = decoder.decode(embeddings, { positions })
    const { sum } = linearCrossEntropy(hidden, decoder.head, labels, weights)
    const logits = logitsOf(decoder, hidden)
    const some = slice(gather(logits, integers(expected.places), 1), [{ axis: 2, start: 0, end: decoder.vocabularySize, step: 16 }])
    const [gradient] = wantGradient ? gradients(sum, [embeddings]) : []
    const embedding = lower({ outputs: { embeddings: decoder.embed(ids) } })
    const graph = lower({
      outputs: { sum, top: argMax(logits, -1), ...(wantGradient && { some }), ...(gradient !== undefined && { gradient }) },
    })
    const open = ({ bytes, externalRoot }: typeof graph) =>
      createLocalSession({ bytes, ...(externalRoot !== undefined && { externalRoot }) }, { device: 'cpu', memoryPattern: false })
    const [table, session] = [await open(embedding), await open(graph)]
    const results: Readonly<Record<string, TensorValue>>[] = []
    try {
      for (const { ids: own, supervised } of sequences) {
        const dims = [1, own.length]
        const looked = await table.run({ ids: int64Tensor(own, dims) })
        if (looked.embeddings === undefined) throw new Error('embeddings were to come')
        results.push(
          await session.run({
            embeddings: looked.embeddings,
            positions: int64Tensor(
              own.map((_, index) => index),
              dims,
            ),
            labels: int64Tensor([...own.slice(1), 0], dims),
            weights: float32Tensor(
              Float32Array.from(own, (_, index) => (index >= own.length - 1 - supervised && index < own.length - 1 ? 1 : 0)),
              dims,
            ),
          }),
        )
      }
    } finally {
      await Promise.all([table.dispose(), session.dispose()])
    }
    return results
  }

  function numbers(tensor: TensorValue | undefined): readonly number[] {
    if (tensor === undefined) throw new Error('a tensor was to come')
    return Array.from(tensor.data, Number)
  }

  test('the tokenizer and the template are those of the file', () => {
    const { tokenizer, template } = model('float32')
    expect(tokenizer.encode(readFileSync(new URL('text.txt', fixture), 'utf8'))).toEqual(expected.ids)
    const prompt = template.render([{ role: 'user', content: 'Explain why the sky is blue.' }], { addGenerationPrompt: true })
    expect(tokenizer.encode(prompt)).toEqual(expected.prompt)
  })

  test('dequantised: logits within 2e-3, the gradient at cosine > 0.9999', async () => {
    const [result] = await look('float32', [{ ids: expected.ids, supervised: expected.ids.length - 1 }], true)
    const some = numbers(result?.some)
    const wanted = expected.logits.flatMap((values) => [...values])
    expect(some).toHaveLength(wanted.length)
    expect(Math.max(...some.map((value, index) => Math.abs(value - (wanted[index] ?? Number.NaN))))).toBeLessThan(2e-3)
    expect(numbers(result?.top)).toEqual(expected.top)
    expect((numbers(result?.sum)[0] ?? Number.NaN) / (expected.ids.length - 1)).toBeCloseTo(expected.loss, 4)
    const width = model('float32').decoder.hiddenSize
    const gradient = numbers(result?.gradient).filter((_, index) => Math.floor(index / width) % expected.gradient.every === 0)
    expect(cosine(gradient, [...expected.gradient.rows])).toBeGreaterThan(0.9999)
    expect(Math.hypot(...numbers(result?.gradient)) / expected.gradient.norm).toBeCloseTo(1, 3)
  }, 600_000)

  test('dequantised: 64 greedy tokens equal', async () => {
    // Nowhere are the two best so near each other that rounding could decide.
    expect(Math.min(...expected.margins)).toBeGreaterThan(1e-3)
    const said: number[] = []
    for await (const event of model('float32').generate([{ ids: expected.prompt }], { temperature: 0, maxNewTokens: 64 }))
      if (event.type === 'token') said.push(event.id)
    expect(said).toEqual(expected.greedy)
  }, 600_000)

  test('quantised, one answer at a time: as near to the dequantised model as the graph for many', async () => {
    const path = join(data, 'smollm2_135m_instruct', 'SmolLM2-135M-Instruct.Q4_1.gguf')
    await using single = await loadLanguageModel(path, { device: 'cpu', weights: 'quantised', cacheFolder, batchSize: 1 })
    const prompts = [expected.prompt, expected.ids.slice(0, 20), expected.ids.slice(20, 60), expected.ids.slice(60, 90)]
    const said = async (
      llm: LanguageModel,
      ids: readonly number[],
    ): Promise<readonly { readonly id: number; readonly logprob: number }[]> => {
      const found: { readonly id: number; readonly logprob: number }[] = []
      const options = { temperature: 0, maxNewTokens: 40, stopTokenIds: [], logprobs: true }
      for await (const event of llm.generate([{ ids }], options))
        if (event.type === 'token') found.push({ id: event.id, logprob: event.logprob ?? Number.NaN })
      return found
    }
    /** Of log-probabilities, up to the first token that is another one: activations of 8 bits make each rounding a little noise. */
    const distance = async (llm: LanguageModel): Promise<number> => {
      const squares: number[] = []
      for (const ids of prompts) {
        const [exact, found] = [await said(model('float32'), ids), await said(llm, ids)]
        const other = exact.findIndex(({ id }, index) => id !== found[index]?.id)
        for (const [index, { logprob }] of exact.slice(0, other < 0 ? exact.length : other).entries())
          squares.push((logprob - (found[index]?.logprob ?? Number.NaN)) ** 2)
      }
      expect(squares.length).toBeGreaterThan(50)
      return Math.sqrt(squares.reduce((sum, one) => sum + one, 0) / squares.length)
    }
    const [one, many] = [await distance(single), await distance(model('quantised'))]
    expect(many).toBeLessThan(0.1)
    expect(one).toBeLessThan(1.3 * many)
  })

  test('over the outputs of 24 Alpaca records: the loss that Transformers has; quantised within 0.5 %, with the same token at 97 % of the places', async () => {
    const { tokenizer, template } = model('float32')
    const sequences = records
      .parse(JSON.parse(readFileSync(join(data, 'records', 'alpaca_en_demo.json'), 'utf8')))
      .slice(0, 24)
      .flatMap(({ instruction, input: more, output }) => {
        const asked = { role: 'user' as const, content: more === '' ? instruction : `${instruction}\n${more}` }
        const start = tokenizer.encode(template.render([asked], { addGenerationPrompt: true }))
        const ids = tokenizer.encode(template.render([asked, { role: 'assistant', content: output }])).slice(0, 256)
        return ids.length <= start.length ? [] : [{ ids, supervised: ids.length - start.length }]
      })
    const tokens = sequences.reduce((sum, { supervised }) => sum + supervised, 0)
    expect(tokens).toBe(expected.alpaca.tokens)
    const [exact, quantised] = [await look('float32', sequences), await look('quantised', sequences)]
    const loss = (results: typeof exact): number =>
      results.reduce((sum, result) => sum + (numbers(result.sum)[0] ?? Number.NaN), 0) / tokens
    const each = exact.map((result, index) => (numbers(result.sum)[0] ?? Number.NaN) / (sequences[index]?.supervised ?? 0))
    expect(each).toHaveLength(expected.alpaca.losses.length)
    expect(Math.max(...each.map((value, index) => Math.abs(value - (expected.alpaca.losses[index] ?? Number.NaN))))).toBeLessThan(1e-3)
    expect(Math.abs(loss(exact) - expected.alpaca.perToken)).toBeLessThan(1e-4)
    expect(Math.abs(loss(quantised) / loss(exact) - 1)).toBeLessThan(0.005)
    const same = exact.flatMap((result, index) => {
      const [one, other] = [numbers(result.top), numbers(quantised[index]?.top)]
      const from = one.length - 1 - (sequences[index]?.supervised ?? 0)
      return one.slice(from, -1).map((token, place) => token === other[from + place])
    })
    expect(same.filter(Boolean).length / same.length).toBeGreaterThanOrEqual(0.97)
  }, 1_200_000)
})

function cosine(a: readonly number[], b: readonly number[]): number {
  expect(a).toHaveLength(b.length)
  return a.reduce((sum, value, index) => sum + value * (b[index] ?? Number.NaN), 0) / (Math.hypot(...a) * Math.hypot(...b))
}
