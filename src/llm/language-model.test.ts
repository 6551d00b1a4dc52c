import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Worker } from 'node:worker_threads'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { writeLanguageModel } from '../../test/tune-tiny-pair.ts'
import { type ErrorData, ModalignError } from '../errors.ts'
import type { GenerationEvent, GenerationOptions } from './generation/generate-tokens.ts'
import type { KeyedRequest } from './generation/generator.ts'
import { type LanguageModel, loadLanguageModel } from './language-model.ts'

let root: string
let llm: LanguageModel

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-llm-'))
  await writeLanguageModel(join(root, 'llm'))
  llm = await loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1 })
})
afterAll(async () => {
  await llm?.dispose()
  await rm(root, { recursive: true, force: true })
})

const requests: readonly KeyedRequest[] = [
  { key: 'a.png', ids: [10, 20, 30] },
  { key: 'b.png', ids: [40] },
  { key: 'c.png', ids: [50, 60, 70, 80, 90, 100] },
]
const sampled: GenerationOptions = { temperature: 1.5, maxNewTokens: 10, seed: 8, stopTokenIds: [] }

async function generate(
  model: LanguageModel,
  given: readonly KeyedRequest[],
  options: GenerationOptions,
): Promise<readonly (readonly number[])[]> {
  const answers: number[][] = given.map(() => [])
  for await (const event of model.generate(given, options)) if (event.type === 'token') answers[event.row]?.push(event.id)
  return answers
}

test('describes the folder that it was loaded from', async () => {
  expect(llm).toMatchObject({ label: 'llm', folder: join(root, 'llm') })
  expect(llm.decoder).toMatchObject({ hiddenSize: 32, vocabularySize: 320, layers: 2, kvHeads: 1, headDim: 16, maxPositions: 128 })
  expect(llm.tokenizer.eosIds).toEqual([2])
  expect((await llm.session()).device).toBe('cpu')
})

describe('preload', () => {
  /** Threads that begin while `work` runs. */
  async function threadsOf<T>(work: () => Promise<T>): Promise<{ readonly result: T; readonly threads: readonly Worker[] }> {
    const threads: Worker[] = []
    const note = (worker: Worker): void => void threads.push(worker)
    process.on('worker', note)
    try {
      return { result: await work(), threads }
    } finally {
      process.off('worker', note)
    }
  }

  test('opens the session that generates while the model is loaded, and no other one', async () => {
    const load = (preload: boolean): Promise<LanguageModel> => loadLanguageModel(join(root, 'llm'), { device: 'cpu', threads: 1, preload })
    const plain = await threadsOf(() => load(false))
    expect(plain.threads).toHaveLength(0)
    const early = await threadsOf(() => load(true))
    expect(early.threads).toHaveLength(1)
    await using model = early.result
    const answering = await threadsOf(() => generate(model, requests, sampled))
    expect(answering.threads).toHaveLength(0)
    expect(answering.result).toEqual(await generate(llm, requests, sampled))
  })

  test('leaves nothing open when the rest cannot be loaded', async () => {
    const folder = await mkdtemp(join(root, 'broken-'))
    await cp(join(root, 'llm'), folder, { recursive: true })
    await writeFile(join(folder, 'tokenizer.json'), '{}')
    const { threads } = await threadsOf(async () => {
      const failed = loadLanguageModel(folder, { device: 'cpu', preload: true })
      await expect(failed).rejects.toMatchObject({ code: 'TOKENIZER_INVALID' })
    })
    // -1 once a thread has ended.
    expect(threads.map(({ threadId }) => threadId)).toEqual([-1])
  })

  test('says what keeps the session from opening when it is needed', async () => {
    const elsewhere = process.platform === 'darwin' ? 'directml' : 'coreml'
    const model = await loadLanguageModel(join(root, 'llm'), { device: elsewhere, preload: true })
    await expect(model.session()).rejects.toMatchObject({ code: 'RUNTIME_DEVICE_UNAVAILABLE' })
    await model.dispose()
  })
})

