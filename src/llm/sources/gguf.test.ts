import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { entry, ggufBytes, type TensorEntry } from '../../../test/gguf-bytes.ts'
import type { JsonValue } from '../../io/json.ts'
import { openCheckpoint } from '../../weights/checkpoint.ts'
import { toFloat32 } from '../../weights/float16.ts'
import { openSource } from './index.ts'

const published = fileURLToPath(new URL('../../../test/fixtures/parity/llama/tied/', import.meta.url))
let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-gguf-model-'))
})
afterAll(() => rm(folder, { recursive: true }))

/** Transformers' names as llama.cpp has them. */
const names: readonly (readonly [RegExp, string])[] = [
  [/^model\.embed_tokens\./, 'token_embd.'],
  [/^model\.norm\./, 'output_norm.'],
  [/^lm_head\./, 'output.'],
  [/^model\.layers\.(\d+)\.input_layernorm\./, 'blk.$1.attn_norm.'],
  [/^model\.layers\.(\d+)\.post_attention_layernorm\./, 'blk.$1.ffn_norm.'],
  [/^model\.layers\.(\d+)\.self_attn\.o_proj\./, 'blk.$1.attn_output.'],
  [/^model\.layers\.(\d+)\.self_attn\.([qkv])_proj\./, 'blk.$1.attn_$2.'],
  [/^model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\./, 'blk.$1.ffn_$2.'],
]

interface Model {
  readonly path: string
  readonly weights: ReadonlyMap<string, Float32Array>
}

/** The small Llama of the parity tests as llama.cpp's converter writes it: F32, rows of q and k with the halves of each head's channels in turns. */
async function llamaFile(name: string, metadata: readonly ReturnType<typeof entry.string>[] = []): Promise<Model> {
  const config = JSON.parse(await readFile(join(published, 'config.json'), 'utf8'))
  const headDim: number = config.hidden_size / config.num_attention_heads
  const checkpoint = await openCheckpoint(published)
  const weights = new Map<string, Float32Array>()
  const tensors: TensorEntry[] = []
  const data: Float32Array[] = []
  for (const [weight, { shape }] of checkpoint.tensors) {
    const values = toFloat32(await checkpoint.read(weight))
    weights.set(weight, values)
    const [pattern, target] = names.find(([candidate]) => candidate.test(weight)) ?? []
    if (pattern === undefined || target === undefined) throw new Error(`no name for ${weight}`)
    const width = shape.at(-1) ?? 1
    const stored = values.slice()
    if (/[qk]_proj/.test(weight)) {
      for (let row = 0; row < values.length / width; row++) {
        const [head, within] = [Math.floor(row / headDim), row % headDim]
        // In the file: (head, i, half); in the checkpoint: (head, half, i).
        const from = head * headDim + (within % 2) * (headDim / 2) + (within >> 1)
        stored.set(values.subarray(from * width, (from + 1) * width), row * width)
      }
    }
    tensors.push({ name: weight.replace(pattern, target), sizes: [...shape].reverse().map(BigInt), type: 0 })
    data.push(stored)
  }
  const vocabulary = Array.from({ length: config.vocab_size }, (_, id) => (id < 3 ? (['<unk>', '<s>', '</s>'][id] ?? '') : `▁w${id}`))
  const bytes = ggufBytes({
    entries: [
      entry.string('general.architecture', 'llama'),
      entry.uint32('llama.block_count', config.num_hidden_layers),
      entry.uint32('llama.context_length', config.max_position_embeddings),
      entry.uint32('llama.embedding_length', config.hidden_size),
      entry.uint32('llama.feed_forward_length', config.intermediate_size),
      entry.uint32('llama.attention.head_count', config.num_attention_heads),
      entry.uint32('llama.attention.head_count_kv', config.num_key_value_heads),
      entry.float32('llama.attention.layer_norm_rms_epsilon', config.rms_norm_eps),
      entry.string('tokenizer.ggml.model', 'llama'),
      entry.strings('tokenizer.ggml.tokens', vocabulary),
      entry.float32s(
        'tokenizer.ggml.scores',
        vocabulary.map((_, id) => -id),
      ),
      entry.int32s(
        'tokenizer.ggml.token_type',
        vocabulary.map((_, id) => (id === 0 ? 2 : id < 3 ? 3 : 1)),
      ),
      entry.uint32('tokenizer.ggml.bos_token_id', 1),
      entry.uint32('tokenizer.ggml.eos_token_id', 2),
      entry.uint32('tokenizer.ggml.unknown_token_id', 0),
      entry.string('tokenizer.chat_template', '{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}'),
      ...metadata,
    ],
    tensors,
  })
  let at = bytes.length - data.reduce((sum, { byteLength }) => sum + Math.ceil(byteLength / 32) * 32, 0)
  for (const values of data) {
    bytes.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), at)
    at += Math.ceil(values.byteLength / 32) * 32
  }
  const path = join(folder, name)
  await writeFile(path, bytes)
  return { path, weights }
}

