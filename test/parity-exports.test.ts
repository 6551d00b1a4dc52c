/** ONNX exports in the layouts of onnxruntime-genai, transformers.js and Optimum, of five families, against Transformers with the same weights. Fixture: test/fixtures/exports/make.py. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { linearCrossEntropy } from '../src/graph/composites/cross-entropy.ts'
import { size } from '../src/graph/dim.ts'
import { gradients } from '../src/graph/gradients.ts'
import { gatherNd } from '../src/graph/operators/gather-nd.ts'
import { input } from '../src/graph/tensor.ts'
import { adapt } from '../src/llm/adapters/adapt.ts'
import { logitsOf } from '../src/llm/decoder.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import { type LoweredModel, lower } from '../src/onnx/lower.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { float32Tensor, int64Tensor, type NamedTensors, type TensorValue } from '../src/tensors.ts'
import { openSafetensors } from '../src/weights/safetensors.ts'

interface Case {
  readonly prompt: readonly number[]
  readonly answer: readonly number[]
  readonly loss: number
}

const fixtures = fileURLToPath(new URL('./fixtures/exports/', import.meta.url))
const cases: Readonly<Record<string, Case>> = JSON.parse(readFileSync(`${fixtures}cases.json`, 'utf8'))
/** What of each folder is named: the folder itself where it holds one export of the whole model. */
const places: Readonly<Record<string, string>> = {
  'genai-fp32': 'genai-fp32',
  'transformers-q4': 'transformers-q4/onnx/model_q4.onnx',
  'embeds-q4': 'embeds-q4',
  'optimum-fp16': 'optimum-fp16',
  'mistral-fp32': 'mistral-fp32',
  'qwen3-mha': 'qwen3-mha',
  'phi3-int8': 'phi3-int8/model.onnx',
  'transformers-q8': 'transformers-q8',
}
/** Names of attention's projections, where they are not Llama's. */
const targets: Readonly<Record<string, readonly [string, string]>> = { 'phi3-int8': ['qkv_proj', 'down_proj'] }
let scratch: string

beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'modalign-exports-'))
})
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

async function reference(name: string): Promise<Float32Array> {
  const { data, dtype } = await (await openSafetensors(`${fixtures}cases.safetensors`)).read(name)
  if (dtype !== 'float32') throw new Error(`${name} is ${dtype}`)
  return data
}

async function run({ bytes, externalRoot, externalData }: LoweredModel, feeds: NamedTensors): Promise<NamedTensors> {
  const model = { bytes, ...(externalRoot !== undefined && { externalRoot }), ...(externalData !== undefined && { externalData }) }
  await using session = await createLocalSession(model, { device: 'cpu', threads: 1 })
  return await session.run(feeds)
}

function floats(value: TensorValue | undefined): Float32Array {
  if (value?.dtype !== 'float32') throw new Error('not a float32 output')
  return value.data
}

function relativeNorm(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length)
  return Math.hypot(...a.map((value, index) => value - (b[index] ?? Number.NaN))) / Math.hypot(...b)
}

const positionsOf = (length: number): TensorValue =>
  int64Tensor(
    Array.from({ length }, (_, place) => place),
    [1, length],
  )

