/**
 * Every architecture of GGUF files against Transformers: the small checkpoints of the families as llama.cpp's own converter writes them. Fixture: test/fixtures/gguf-models/make.py,
 * which also says what the converter did to each tensor, so that the files are written here.
 */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { size } from '../src/graph/dim.ts'
import { input } from '../src/graph/tensor.ts'
import { logitsOf } from '../src/llm/decoder.ts'
import { buildDecoder, families } from '../src/llm/families/index.ts'
import { architectures } from '../src/llm/gguf/architectures/index.ts'
import { sourceContext, sourceFeeds } from '../src/llm/source-tokens.ts'
import { openSource, type WeightForm } from '../src/llm/sources/index.ts'
import { lower } from '../src/onnx/lower.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { int64Tensor } from '../src/tensors.ts'
import { openCheckpoint } from '../src/weights/checkpoint.ts'
import { toFloat16, toFloat32 } from '../src/weights/float16.ts'
import { openSafetensors } from '../src/weights/safetensors.ts'
import { entry, ggufBytes, type TensorEntry } from './gguf-bytes.ts'

const fixture = new URL('./fixtures/gguf-models/', import.meta.url)
const checkpoints = new URL('./fixtures/llm-families/', import.meta.url)

const operation = z.enum(['transposed', 'plus1', 'parts', 'halves8', 'halves16'])
const tensor = z.object({
  name: z.string(),
  shape: z.array(z.int()),
  from: z.string().optional(),
  op: operation.optional(),
  values: z.array(z.number()).optional(),
  sha256: z.string(),
})
const kind = <T extends string>(name: T) => z.tuple([z.literal(name)])
const metadata = z.union([
  z.tuple([z.string(), kind('string'), z.string()]).transform(([key, , value]) => ({ key, value, entry: entry.string(key, value) })),
  z.tuple([z.string(), kind('uint32'), z.int()]).transform(([key, , value]) => ({ key, value, entry: entry.uint32(key, value) })),
  z.tuple([z.string(), kind('float32'), z.number()]).transform(([key, , value]) => ({ key, value, entry: entry.float32(key, value) })),
  z.tuple([z.string(), kind('bool'), z.boolean()]).transform(([key, , value]) => ({ key, value, entry: entry.bool(key, value) })),
])
const cases = z
  .array(
    z.object({
      name: z.string(),
      checkpoint: z.string(),
      encoder: z.boolean(),
      prompt: z.array(z.int()),
      following: z.array(z.int()),
      metadata: z.array(metadata),
      tensors: z.array(tensor),
    }),
  )
  .parse(JSON.parse(readFileSync(new URL('conversions.json', fixture), 'utf8')))
type Case = (typeof cases)[number]

/** Rows in another order: row `r` of the result is row `source(r)`. */
function rowsOf(values: Float32Array, width: number, source: (row: number) => number): Float32Array {
  const out = new Float32Array(values.length)
  for (let row = 0; row < values.length / width; row++)
    out.set(values.subarray(source(row) * width, (source(row) + 1) * width), row * width)
  return out
}

/** What the converter did. `shape` is the result's. */
function applied(
  values: Float32Array,
  op: z.infer<typeof operation>,
  [rows = 0, width = 1]: readonly number[],
  heads: number,
): Float32Array {
  if (op === 'plus1') return values.map((value) => value + 1)
  if (op === 'transposed') return values.map((_, index) => values[(index % width) * rows + Math.floor(index / width)] ?? Number.NaN)
  if (op === 'parts') {
    const headDim = rows / (3 * heads)
    return rowsOf(values, width, (row) => {
      const [part, head, within] = [Math.floor(row / (rows / 3)), Math.floor((row % (rows / 3)) / headDim), row % headDim]
      return (head * 3 + part) * headDim + within
    })
  }
  const headDim = op === 'halves8' ? 8 : 16
  return rowsOf(values, width, (row) => row - (row % headDim) + (row % 2) * (headDim / 2) + ((row % headDim) >> 1))
}

/** Blocks of 32: a float16 scale and 32 int8. */
function q8(values: Float32Array): Uint8Array {
  const out = new Uint8Array((values.length / 32) * 34)
  for (let block = 0; block < values.length / 32; block++) {
    const run = values.subarray(block * 32, block * 32 + 32)
    const scale = run.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 127
    out.set(new Uint8Array(toFloat16(Float32Array.of(scale)).buffer), block * 34)
    for (const [at, value] of run.entries()) out[block * 34 + 2 + at] = scale === 0 ? 0 : Math.round(value / scale)
  }
  return out
}

const headsKey = /attention\.head_count$/
const types = { float32: 0, q8: 8 } as const

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-parity-gguf-'))
})
afterAll(() => rm(folder, { recursive: true }))

