/** The decoder against Transformers' LlamaForCausalLM on small random checkpoints: logits, greedy tokens, gradients. Fixture: test/fixtures/parity/make.py. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { linearCrossEntropy } from '../src/graph/composites/cross-entropy.ts'
import { matmulTransposed } from '../src/graph/composites/linear.ts'
import { size } from '../src/graph/dim.ts'
import { gradients } from '../src/graph/gradients.ts'
import { gatherNd } from '../src/graph/operators/gather-nd.ts'
import { input } from '../src/graph/tensor.ts'
import { checkpointWeights } from '../src/llm/checkpoint-weights.ts'
import type { Decoder } from '../src/llm/decoder.ts'
import { buildDecoder } from '../src/llm/families/index.ts'
import { generateTokens } from '../src/llm/generation/generate-tokens.ts'
import { generationGraph } from '../src/llm/generation/graph.ts'
import { type LoweredModel, lower } from '../src/onnx/lower.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import type { Session } from '../src/runtime/session.ts'
import { int64Tensor, type TensorValue } from '../src/tensors.ts'
import { openCheckpoint } from '../src/weights/checkpoint.ts'
import { openSafetensors } from '../src/weights/safetensors.ts'

interface Case {
  readonly name: string
  readonly prompts: readonly (readonly number[])[]
  readonly answers: readonly (readonly number[])[]
  readonly gradients: readonly { readonly labels: readonly number[]; readonly weights: readonly number[]; readonly loss: number }[]
}

const folder = fileURLToPath(new URL('./fixtures/parity/llama/', import.meta.url))
const cases: readonly Case[] = JSON.parse(readFileSync(`${folder}cases.json`, 'utf8'))

async function reference(name: string): Promise<Float32Array> {
  const { data, dtype } = await (await openSafetensors(`${folder}cases.safetensors`)).read(name)
  if (dtype !== 'float32') throw new Error(`${name} is ${dtype}`)
  return data
}

async function decoderOf(name: string): Promise<Decoder> {
  const config: unknown = JSON.parse(readFileSync(`${folder}${name}/config.json`, 'utf8'))
  return buildDecoder(config, checkpointWeights(await openCheckpoint(`${folder}${name}`)))
}

async function open({ bytes, externalRoot }: LoweredModel): Promise<Session> {
  const session = await createLocalSession({ bytes, ...(externalRoot !== undefined && { externalRoot }) }, { device: 'cpu', threads: 1 })
  onTestFinished(() => session.dispose())
  return session
}

/** Right-padded ids, or -1-filled rows of anything, and positions 0, 1, 2, ... */
function padded(sequences: readonly (readonly number[])[]): {
  readonly ids: TensorValue
  readonly positions: TensorValue
  readonly tokens: number
} {
  const tokens = Math.max(...sequences.map(({ length }) => length))
  const dims = [sequences.length, tokens]
  // Padding is a token like any other: nothing that is looked at may see it.
  const ids = sequences.flatMap((own) => [...own, ...new Array<number>(tokens - own.length).fill(95)])
  return {
    ids: int64Tensor(ids, dims),
    positions: int64Tensor(
      ids.map((_, index) => index % tokens),
      dims,
    ),
    tokens,
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
  const norm = (values: Iterable<number>): number => Math.sqrt(Array.from(values).reduce((sum, value) => sum + value * value, 0))
  return norm(a.map((value, index) => value - (b[index] ?? Number.NaN))) / norm(b)
}

describe.each([{ fused: true }, { fused: false }])('fused operators: $fused', ({ fused }) => {
  test.each(cases)('$name: logits at every place of prompts of unequal length', async ({ name, prompts }) => {
    const decoder = await decoderOf(name)
    const ids = input('ids', 'int64', [size('batch'), size('tokens')])
    const positions = input('positions', 'int64', [size('batch'), size('tokens')])
    const logits = matmulTransposed(decoder.decode(decoder.embed(ids), { positions }).hidden, decoder.head)
    const session = await open(lower({ outputs: { logits }, fused }))
    const feeds = padded(prompts)
    const all = floats((await session.run({ ids: feeds.ids, positions: feeds.positions })).logits)
    for (const [row, prompt] of prompts.entries()) {
      const start = row * feeds.tokens * decoder.vocabularySize
      const own = all.subarray(start, start + prompt.length * decoder.vocabularySize)
      expect(largestDifference(own, await reference(`${name}/${row}/logits`))).toBeLessThan(2e-4)
    }
  })

  test.each(cases)('$name: 32 greedy tokens after each prompt, as one batch', async ({ name, prompts, answers }) => {
    const decoder = await decoderOf(name)
    const session = await open(generationGraph(decoder, { fused }))
    const made: number[][] = prompts.map(() => [])
    const requests = prompts.map((ids) => ({ ids }))
    for await (const event of generateTokens({ session, decoder }, requests, { maxNewTokens: 32, stopTokenIds: [], draw: () => 0 }))
      if (event.type === 'token') made[event.row]?.push(event.id)
    expect(made).toEqual(answers)
  })

  test.each(cases)('$name: gradient with respect to the input embeddings', async ({ name, gradients: expected }) => {
    const decoder = await decoderOf(name)
    const [batch, tokens, rows] = [size('batch'), size('tokens'), size('rows')]
    const embeds = input('embeds', 'float32', [batch, tokens, decoder.hiddenSize])
    const positions = input('positions', 'int64', [batch, tokens])
    const supervised = input('supervised', 'int64', [1, rows, 2])
    const labels = input('labels', 'int64', [1, rows])
    const weights = input('weights', 'float32', [1, rows])
    const { hidden } = decoder.decode(embeds, { positions })
    const { sum } = linearCrossEntropy(gatherNd(hidden, supervised), decoder.head, labels, weights)
    const [gradient] = gradients(sum, [embeds])
    if (gradient === undefined) throw new Error('no gradient')
    const session = await open(lower({ outputs: { loss: sum, gradient }, fused }))

    const given = await Promise.all(expected.map((_, row) => reference(`${name}/${row}/embeds`)))
    const longest = Math.max(...expected.map((one) => one.labels.length))
    const width = longest * decoder.hiddenSize
    const data = new Float32Array(expected.length * width).fill(3)
    for (const [row, values] of given.entries()) data.set(values, row * width)
    const targets = expected.flatMap((one, row) =>
      one.labels.flatMap((label, place) => (place === 0 ? [] : [{ row, place: place - 1, label, weight: one.weights[place] ?? 0 }])),
    )
    const outputs = await session.run({
      embeds: { dtype: 'float32', dims: [expected.length, longest, decoder.hiddenSize], data },
      positions: padded(expected.map((one) => one.labels)).positions,
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
    const total = expected.reduce((all, { loss }) => all + loss, 0)
    expect(Math.abs((floats(outputs.loss)[0] ?? Number.NaN) - total) / total).toBeLessThan(1e-5)
    for (const [row, { labels: own }] of expected.entries()) {
      const length = own.length * decoder.hiddenSize
      const ours = floats(outputs.gradient)
      expect(relativeNorm(ours.subarray(row * width, row * width + length), await reference(`${name}/${row}/gradient`))).toBeLessThan(1e-4)
      // Nothing flows into padding.
      expect(ours.subarray(row * width + length, (row + 1) * width).every((value) => value === 0)).toBe(true)
    }
  })
})