describe('identity', () => {
  test('is that of the files, wherever they lie', async () => {
    await cp(join(root, 'llm'), join(root, 'moved'), { recursive: true })
    expect((await loadLanguageModel(join(root, 'moved'))).identity).toBe(llm.identity)
  })

  test.each(['config.json', 'tokenizer.json', 'model.safetensors'])('changes with %s', async (name) => {
    const folder = await mkdtemp(join(root, 'changed-'))
    await cp(join(root, 'llm'), folder, { recursive: true })
    const file = join(folder, name)
    if (name === 'config.json') await writeFile(file, (await readFile(file, 'utf8')).replace('10000', '10001'))
    if (name === 'tokenizer.json') {
      const json = JSON.parse(await readFile(file, 'utf8'))
      json.model.merges.pop()
      await writeFile(file, JSON.stringify(json))
    }
    if (name === 'model.safetensors') {
      const bytes = await readFile(file)
      bytes.writeUInt8(bytes.readUInt8(bytes.length - 2) ^ 1, bytes.length - 2)
      await writeFile(file, bytes)
    }
    expect((await loadLanguageModel(folder)).identity).not.toBe(llm.identity)
  })
})

test('a stop string ends its own answer before it, and no other', async () => {
  const before = await generate(llm, requests, sampled)
  const whole: string[] = ['', '', '']
  for await (const event of llm.generate(requests, sampled)) whole[event.row] += event.text
  const [, stopped = ''] = whole
  const stop = stopped.slice(2, 5)
  const texts: string[] = ['', '', '']
  const ends: string[] = []
  for await (const event of llm.generate(requests, { ...sampled, stopStrings: [stop] })) {
    expect(ends[event.row]).toBeUndefined()
    texts[event.row] += event.text
    if (event.type === 'end') ends[event.row] = event.reason
  }
  expect(stop).not.toBe('')
  expect(texts).toEqual(whole.map((text) => (text.includes(stop) ? text.slice(0, text.indexOf(stop)) : text)))
  expect(ends).toEqual(whole.map((text) => (text.includes(stop) ? 'stop' : 'length')))
  // The next batch is whole again.
  expect(await generate(llm, requests, sampled)).toEqual(before)
})

describe('sampled answers', () => {
  test('hang on the key and the seed, not on the place in the batch', async () => {
    const [a, b, c] = await generate(llm, requests, sampled)
    const turned = [...requests].reverse()
    expect(await generate(llm, turned, sampled)).toEqual([c, b, a])
    expect(await generate(llm, requests.slice(1, 2), sampled)).toEqual([b])
    expect(await generate(llm, requests, { ...sampled, seed: 9 })).not.toEqual([a, b, c])
    const [renamed] = await generate(llm, [{ ...requests[0], ids: [10, 20, 30], key: 'z.png' }], sampled)
    expect(renamed).not.toEqual(a)
  })

  test('come with the defaults of generation_config.json where it samples, unless the call says otherwise', async () => {
    const folder = await mkdtemp(join(root, 'sampling-'))
    await cp(join(root, 'llm'), folder, { recursive: true })
    await writeFile(
      join(folder, 'generation_config.json'),
      JSON.stringify({ do_sample: true, temperature: 1.5, top_k: 3, eos_token_id: 2 }),
    )
    await using sampling = await loadLanguageModel(folder, { device: 'cpu', threads: 1 })
    const { temperature: _, ...plain } = sampled
    expect(await generate(sampling, requests, plain)).toEqual(await generate(llm, requests, { ...sampled, topK: 3 }))
    expect(await generate(sampling, requests, { ...plain, temperature: 0 })).toEqual(await generate(llm, requests, plain))
  })
})

test('calls that overlap take turns: each has the answers that it has alone', async () => {
  const options = { maxNewTokens: 6, stopTokenIds: [] }
  const alone = await Promise.all(requests.map(async (request) => [request, await generate(llm, [request], options)] as const))
  const events: [number, GenerationEvent][] = []
  await Promise.all(
    requests.map(async (request, call) => {
      for await (const event of llm.generate([request], options)) events.push([call, event])
    }),
  )
  for (const [call, [, [answer]]] of alone.entries())
    expect(events.flatMap(([from, event]) => (from === call && event.type === 'token' ? [event.id] : []))).toEqual(answer)
})

test('a call that is left or aborted does not hold up the next one', async () => {
  for await (const event of llm.generate(requests, { maxNewTokens: 50, stopTokenIds: [] })) if (event.type === 'token') break
  const aborted = llm.generate(requests, { maxNewTokens: 50, signal: AbortSignal.abort() })
  await expect(aborted.next()).rejects.toMatchObject({ name: 'AbortError' })
  expect((await generate(llm, requests, { maxNewTokens: 2, stopTokenIds: [] })).map(({ length }) => length)).toEqual([2, 2, 2])
})

test('no requests give nothing', async () => {
  expect(await generate(llm, [], {})).toEqual([])
})

