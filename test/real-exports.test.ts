/** The real SmolLM2-135M-Instruct as ONNX exports, beside Transformers with the same weights and ONNX Runtime on each file. Made by test/fixtures/exports/real.py. */
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { z } from 'zod'
import { linearCrossEntropy } from '../src/graph/composites/cross-entropy.ts'
import { size } from '../src/graph/dim.ts'
import { gradients } from '../src/graph/gradients.ts'
import { input } from '../src/graph/tensor.ts'
import { logitsOf } from '../src/llm/decoder.ts'
import { fuseGeneration } from '../src/llm/generation/fusion.ts'
import { generationGraph } from '../src/llm/generation/graph.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import { type LoweredModel, lower } from '../src/onnx/lower.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { withoutUndefined } from '../src/runtime/session.ts'
import { float32Tensor, int64Tensor, type NamedTensors, type TensorValue } from '../src/tensors.ts'
import { openSafetensors } from '../src/weights/safetensors.ts'
import { skipWithout } from './skip.ts'

const folder = process.env.MODALIGN_TEST_EXPORTS ?? ''
const missing = folder === '' ? 'MODALIGN_TEST_EXPORTS does not name the folder that test/fixtures/exports/real.py filled' : undefined
const schema = z.object({
  ids: z.array(z.int()),
  prompt: z.array(z.int()),
  answer: z.array(z.int()),
  margins: z.array(z.number()),
  loss: z.number(),
  files: z.array(z.string()),
})

interface Bounds {
  /** Largest difference of a logit, and of what: Transformers with the original weights, or ONNX Runtime running the file. */
  readonly logits: number
  /** Smallest share of places with the same likeliest token as ONNX Runtime's. */
  readonly top: number
  /** Smallest cosine of the gradient with the one of the original weights. */
  readonly cosine: number
  /** How many of the 32 greedy tokens are those of the original weights. */
  readonly greedy: number
  /** Operators that generation must keep, and how many of them at least. */
  readonly fused: Readonly<Record<string, number>>
}
const floating: Bounds = {
  logits: 2e-3,
  top: 1,
  cosine: 0.9999,
  greedy: 32,
  fused: { GroupQueryAttention: 30, SkipSimplifiedLayerNormalization: 59 },
}
const half: Bounds = { ...floating, logits: 0.5, top: 0.97, cosine: 0.999 }
const fused = { ...floating.fused, MatMulNBits: 100 }
/** Some of the files round activations to 8 bits where they meet blocks, which is not repeated here. */
const blocks: Bounds = { logits: 2, top: 0.9, cosine: 0.7, greedy: 0, fused }
/** The file rounds whole activations to 8 bits and is far from the original; the same weights without that rounding are near it. */
const whole: Bounds = { logits: 30, top: 0.5, cosine: 0.95, greedy: 0, fused }

const boundsOf = (file: string): Bounds =>
  file.includes('quantized') ? whole : /q4|q8|int4/.test(file) ? blocks : file.includes('fp16') ? half : floating

async function run({ bytes, externalRoot, externalData }: LoweredModel, feeds: NamedTensors): Promise<NamedTensors> {
  await using session = await createLocalSession(withoutUndefined({ bytes, externalRoot, externalData }), {
    device: 'cpu',
    memoryPattern: false,
  })
  return await session.run(feeds)
}

function floats(value: TensorValue | undefined): Float32Array {
  if (value?.dtype !== 'float32') throw new Error('not a float32 tensor')
  return value.data
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length)
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - (b[i] ?? Number.NaN))), 0)
}

function cosine(a: Float32Array, b: Float32Array): number {
  const product = (x: Float32Array, y: Float32Array): number => x.reduce((sum, value, i) => sum + value * (y[i] ?? Number.NaN), 0)
  return product(a, b) / Math.sqrt(product(a, a) * product(b, b))
}

function likeliest(logits: Float32Array, places: number): number[] {
  const width = logits.length / places
  return Array.from({ length: places }, (_, place) => {
    const row = logits.subarray(place * width, (place + 1) * width)
    return row.indexOf(row.reduce((most, value) => Math.max(most, value)))
  })
}

