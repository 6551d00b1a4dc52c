/** Adapters against PEFT and PyTorch: LoRA, soft prompts, weights trained themselves. Fixture: test/fixtures/lora/make.py. */
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { size } from '../src/graph/dim.ts'
import { concat } from '../src/graph/operators/concat.ts'
import type { Trainables } from '../src/graph/parameters.ts'
import { constant, input } from '../src/graph/tensor.ts'
import { adapt } from '../src/llm/adapters/adapt.ts'
import { loadAdapter, mergeAdapters, saveAdapter, unmergeAdapters } from '../src/llm/adapters/adapter-files.ts'
import { dropoutFeeds, dropoutInput, dropoutInputs, dropped, multiplierOf } from '../src/llm/adapters/dropout.ts'
import type { AdapterOptions } from '../src/llm/adapters/settings.ts'
import { type Decoder, logitsOf } from '../src/llm/decoder.ts'
import { type LanguageModel, loadLanguageModel } from '../src/llm/language-model.ts'
import { lower } from '../src/onnx/lower.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { float32Tensor, int64Tensor, type NamedTensors } from '../src/tensors.ts'
import { type BatchItem, collate } from '../src/training/batch.ts'
import { adamw } from '../src/training/optimizers/adamw.ts'
import { stepGraph } from '../src/training/step-graph.ts'
import { LocalTrainer } from '../src/training/trainer.ts'
import { openSafetensors } from '../src/weights/safetensors.ts'

interface Run {
  readonly rate: number
  readonly losses: readonly number[]
  readonly norms: readonly number[]
  readonly answer: readonly number[]
}
const fixtures = fileURLToPath(new URL('./fixtures/lora/', import.meta.url))
const original = fileURLToPath(new URL('./fixtures/parity/step/', import.meta.url))
const {
  batches,
  runs,
}: {
  readonly batches: readonly (readonly { readonly ids: readonly number[]; readonly weights: readonly number[] }[])[]
  readonly runs: Readonly<Record<string, Run>>
} = JSON.parse(readFileSync(`${fixtures}runs.json`, 'utf8'))

let folder: string
let llm: LanguageModel

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'modalign-lora-'))
  const model = join(folder, 'model')
  writeModel(model)
  llm = await loadLanguageModel(model, { device: 'cpu', threads: 1 })
})
afterAll(async () => {
  await llm.dispose()
  rmSync(folder, { recursive: true })
})

/** The small Llama with a tokenizer of single letters. */
function writeModel(target: string): void {
  mkdirSync(target)
  for (const name of ['config.json', 'model.safetensors']) copyFileSync(join(original, name), join(target, name))
  const letters = Array.from({ length: 94 }, (_, index) => String.fromCharCode(33 + index))
  const vocab = Object.fromEntries(['<end>', ...letters].map((token, id) => [token, id]))
  const tokenizer = {
    version: '1.0',
    added_tokens: [{ id: 0, content: '<end>', special: true, single_word: false, lstrip: false, rstrip: false, normalized: false }],
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { type: 'BPE', vocab, merges: [] },
  }
  writeFileSync(join(target, 'tokenizer.json'), JSON.stringify(tokenizer))
  writeFileSync(
    join(target, 'tokenizer_config.json'),
    JSON.stringify({ eos_token: '<end>', chat_template: "{% for m in messages %}{{ m['content'] }}{% endfor %}" }),
  )
}

function itemsOf(rows: (typeof batches)[number]): readonly BatchItem[] {
  return rows.map(({ ids, weights }) => ({
    ids: Int32Array.from(ids),
    weights: Float32Array.from(weights),
    media: [],
    features: [],
    targets: 0,
  }))
}