describe('a GGUF file', () => {
  test('becomes the config, the weights, the tokenizer and the template that it was made from', async () => {
    const { path, weights } = await llamaFile('plain.gguf')
    const unpacked: string[] = []
    const cacheFolder = join(folder, 'cache')
    const source = await openSource(path, { cacheFolder, onUnpack: (file) => unpacked.push(file) })
    expect(source.config).toMatchObject(pick(JSON.parse(await readFile(join(published, 'config.json'), 'utf8')), source.config))
    const [cached = ''] = unpacked
    const checkpoint = await openCheckpoint(cached)
    expect([...checkpoint.tensors.keys()].sort()).toEqual([...weights.keys()].sort())
    for (const [name, values] of weights) expect(toFloat32(await checkpoint.read(name)), name).toEqual(values)
    expect((await source.tokenizer()).specialTokens).toMatchObject({ bos: { id: 1 }, eos: { id: 2 }, unk: { id: 0 } })
    expect(source.template().render([{ role: 'user', content: 'hi' }])).toBe('<s>hi')
    // A second time nothing is unpacked.
    await openSource(path, { cacheFolder, onUnpack: (file) => unpacked.push(file) })
    expect(unpacked).toHaveLength(1)
    expect(await readdir(join(cacheFolder, 'weights'))).toHaveLength(1)
  })

  test('the scaling of positions comes along', async () => {
    const { path } = await llamaFile('kinds.gguf', [
      entry.string('llama.rope.scaling.type', 'linear'),
      entry.float32('llama.rope.scaling.factor', 4),
    ])
    const { config } = await openSource(path, { cacheFolder: join(folder, 'cache') })
    expect(config).toMatchObject({ rope_scaling: { rope_type: 'linear', factor: 4 } })
  })

  test.each([
    ['an architecture that no family has', [entry.string('general.architecture', 'mamba')], 'GGUF_ARCHITECTURE'],
    ['no architecture', [], 'GGUF_METADATA'],
    [
      'a number that is a text',
      [entry.string('general.architecture', 'llama'), entry.string('llama.attention.head_count', '9')],
      'GGUF_METADATA',
    ],
  ])('%s', async (_, entries, code) => {
    const path = join(folder, 'bad.gguf')
    await writeFile(path, ggufBytes({ entries }))
    await expect(openSource(path)).rejects.toMatchObject({ name: 'ModalignError', code, details: { file: path } })
  })

  test('a tensor that the architecture does not have is not left out in silence', async () => {
    const { path } = await llamaFile('odd.gguf')
    const bytes = await readFile(path)
    bytes.write('ffn_gote', bytes.indexOf('ffn_gate'))
    await writeFile(path, bytes)
    await expect(openSource(path, { cacheFolder: join(folder, 'cache') })).rejects.toMatchObject({ code: 'GGUF_TENSOR_UNKNOWN' })
  })
})

test('what is neither a folder nor a GGUF file', async () => {
  await writeFile(join(folder, 'a.safetensors'), 'x')
  await expect(openSource(join(folder, 'a.safetensors'))).rejects.toMatchObject({ code: 'LLM_FORM' })
  await expect(openSource(join(folder, 'nothing'))).rejects.toMatchObject({ code: 'FILE_MISSING' })
})

/** The keys that both have. */
function pick(from: Readonly<Record<string, JsonValue>>, like: JsonValue): Readonly<Record<string, JsonValue>> {
  const keys = typeof like === 'object' && like !== null ? Object.keys(like) : []
  return Object.fromEntries(keys.flatMap((key) => (from[key] === undefined || from[key] === null ? [] : [[key, from[key]]])))
}