/** Writes a case's file, its matrices in blocks where they fit into such. */
async function written(one: Case, form: keyof typeof types): Promise<string> {
  const checkpoint = await openCheckpoint(fileURLToPath(new URL(one.checkpoint, checkpoints)))
  const heads = Number(one.metadata.find(({ key }) => headsKey.test(key))?.value)
  const tensors: TensorEntry[] = []
  const data: Uint8Array[] = []
  for (const { name, shape, from, op, values, sha256 } of one.tensors) {
    const read = from === undefined ? Float32Array.from(values ?? []) : toFloat32(await checkpoint.read(from))
    const made = op === undefined ? read : applied(read, op, shape, heads)
    expect(createHash('sha256').update(made).digest('hex').slice(0, 16), name).toBe(sha256)
    const inBlocks = form === 'q8' && shape.length === 2 && (shape[1] ?? 0) % 32 === 0
    tensors.push({ name, sizes: [...shape].reverse().map(BigInt), type: inBlocks ? types.q8 : types.float32 })
    data.push(inBlocks ? q8(made) : new Uint8Array(made.buffer, made.byteOffset, made.byteLength))
  }
  const vocabulary = Array.from({ length: 96 }, (_, id) => String.fromCharCode(33 + id))
  const bytes = ggufBytes({
    entries: [
      ...one.metadata.map((item) => item.entry),
      entry.string('tokenizer.ggml.model', 'gpt2'),
      entry.strings('tokenizer.ggml.tokens', vocabulary),
      entry.strings('tokenizer.ggml.merges', []),
    ],
    tensors,
  })
  const padded = (length: number): number => Math.ceil(length / 32) * 32
  let at = bytes.length - data.reduce((sum, { length }) => sum + padded(length), 0)
  for (const values of data) {
    bytes.set(values, at)
    at += padded(values.length)
  }
  const path = join(folder, `${one.name}-${form}.gguf`)
  await writeFile(path, bytes)
  return path
}

/** Logits at the places that predict something, [places, vocabulary]. */
async function logits(
  path: string,
  one: Case,
  { weights, fused = true }: { readonly weights: WeightForm; readonly fused?: boolean },
): Promise<Float32Array> {
  const source = await openSource(path, { weights, cacheFolder: join(folder, 'cache') })
  const decoder = buildDecoder(source.config, source.weights, path)
  const shape = [size('batch'), size('tokens')]
  const [ids, positions] = [input('ids', 'int64', shape), input('positions', 'int64', shape)]
  const { hidden } = decoder.decode(decoder.embed(ids), { positions, ...sourceContext(decoder, size('batch')) })
  const { bytes, externalRoot } = lower({ outputs: { logits: logitsOf(decoder, hidden) }, inputs: [ids, positions], fused })
  const session = await createLocalSession({ bytes, ...(externalRoot !== undefined && { externalRoot }) }, { device: 'cpu', threads: 1 })
  const all = [...one.prompt, ...one.following]
  const dims = [1, all.length]
  const result = await session.run({
    ids: int64Tensor(all, dims),
    positions: int64Tensor([...all.keys()], dims),
    ...(one.encoder && sourceFeeds([one.prompt.length], all.length)),
  })
  await session.dispose()
  if (result.logits?.dtype !== 'float32') throw new Error('float32 was to come')
  return result.logits.data.slice((one.encoder ? one.prompt.length - 1 : 0) * decoder.vocabularySize)
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  expect(a).toHaveLength(b.length)
  return a.reduce((most, value, index) => Math.max(most, Math.abs(value - (b[index] ?? Number.NaN))), 0)
}

test('every architecture has a case, and every family but OPT an architecture', async () => {
  const named = cases.map((one) => one.metadata.find(({ key }) => key === 'general.architecture')?.value)
  expect([...new Set(named)].sort()).toEqual(Object.keys(architectures).sort())
  const types = cases.map(
    ({ checkpoint }) => JSON.parse(readFileSync(new URL(`${checkpoint}/config.json`, checkpoints), 'utf8')).model_type,
  )
  // The checkpoints of gemma3 with a vision tower have no case of their own. llama.cpp does not know OPT.
  expect([...new Set([...types, 'gemma3', 'opt'])].sort()).toEqual(Object.keys(families).sort())
  const path = join(folder, 'opt.gguf')
  await writeFile(path, ggufBytes({ entries: [entry.string('general.architecture', 'opt')] }))
  await expect(openSource(path)).rejects.toMatchObject({
    code: 'GGUF_ARCHITECTURE',
    details: { got: 'opt', expected: 'one of bloom, gemma2, gemma3, gpt2, gptneox, llama, phi3, qwen2, qwen3, t5' },
  })
})

describe.each(cases)('$name', (one) => {
  test("logits are Transformers'", async () => {
    const found = await logits(await written(one, 'float32'), one, { weights: 'float32' })
    const expected = await (await openSafetensors(fileURLToPath(new URL('logits.safetensors', fixture)))).read(one.name)
    if (expected.dtype !== 'float32') throw new Error('float32 was stored')
    expect(largestDifference(found, expected.data)).toBeLessThan(2e-4)
  })
})

/** One for each way in which rows are put in order; all of them in the long run. */
const inBlocks = new Set(['mistral', 'gpt2', 'gpt-neox', 'flan-t5'])

describe.each(cases.filter(({ name }) => process.env.MODALIGN_LONG === '1' || inBlocks.has(name)))('$name', (one) => {
  test('kept in blocks, the same model as dequantised', async () => {
    const path = await written(one, 'q8')
    const exact = await logits(path, one, { weights: 'float32' })
    expect(largestDifference(await logits(path, one, { weights: 'quantised', fused: false }), exact)).toBeLessThan(2e-4)
  })
})