/** Eight steps of AdamW as the fixture's. */
async function trained(
  decoder: Decoder,
  initial: Trainables,
  { rate }: Run,
): Promise<{ readonly losses: number[]; readonly norms: number[]; readonly final: Trainables }> {
  const graph = stepGraph({ decoder, media: [] })
  const { bytes, externalRoot } = graph.model
  const session = await createLocalSession(
    { bytes, ...(externalRoot !== undefined && { externalRoot }) },
    { device: 'cpu', threads: 1, memoryPattern: false },
  )
  onTestFinished(() => session.dispose())
  const trainer = new LocalTrainer({ session, trainables: initial, optimizer: adamw({ weightDecay: 0.01 }), maxGradientNorm: 1 })
  const [losses, norms]: [number[], number[]] = [[], []]
  for (const rows of batches) {
    const { feeds, weight } = collate(itemsOf(rows), { media: [], headChunks: graph.headChunks, softPrompt: softPromptTokens(decoder) })
    await trainer.accumulate(feeds, weight)
    const update = await trainer.update(rate)
    losses.push(update.loss)
    norms.push(update.gradientNorm)
  }
  return { losses, norms, final: (await trainer.snapshot()).parameters }
}

function softPromptTokens({ trained: parts }: Decoder): number {
  const tokens = parts?.softPrompt?.shape[0]
  return typeof tokens === 'number' ? tokens : 0
}

/** Logits at every place of a sequence, with the present values. */
async function logitsAt(model: LanguageModel, sequence: readonly number[]): Promise<Float32Array> {
  const { decoder, softPrompt } = model.decoder.trained?.present() ?? { decoder: model.decoder, softPrompt: new Float32Array(0) }
  const front = softPrompt.length / decoder.hiddenSize
  const places = front + sequence.length
  const [ids, positions] = [input('ids', 'int64', [1, sequence.length]), input('positions', 'int64', [1, places])]
  const embeds = decoder.embed(ids)
  const whole = front === 0 ? embeds : concat([constant(float32Tensor(softPrompt, [1, front, decoder.hiddenSize])), embeds], 1)
  const { hidden } = decoder.decode(whole, { positions })
  const { bytes, externalRoot } = lower({ outputs: { logits: logitsOf(decoder, hidden) } })
  await using session = await createLocalSession(
    { bytes, ...(externalRoot !== undefined && { externalRoot }) },
    { device: 'cpu', threads: 1 },
  )
  const { logits } = await session.run({
    ids: int64Tensor(sequence, [1, sequence.length]),
    positions: int64Tensor(
      Array.from({ length: places }, (_, place) => place),
      [1, places],
    ),
  })
  if (logits?.dtype !== 'float32') throw new Error('no logits')
  return logits.data.slice(front * decoder.vocabularySize)
}

async function expectOutputs(model: LanguageModel, name: string, tolerance = 1e-4): Promise<void> {
  const ids = batches[0]?.[0]?.ids ?? []
  expect(largestDifference(await logitsAt(model, ids), await reference(name))).toBeLessThan(tolerance)
  const answer: number[] = []
  for await (const event of model.generate([{ ids }], { maxNewTokens: 12, stopTokenIds: [] }))
    if (event.type === 'token') answer.push(event.id)
  expect(answer).toEqual(runs[name]?.answer)
}

async function reference(name: string): Promise<Float32Array> {
  const { data, dtype } = await (await openSafetensors(`${fixtures}logits.safetensors`)).read(name)
  if (dtype !== 'float32') throw new Error(`${name} is ${dtype}`)
  return data
}

function largestDifference(a: Float32Array | undefined, b: Float32Array): number {
  expect(a?.length).toBe(b.length)
  return b.reduce((most, value, index) => Math.max(most, Math.abs(value - (a?.[index] ?? Number.NaN))), 0)
}

function runOf(name: string): Run {
  const run = runs[name]
  if (run === undefined) throw new Error(`no run ${name}`)
  return run
}

function expectRun(name: string, { losses, norms }: { readonly losses: readonly number[]; readonly norms: readonly number[] }): void {
  for (const [step, loss] of losses.entries())
    expect(Math.abs(loss - (runOf(name).losses[step] ?? Number.NaN)), `loss of step ${step}`).toBeLessThan(1e-5)
  for (const [step, norm] of norms.entries())
    expect(Math.abs(norm / (runOf(name).norms[step] ?? Number.NaN) - 1), `norm of step ${step}`).toBeLessThan(1e-4)
}