describe.each(Object.keys(places))('%s', (name) => {
  const { prompt, answer, loss } = cases[name] ?? { prompt: [], answer: [], loss: 0 }
  let llm: LanguageModel
  beforeAll(async () => {
    llm = await loadLanguageModel(join(fixtures, places[name] ?? ''), { device: 'cpu', threads: 1 })
  })
  afterAll(() => llm?.dispose())

  test('embeddings and logits', async () => {
    const ids = input('ids', 'int64', [1, size('tokens')])
    const positions = input('positions', 'int64', [1, size('tokens')])
    const embeds = llm.decoder.embed(ids)
    const { hidden } = llm.decoder.decode(embeds, { positions })
    // Without fused operators, which round activations where they meet blocks.
    const outputs = await run(lower({ outputs: { embeds, logits: logitsOf(llm.decoder, hidden) }, fused: false }), {
      ids: int64Tensor(prompt, [1, prompt.length]),
      positions: positionsOf(prompt.length),
    })
    const difference = (key: 'embeds' | 'logits', expected: Float32Array): number =>
      expected.reduce((most, value, i) => Math.max(most, Math.abs(value - (floats(outputs[key])[i] ?? Number.NaN))), 0)
    expect(difference('embeds', await reference(`${name}.embeds`))).toBeLessThan(1e-6)
    expect(difference('logits', await reference(`${name}.logits`))).toBeLessThan(2e-4)
  })

  test('greedy tokens', async () => {
    const made: number[] = []
    for await (const event of llm.generate([{ ids: prompt }], { maxNewTokens: answer.length, stopTokenIds: [] }))
      if (event.type === 'token') made.push(event.id)
    expect(made).toEqual(answer)
  })

  test('gradient of the loss with respect to the input embeddings', async () => {
    const { decoder } = llm
    const embeds = input('embeds', 'float32', [1, size('tokens'), decoder.hiddenSize])
    const positions = input('positions', 'int64', [1, size('tokens')])
    const targets = input('targets', 'int64', [1, size('rows'), 2])
    const labels = input('labels', 'int64', [1, size('rows')])
    const weights = input('weights', 'float32', [1, size('rows')])
    const { hidden } = decoder.decode(embeds, { positions })
    const { sum } = linearCrossEntropy(gatherNd(hidden, targets), decoder.head, labels, weights)
    const [gradient] = gradients(sum, [embeds])
    if (gradient === undefined) throw new Error('no gradient')
    const rows = prompt.length - 1
    const outputs = await run(lower({ outputs: { loss: sum, gradient }, fused: false }), {
      embeds: float32Tensor(await reference(`${name}.embeds`), [1, prompt.length, decoder.hiddenSize]),
      positions: positionsOf(prompt.length),
      targets: int64Tensor(Array.from({ length: rows }, (_, place) => [0, place]).flat(), [1, rows, 2]),
      labels: int64Tensor(prompt.slice(1), [1, rows]),
      weights: float32Tensor(new Float32Array(rows).fill(1 / rows), [1, rows]),
    })
    expect(Math.abs((floats(outputs.loss)[0] ?? 0) / loss - 1)).toBeLessThan(1e-5)
    expect(relativeNorm(floats(outputs.gradient), await reference(`${name}.gradient`))).toBeLessThan(1e-4)
  })

  test('takes a LoRA by the names that PEFT would give', async () => {
    const [attention, down] = targets[name] ?? ['q_proj', 'down_proj']
    const { adapters } = await adapt(llm, { lora: { rank: 2, targets: [attention, down] } })
    expect(Object.keys(adapters.parameters).sort()).toEqual(
      Array.from({ length: llm.decoder.layers }, (_, layer) => layer).flatMap((layer) =>
        [`mlp.${down}`, `self_attn.${attention}`].flatMap((module) =>
          ['A', 'B'].map((half) => `llm.model.layers.${layer}.${module}.lora_${half}.weight`),
        ),
      ),
    )
  })
})

describe('exports that are not what config.json says', () => {
  const copy = (name: string, change: (config: Record<string, unknown>) => void): string => {
    const folder = mkdtempSync(join(scratch, 'copy-'))
    cpSync(join(fixtures, name), folder, { recursive: true })
    const file = join(folder, 'config.json')
    const config: Record<string, unknown> = JSON.parse(readFileSync(file, 'utf8'))
    change(config)
    writeFileSync(file, JSON.stringify(config))
    return folder
  }

  test.each<[string, (config: Record<string, unknown>) => void, string]>([
    ['a layer fewer', (config) => Object.assign(config, { num_hidden_layers: 1 }), 'LLM_EXPORT_LAYER'],
    ['a layer more', (config) => Object.assign(config, { num_hidden_layers: 3 }), 'TENSOR_MISSING'],
    ['other heads', (config) => Object.assign(config, { num_attention_heads: 4, head_dim: 8 }), 'LLM_EXPORT_CONFIG'],
    ['another epsilon', (config) => Object.assign(config, { rms_norm_eps: 1e-6 }), 'LLM_EXPORT_CONFIG'],
    ['another family', (config) => Object.assign(config, { model_type: 'gemma2' }), 'LLM_EXPORT_FAMILY'],
    ['other angles', (config) => Object.assign(config, { rope_theta: 500000, rope_parameters: undefined }), 'LLM_EXPORT_CONFIG'],
    ['a wider feed-forward layer', (config) => Object.assign(config, { intermediate_size: 96 }), 'WEIGHT_SHAPE'],
  ])('%s', async (_, change, code) => {
    await expect(loadLanguageModel(copy('embeds-q4', change))).rejects.toMatchObject({ code })
  })

  test('no table of embeddings', async () => {
    const folder = copy('embeds-q4', () => undefined)
    rmSync(join(folder, 'onnx', 'embed_tokens_q4.onnx'))
    await expect(loadLanguageModel(folder)).rejects.toMatchObject({ code: 'LLM_EXPORT_EMBEDDINGS' })
  })

  test('no chat template, until one is chosen', async () => {
    const folder = copy('transformers-q8', () => undefined)
    rmSync(join(folder, 'chat_template.jinja'))
    await expect(loadLanguageModel(folder)).rejects.toMatchObject({
      code: 'TEMPLATE_MISSING',
      details: { hint: expect.stringContaining('vicuna') },
    })
    await using llm = await loadLanguageModel(folder, { template: 'plain', device: 'cpu' })
    expect(llm.templateChosen).toBe(true)
    expect(llm.template.render([{ role: 'user', content: 'a' }])).toBe('a\n')
  })

  test('no configuration at all', async () => {
    const folder = copy('embeds-q4', () => undefined)
    rmSync(join(folder, 'config.json'))
    await expect(loadLanguageModel(folder)).rejects.toMatchObject({ code: 'LLM_CONFIG_MISSING' })
  })
})
