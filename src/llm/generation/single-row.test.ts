import { expect, test } from 'vitest'
import { blockQuantised } from '../../graph/composites/block-quantised.ts'
import { type Tensor, weight } from '../../graph/tensor.ts'
import { attributeValue } from '../../onnx/build.ts'
import type { LoweredModel } from '../../onnx/lower.ts'
import type { GraphProto } from '../../onnx/onnx_pb.ts'
import { uniforms } from '../../random.ts'
import { createLocalSession } from '../../runtime/local.ts'
import { withoutUndefined } from '../../runtime/session.ts'
import { elementCount, float32Tensor } from '../../tensors.ts'
import type { Decoder } from '../decoder.ts'
import { llama, llamaConfig } from '../families/llama.ts'
import { generateTokens } from './generate-tokens.ts'
import { cacheAbilities, generationGraph } from './graph.ts'

const config = llamaConfig.parse({
  model_type: 'llama',
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 96,
  max_position_embeddings: 4096,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: true,
})

const random = (name: string, dims: readonly number[], low: number, high: number): Float32Array =>
  uniforms(elementCount(dims), { seed: 3, stream: name }, { low, high })

const plain = (name: string, dims: readonly number[], low = -0.3, high = 0.3): Tensor =>
  weight(name, 'float32', dims, { kind: 'memory', value: float32Tensor(random(name, dims, low, high), dims) })

function inBlocks(name: string, [rows = 0, columns = 0]: readonly number[], withMinimums: boolean): Tensor {
  const dims = [rows, columns / 32, 16]
  const data = Uint8Array.from(random(name, dims, 0, 256))
  return blockQuantised({
    packed: weight(`${name}.packed`, 'uint8', dims, { kind: 'memory', value: { dtype: 'uint8', dims, data } }),
    scales: plain(`${name}.scales`, dims.slice(0, 2), 0.01, 0.05),
    ...(withMinimums && { minimums: plain(`${name}.minimums`, dims.slice(0, 2)) }),
    bits: 4,
  })
}

function decoderOf(kind: 'minimums' | 'blocks' | 'float32'): Decoder {
  const known = new Map<string, Tensor>()
  return llama(config, (name, shape) => {
    const made =
      known.get(name) ??
      (shape.length === 2 && kind !== 'float32'
        ? inBlocks(name, shape, kind === 'minimums')
        : plain(name, shape, shape.length === 1 ? 0.5 : -0.3, shape.length === 1 ? 1.5 : 0.3))
    known.set(name, made)
    return made
  })
}

async function answers(decoder: Decoder, lowered: LoweredModel, prompts: readonly (readonly number[])[]) {
  const { bytes, externalRoot, externalData } = lowered
  const source = withoutUndefined({ bytes, externalRoot, externalData })
  await using session = await createLocalSession(source, { device: 'cpu', memoryPattern: false, threads: 1 })
  const model = { session, decoder, ...cacheAbilities(lowered, decoder, 'cpu') }
  const found: { readonly row: number; readonly id: number; readonly logprob: number | undefined }[] = []
  const requests = prompts.map((ids) => ({ ids }))
  const options = { maxNewTokens: 40, stopTokenIds: [], draw: () => 0, logprobs: true }
  for await (const event of generateTokens(model, requests, options))
    if (event.type === 'token') found.push({ row: event.row, id: event.id, logprob: event.logprob })
  return found
}

function branch({ model }: LoweredModel, name: 'then_branch' | 'else_branch'): GraphProto {
  const either = model.graph?.node.find((node) => node.name === 'single.either')
  const attribute = either?.attribute.find((one) => one.name === name)
  const value = attribute && attributeValue(attribute)
  if (value === undefined || !('graph' in value)) throw new Error('no graph for one row')
  return value.graph
}

const prompt = (length: number, start: number): number[] => Array.from({ length }, (_, index) => (index * 17 + start) % 96)

test.each(['minimums', 'blocks'] as const)('one row has a graph of its own, and the same answers: %s', async (kind) => {
  const decoder = decoderOf(kind)
  const general = generationGraph(decoder, { appends: true })
  const both = generationGraph(decoder, { appends: true, oneRow: true })
  const products = branch(both, 'then_branch').node.filter(({ opType }) => opType === 'MatMulNBits')
  expect(products.filter(({ input }) => input.length === 6).length).toBe(kind === 'minimums' ? products.length : 0)
  expect(products.length).toBe(branch(both, 'else_branch').node.filter(({ opType }) => opType === 'MatMulNBits').length)
  expect(both.outputs).toEqual(general.outputs)
  // The last one begins beyond the cache that is still copied, and the first one passes from one kind of call to the other.
  for (const prompts of [[prompt(5, 1)], [prompt(7, 2), prompt(3, 3)], [prompt(3060, 4)], [prompt(3100, 5)]]) {
    const [expected, found] = [await answers(decoder, general, prompts), await answers(decoder, both, prompts)]
    expect(found.map(({ row, id }) => [row, id])).toEqual(expected.map(({ row, id }) => [row, id]))
    for (const [index, { logprob }] of expected.entries()) expect(found[index]?.logprob).toBeCloseTo(logprob ?? Number.NaN, 3)
  }
})

test('weights that are not in blocks have one graph', () => {
  const decoder = decoderOf('float32')
  expect(() => branch(generationGraph(decoder, { appends: true, oneRow: true }), 'then_branch')).toThrow('no graph for one row')
})