describe.each(['lora', 'rslora', 'prompt'])('%s as PEFT has it', (name) => {
  test('eight steps of AdamW, then logits and a greedy answer', async () => {
    await using model = await loadAdapter(llm, `${fixtures}${name}/initial`)
    const { final, ...curve } = await trained(model.decoder, model.adapters.parameters, runOf(name))
    expectRun(name, curve)
    const expected = await loadAdapter(llm, `${fixtures}${name}/final`)
    for (const [key, { data }] of Object.entries(expected.adapters.parameters))
      expect(largestDifference(final[key]?.data, data), key).toBeLessThan(1e-5)
    const before = await logitsAt(model, [5, 6, 7])
    model.adapters.setParameters(final)
    await expectOutputs(model, name)
    expect(await logitsAt(model, [5, 6, 7])).not.toEqual(before)
  })

  test('its folder is written as it was read', async () => {
    const model = await loadAdapter(llm, `${fixtures}${name}/final`)
    const target = join(folder, `${name}-again`)
    await saveAdapter(model, target)
    expect(
      readFileSync(join(target, 'adapter_model.safetensors')).equals(readFileSync(`${fixtures}${name}/final/adapter_model.safetensors`)),
    ).toBe(true)
    const [ours, theirs] = [target, `${fixtures}${name}/final`].map((one) =>
      JSON.parse(readFileSync(join(one, 'adapter_config.json'), 'utf8')),
    )
    // PEFT wrote the short names that it was given, or paths in the order of a set.
    const { base_model_name_or_path: base, target_modules: modules, ...rest } = ours
    expect(theirs).toMatchObject(rest)
    expect(base).toBe(llm.folder)
    if (modules !== undefined)
      for (const module of modules)
        expect(theirs.target_modules.some((one: string) => module === one || module.endsWith(`.${one}`))).toBe(true)
  })
})

describe.each([
  ['full', 'all'],
  ['partial', ['model.norm.weight', 'model.layers.1.mlp.**']],
] as const)('unfreezing: %s', (name, unfreeze) => {
  test('eight steps as in PyTorch, then logits and a greedy answer', async () => {
    await using model = await adapt(llm, { unfreeze })
    const { final, ...curve } = await trained(model.decoder, model.adapters.parameters, runOf(name))
    expectRun(name, curve)
    const file = await openSafetensors(`${fixtures}${name}.safetensors`)
    expect(Object.keys(final).sort()).toEqual([...file.tensors.keys()].map((key) => `llm.${key}`).sort())
    for (const key of file.tensors.keys()) {
      const { data, dtype } = await file.read(key)
      if (dtype !== 'float32') throw new Error(`${key} is ${dtype}`)
      expect(largestDifference(final[`llm.${key}`]?.data, data), key).toBeLessThan(1e-5)
    }
    model.adapters.setParameters(final)
    await expectOutputs(model, name)
  })
})