skipWithout(missing).describe('exports of SmolLM2-135M-Instruct', () => {
  const expected = missing === undefined ? schema.parse(JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8'))) : undefined
  if (expected === undefined) {
    test('each layout', () => undefined)
    return
  }
  const { ids, prompt, answer, files } = expected
  const dims = [1, ids.length]
  const positions = int64Tensor(
    ids.map((_, place) => place),
    dims,
  )
  const read = async (name: string): Promise<Float32Array> =>
    floats(await (await openSafetensors(join(folder, 'expected.safetensors'))).read(name))

  async function look(
    llm: LanguageModel,
  ): Promise<{ readonly logits: Float32Array; readonly gradient: Float32Array; readonly loss: number }> {
    const { decoder } = llm
    const tokens = size('tokens')
    const [tokenIds, places] = [input('ids', 'int64', [1, tokens]), input('positions', 'int64', [1, tokens])]
    const embeddings = input('embeddings', 'float32', [1, tokens, decoder.hiddenSize])
    const [labels, weights] = [input('labels', 'int64', [1, tokens]), input('weights', 'float32', [1, tokens])]
    const { hidden } = decoder.decode(embeddings, { positions: places })
    const { sum } = linearCrossEntropy(hidden, decoder.head, labels, weights)
    const [gradient] = gradients(sum, [embeddings])
    if (gradient === undefined) throw new Error('no gradient')
    const rows = await run(lower({ outputs: { embeddings: decoder.embed(tokenIds) } }), { ids: int64Tensor(ids, dims) })
    const supervised = Float32Array.from(ids, (_, place) => (place < ids.length - 1 ? 1 / (ids.length - 1) : 0))
    const feeds = { embeddings: float32Tensor(floats(rows.embeddings), [...dims, decoder.hiddenSize]), positions }
    // The logits without fused operators, which round activations where they meet blocks.
    const plain = await run(lower({ outputs: { logits: logitsOf(decoder, hidden) }, fused: false }), feeds)
    const outputs = await run(lower({ outputs: { sum, gradient } }), {
      ...feeds,
      labels: int64Tensor([...ids.slice(1), 0], dims),
      weights: float32Tensor(supervised, dims),
    })
    return { logits: floats(plain.logits), gradient: floats(outputs.gradient), loss: floats(outputs.sum)[0] ?? Number.NaN }
  }

  test.each(files)(
    '%s',
    async (file) => {
      const bounds = boundsOf(file)
      const ofFolder = ['optimum/model.onnx', 'genai-fp32/model.onnx', 'genai-int4/model.onnx', 'embeds/onnx/model.onnx'].includes(file)
      const where = join(folder, ofFolder ? dirname(file).replace(/\/onnx$/, '') : file)
      await using llm = await loadLanguageModel(where, { device: 'cpu' })
      const { logits, gradient, loss } = await look(llm)
      const onFile = await read(`${file}.logits`)
      const same = likeliest(logits, ids.length).filter((id, place) => id === likeliest(onFile, ids.length)[place]).length / ids.length
      const made: number[] = []
      for await (const event of llm.generate([{ ids: prompt }], { maxNewTokens: answer.length, stopTokenIds: [] }))
        if (event.type === 'token') made.push(event.id)
      const operators = fuseGeneration(generationGraph(llm.decoder)).model.graph?.node.map(({ opType }) => opType) ?? []
      const kept = Object.fromEntries(Object.keys(bounds.fused).map((name) => [name, operators.filter((one) => one === name).length]))
      const agree = made.findIndex((id, place) => id !== answer[place])
      const found = {
        file,
        logits: largestDifference(logits, onFile),
        toOriginal: largestDifference(logits, await read('original.logits')),
        top: same,
        cosine: cosine(gradient, await read('gradient')),
        loss: loss / expected.loss - 1,
        greedy: agree < 0 ? made.length : agree,
        kept,
      }
      console.info(JSON.stringify(found))
      expect(found.logits).toBeLessThan(bounds.logits)
      if (bounds === floating) expect(found.toOriginal).toBeLessThan(2e-3)
      expect(found.top).toBeGreaterThanOrEqual(bounds.top)
      expect(found.cosine).toBeGreaterThan(bounds.cosine)
      expect(found.greedy).toBeGreaterThanOrEqual(bounds.greedy)
      for (const [name, count] of Object.entries(bounds.fused)) expect(kept[name]).toBeGreaterThanOrEqual(count)
    },
    600_000,
  )
})