test.each<[object, string]>([
  [{ temperature: -1 }, '/temperature'],
  [{ maxNewTokens: 0 }, '/maxNewTokens'],
  [{ stopTokenIds: [-1] }, '/stopTokenIds/0'],
])('options %j are refused', async (options, field) => {
  const error: unknown = await generate(llm, requests, options).catch((thrown: unknown) => thrown)
  expect(error).toBeInstanceOf(ModalignError)
  expect(error).toMatchObject({ code: 'GENERATION_OPTIONS', details: { field } })
})

test('generates from text alone on WASM as on the CPU', async () => {
  await using wasm = await loadLanguageModel(join(root, 'llm'), { device: 'wasm', threads: 1 })
  const options = { maxNewTokens: 6, stopTokenIds: [] }
  expect(await generate(wasm, requests, options)).toEqual(await generate(llm, requests, options))
  expect((await wasm.session()).device).toBe('wasm')
})

describe('a folder that is no model', () => {
  test.each<[string, string, (text: string) => string | undefined, Partial<ErrorData>]>([
    ['has no config', 'config.json', () => undefined, { code: 'LLM_CONFIG_MISSING' }],
    [
      'is of another family',
      'config.json',
      (text) => text.replace('"llama"', '"mamba"'),
      { code: 'LLM_FAMILY_UNKNOWN', field: '/model_type', got: '"mamba"' },
    ],
    [
      'is of a family named as what every object has',
      'config.json',
      (text) => text.replace('"llama"', '"toString"'),
      { code: 'LLM_FAMILY_UNKNOWN' },
    ],
    ['lacks a size', 'config.json', (text) => text.replace('"hidden_size":32,', ''), { code: 'LLM_CONFIG', field: '/hidden_size' }],
    ['has another activation', 'config.json', (text) => text.replace('"silu"', '"snake"'), { code: 'LLM_CONFIG', field: '/hidden_act' }],
    [
      'scales its rope by half',
      'config.json',
      (text) => text.replace('"rope_theta"', '"rope_scaling":{"rope_type":"llama3","factor":8},"rope_theta"'),
      { code: 'LLM_CONFIG', field: '/rope_scaling/low_freq_factor' },
    ],
    [
      'has heads that do not share the width',
      'config.json',
      (text) => text.replace('"num_attention_heads":2', '"num_attention_heads":3'),
      { code: 'LLM_CONFIG', field: '/num_attention_heads' },
    ],
    [
      'has heads of an odd size',
      'config.json',
      (text) => text.replace('"num_attention_heads":2', '"head_dim":15,"num_attention_heads":2'),
      { code: 'LLM_CONFIG', field: '/head_dim' },
    ],
    [
      'has a billion positions',
      'config.json',
      (text) => text.replace('"max_position_embeddings":128', '"max_position_embeddings":1000000000'),
      { code: 'LLM_CONFIG', field: '/max_position_embeddings' },
    ],
    [
      'has heads that do not share the key heads',
      'config.json',
      (text) => text.replace('"num_attention_heads":2,"num_key_value_heads":1', '"num_attention_heads":2,"num_key_value_heads":4'),
      { code: 'LLM_CONFIG', field: '/num_key_value_heads' },
    ],
    [
      'has weights of other sizes',
      'config.json',
      (text) => text.replace('"intermediate_size":64', '"intermediate_size":48'),
      { code: 'WEIGHT_SHAPE' },
    ],
    [
      'has more layers than weights',
      'config.json',
      (text) => text.replace('"num_hidden_layers":2', '"num_hidden_layers":3'),
      { code: 'TENSOR_MISSING' },
    ],
    ['has more tokens than embeddings', 'config.json', (text) => text.replace('"vocab_size":320', '"vocab_size":200'), {}],
    ['has no tokenizer', 'tokenizer.json', () => undefined, {}],
    ['has no weights', 'model.safetensors', () => undefined, {}],
  ])('%s', async (_, name, edit, expected) => {
    const folder = await mkdtemp(join(root, 'broken-'))
    await cp(join(root, 'llm'), folder, { recursive: true })
    const file = join(folder, name)
    const text = edit(await readFile(file, 'utf8'))
    if (text === undefined) await rm(file)
    else await writeFile(file, text)
    const error: unknown = await loadLanguageModel(folder)
      .then(
        async (model) => model.session().finally(() => model.dispose()),
        (thrown: unknown) => thrown,
      )
      .catch((thrown: unknown) => thrown)
    expect(error).toBeInstanceOf(ModalignError)
    expect(error).toMatchObject({ details: expected })
  })
})