describe('merging', () => {
  const bytesOf = (path: string): Buffer => readFileSync(join(path, 'model.safetensors'))

  test('a merged model needs no adapter, and unmerging gives the original back byte for byte', async () => {
    await using model = await loadAdapter(llm, `${fixtures}lora/final`)
    const target = join(folder, 'merged')
    await mergeAdapters(model, target)
    expect(bytesOf(target).equals(bytesOf(llm.folder))).toBe(false)
    {
      await using merged = await loadLanguageModel(target, { device: 'cpu', threads: 1 })
      expect(merged.identity).not.toBe(llm.identity)
      await expectOutputs(merged, 'lora')
    }
    await unmergeAdapters(target)
    expect(readdirSync(target).sort()).toEqual(readdirSync(llm.folder).sort())
    for (const name of readdirSync(target))
      expect(readFileSync(join(target, name)).equals(readFileSync(join(llm.folder, name))), name).toBe(true)
    expect((await loadLanguageModel(target)).identity).toBe(llm.identity)
    await expect(unmergeAdapters(target)).rejects.toMatchObject({ code: 'ADAPTER_MERGE_MISSING' })
  })

  test('trained weights are merged with a LoRA on top of them', async () => {
    await using model = await adapt(llm, {
      unfreeze: ['model.layers.0.**'],
      lora: { rank: 2, targets: ['layers.0.mlp.down_proj', 'q_proj'] },
      seed: 3,
    })
    const values = Object.entries(model.adapters.parameters).map(
      ([name, { dims, data }]) => [name, { dims, data: data.map((value, i) => value + 0.05 * Math.sin(i + name.length)) }] as const,
    )
    model.adapters.setParameters(Object.fromEntries(values))
    const target = join(folder, 'merged-both')
    await mergeAdapters(model, target)
    await using merged = await loadLanguageModel(target, { device: 'cpu', threads: 1 })
    const [ours, theirs] = [await logitsAt(model, [9, 8, 7, 6]), await logitsAt(merged, [9, 8, 7, 6])]
    expect(largestDifference(ours, theirs)).toBeLessThan(1e-4)
    expect(largestDifference(ours, await logitsAt(llm, [9, 8, 7, 6]))).toBeGreaterThan(0.1)
  })

  test('a merged file that was changed is not restored to something else', async () => {
    const target = join(folder, 'merged-damaged')
    await mergeAdapters(await loadAdapter(llm, `${fixtures}rslora/final`), target)
    const bytes = bytesOf(target)
    // A byte of a weight that merging left alone.
    bytes.writeUInt8(bytes.readUInt8(bytes.length - 1) ^ 1, bytes.length - 1)
    writeFileSync(join(target, 'model.safetensors'), bytes)
    await expect(unmergeAdapters(target)).rejects.toMatchObject({ code: 'ADAPTER_MERGE_DAMAGED' })
    expect(bytesOf(target).equals(bytes)).toBe(true)
  })
})

describe('what is differentiated', () => {
  test('nothing below the lowest adapter, and no frozen weight', async () => {
    const model = await adapt(llm, { lora: { rank: 2, targets: ['layers.1.self_attn.o_proj'] } })
    const { model: lowered, parameters } = stepGraph({ decoder: model.decoder, media: [] })
    expect(parameters.map(({ name }) => name)).toEqual(['A', 'B'].map((half) => `llm.model.layers.1.self_attn.o_proj.lora_${half}.weight`))
    expect(lowered.outputs.filter((name) => name.startsWith('gradient.'))).toHaveLength(2)
    const readers = (name: string): number => lowered.model.graph?.node.filter((node) => node.input.includes(name)).length ?? 0
    expect(readers('model.layers.0.mlp.down_proj.weight')).toBe(1)
    expect(readers('model.layers.1.self_attn.q_proj.weight')).toBe(1)
    // Above it: once forward, once back, but never for a gradient of its own, which would read no weight and make one more product.
    expect(readers('model.layers.1.mlp.down_proj.weight')).toBe(2)
  })
})

describe('dropout', () => {
  test('a share of the inputs is 0 and the others grow; masks hang on seed, pass and layer alone', async () => {
    const [rate, dims] = [0.3, [4, 25, 96]] as const
    const shape = [size('batch'), size('tokens'), 96]
    const x = input('x', 'float32', shape)
    const inputs = dropoutInput([size('batch'), size('tokens'), 128])
    const { bytes } = lower({ outputs: { a: dropped(x, 'layer.a', inputs), b: dropped(x, 'layer.b', inputs) } })
    await using session = await createLocalSession({ bytes }, { device: 'cpu', threads: 1 })
    const ones = float32Tensor(new Float32Array(4 * 25 * 96).fill(1), dims)
    const masks = async (key?: { readonly seed: number; readonly pass: number }): Promise<readonly Float32Array[]> => {
      const { a, b } = await session.run({ x: ones, ...dropoutFeeds({ rate, width: 128 }, [4, 25], key) })
      if (a?.dtype !== 'float32' || b?.dtype !== 'float32') throw new Error('no masks')
      return [a.data, b.data]
    }
    const [a = new Float32Array(), b = new Float32Array()] = await masks({ seed: 1, pass: 7 })
    const share = (values: readonly boolean[]): number => values.filter(Boolean).length / values.length
    const zeros = (mask: Float32Array): boolean[] => Array.from(mask, (value) => value === 0)
    expect(new Set([...a, ...b])).toEqual(new Set([0, Math.fround(1 / Math.fround(1 - rate))]))
    for (const mask of [a, b]) expect(Math.abs(share(zeros(mask)) - rate)).toBeLessThan(0.015)
    // Independent events happen together as often as the product of their chances.
    const both = zeros(a).map((zero, i) => zero && b[i] === 0)
    expect(Math.abs(share(both) - rate ** 2)).toBeLessThan(0.015)
    expect(await masks({ seed: 1, pass: 7 })).toEqual([a, b])
    expect((await masks({ seed: 1, pass: 8 }))[0]).not.toEqual(a)
    expect((await masks({ seed: 2, pass: 7 }))[0]).not.toEqual(a)
    expect((await masks()).every((mask) => mask.every((value) => value === 1))).toBe(true)
    // 32-bit products wrap around, as Math.imul's do.
    const { [dropoutInputs.field]: field, [dropoutInputs.threshold]: threshold } = dropoutFeeds({ rate, width: 128 }, [4, 25], {
      seed: 1,
      pass: 7,
    })
    const expected = Array.from(
      a,
      (_, i) => Math.imul(Number(field?.data[Math.floor(i / 96) * 128 + (i % 96)]), multiplierOf('layer.a')) < Number(threshold?.data[0]),
    )
    expect(zeros(a)).toEqual(expected)
  })

  test('in a step: the same pass gives the same loss, evaluation drops nothing', async () => {
    const lora = { rank: 4, dropout: 0.4, targets: ['q_proj', 'down_proj'] }
    await using plain = await loadAdapter(llm, `${fixtures}lora/final`)
    const all = plain.adapters.parameters
    const chosen = Object.fromEntries(Object.entries(all).filter(([name]) => /q_proj|down_proj/.test(name)))
    const without = await adapt(llm, { lora: { ...lora, dropout: 0 } })
    const dropping = await adapt(llm, { lora })
    expect(dropping.decoder.trained?.dropout).toEqual({ rate: 0.4, width: 64 })
    const lossOf = async (decoder: Decoder, feeds: NamedTensors): Promise<number> => {
      const graph = stepGraph({ decoder, media: [] })
      const { bytes, externalRoot } = graph.model
      await using session = await createLocalSession(
        { bytes, ...(externalRoot !== undefined && { externalRoot }) },
        { device: 'cpu', threads: 1 },
      )
      const trainer = new LocalTrainer({ session, trainables: chosen, optimizer: adamw() })
      return await trainer.loss({ ...collate(itemsOf(batches[0] ?? []), { media: [], headChunks: graph.headChunks }).feeds, ...feeds })
    }
    const place: readonly [number, number] = [3, 16]
    const dropout = dropping.decoder.trained?.dropout ?? { rate: 0, width: 0 }
    const base = await lossOf(without.decoder, {})
    expect(await lossOf(dropping.decoder, dropoutFeeds(dropout, place))).toBeCloseTo(base, 4)
    const first = await lossOf(dropping.decoder, dropoutFeeds(dropout, place, { seed: 0, pass: 0 }))
    expect(Math.abs(first - base)).toBeGreaterThan(1e-3)
    expect(await lossOf(dropping.decoder, dropoutFeeds(dropout, place, { seed: 0, pass: 0 }))).toBe(first)
    expect(await lossOf(dropping.decoder, dropoutFeeds(dropout, place, { seed: 0, pass: 1 }))).not.toBe(first)
  })
})

describe('first values', () => {
  test('a LoRA changes nothing at first, and A is drawn as PEFT draws it', async () => {
    await using model = await adapt(llm, { lora: { rank: 16, targets: ['down_proj'] } })
    expect(largestDifference(await logitsAt(model, [5, 6, 7]), await logitsAt(llm, [5, 6, 7]))).toBeLessThan(1e-5)
    const a = model.adapters.parameters['llm.model.layers.0.mlp.down_proj.lora_A.weight']?.data ?? new Float32Array()
    const bound = 1 / Math.sqrt(64)
    expect(Math.max(...a.map(Math.abs))).toBeLessThanOrEqual(bound)
    expect(Math.hypot(...a) / Math.sqrt(a.length)).toBeCloseTo(bound / Math.sqrt(3), 2)
  })

  test('a soft prompt can begin as a text', async () => {
    const model = await adapt(llm, { softPrompt: { tokens: 5, text: 'abc' } })
    const table = await (await openSafetensors(join(original, 'model.safetensors'))).read('model.embed_tokens.weight')
    const ids = llm.tokenizer.encode('abcab')
    expect(ids).toHaveLength(5)
    const expected = ids.flatMap((id) => Array.from(table.data.slice(id * 32, id * 32 + 32), Number))
    expect(Array.from(model.adapters.parameters['llm.prompt_embeddings']?.data ?? [])).toEqual(expected)
    expect(model.decoder.maxPositions).toBe(llm.decoder.maxPositions - 5)
  })
})

describe('what cannot be', () => {
  test.each<[string, AdapterOptions, string]>([
    ['a layer that is not there', { lora: { targets: ['query'] } }, 'ADAPTER_TARGET'],
    ['a pattern that chooses nothing', { unfreeze: ['model.layers.*.weight'] }, 'ADAPTER_TARGET'],
    ['nothing at all', {}, 'ADAPTER_OPTIONS'],
    ['a rank of 0', { lora: { rank: 0 } }, 'ADAPTER_OPTIONS'],
  ])('%s', async (_, options, code) => {
    await expect(adapt(llm, options)).rejects.toMatchObject({ code })
  })

  test('adapters on top of adapters', async () => {
    const model = await adapt(llm, { softPrompt: { tokens: 1 } })
    await expect(adapt(model, { lora: {} })).rejects.toMatchObject({ code: 'ADAPTER_TWICE' })
  })

  test.each([
    [{ use_dora: true }, '/use_dora'],
    [{ peft_type: 'IA3' }, '/peft_type'],
    [{ modules_to_save: ['lm_head'] }, '/modules_to_save'],
    [{ r: 0 }, '/r'],
  ])('a folder of another kind: %j', async (change, field) => {
    const target = mkdtempSync(join(folder, 'kind-'))
    const config = JSON.parse(readFileSync(`${fixtures}lora/final/adapter_config.json`, 'utf8'))
    writeFileSync(join(target, 'adapter_config.json'), JSON.stringify({ ...config, ...change }))
    copyFileSync(`${fixtures}lora/final/adapter_model.safetensors`, join(target, 'adapter_model.safetensors'))
    await expect(loadAdapter(llm, target)).rejects.toMatchObject({ code: 'ADAPTER_CONFIG', details: { field } })
  })

  test('a LoRA of another rank than its configuration says, and no adapter at all', async () => {
    const target = mkdtempSync(join(folder, 'rank-'))
    const config = JSON.parse(readFileSync(`${fixtures}lora/final/adapter_config.json`, 'utf8'))
    copyFileSync(`${fixtures}rslora/final/adapter_model.safetensors`, join(target, 'adapter_model.safetensors'))
    await expect(loadAdapter(llm, target)).rejects.toMatchObject({ code: 'ADAPTER_MISSING' })
    writeFileSync(join(target, 'adapter_config.json'), JSON.stringify(config))
    await expect(loadAdapter(llm, target)).rejects.toMatchObject({ code: 'ADAPTER_WEIGHTS' })
  })
})
