/** What a model file or folder is, as plain data. */
import { readdir, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { fileSource } from '../io/byte-source.ts'
import { fileError } from '../io/file-error.ts'
import type { JsonObject } from '../io/json.ts'
import { modalities } from '../model/branches.ts'
import { type ModelManifest, projectorFile, readManifest } from '../model/saved-model.ts'
import { valueDescription } from '../onnx/build.ts'
import { readOnnxFile } from '../onnx/load.ts'
import { listTensors, mainGraph } from '../onnx/surgery.ts'
import { elementCount } from '../tensors.ts'
import { loadChatTemplate, readJson } from '../text/model-folder.ts'
import { openCheckpoint } from '../weights/checkpoint.ts'
import { openGguf } from '../weights/gguf/gguf.ts'
import { openSafetensors, type SafetensorsEntry } from '../weights/safetensors.ts'

export interface TensorRow {
  readonly name: string
  readonly dtype: string
  /** A size is a number, a name, or '' where it is unknown; absent where even the rank is. */
  readonly dims?: readonly (number | string)[]
  /** ONNX: `input`, `initializer`, or the operator that makes it. */
  readonly origin?: string
}

export type Inspection =
  | {
      readonly kind: 'onnx'
      readonly file: string
      readonly producer: string
      readonly irVersion: number
      /** Version by domain; '' is the standard operators. */
      readonly opsets: Readonly<Record<string, number>>
      readonly inputs: readonly TensorRow[]
      readonly outputs: readonly TensorRow[]
      readonly parameters: number
      /** Most frequent first. */
      readonly operators: readonly { readonly operator: string; readonly count: number }[]
      readonly tensors: readonly TensorRow[]
    }
  | {
      readonly kind: 'safetensors'
      readonly file: string
      readonly bytes: number
      readonly parameters: number
      readonly metadata: Readonly<Record<string, string>>
      readonly tensors: readonly TensorRow[]
    }
  | {
      readonly kind: 'gguf'
      readonly file: string
      readonly bytes: number
      /** Its metadata but for lists (the vocabulary) and long texts (the chat template). */
      readonly metadata: JsonObject
      readonly parameters: number
      /** How many tensors have each type. */
      readonly dtypes: Readonly<Record<string, number>>
      readonly tokenizer: boolean
      readonly chatTemplate: boolean
      readonly tensors: readonly TensorRow[]
    }
  | {
      readonly kind: 'modalign'
      readonly folder: string
      readonly manifest: ModelManifest
      readonly parameters: number
      readonly tensors: readonly TensorRow[]
    }
  | {
      readonly kind: 'language-model'
      readonly folder: string
      /** What of config.json says what the model is. */
      readonly config: JsonObject
      readonly parameters: number
      readonly bytes: number
      readonly files: readonly string[]
      readonly dtypes: Readonly<Record<string, number>>
      readonly tokenizer: boolean
      readonly chatTemplate: boolean
      readonly tensors: readonly TensorRow[]
    }

/**
 * @throws ModalignError `INPUT_UNKNOWN` for what is none of them, and what reading the parts throws
 * @example
 * const found = await inspectModel('models/SmolLM2-135M-Instruct')
 */
export async function inspectModel(path: string): Promise<Inspection> {
  const absolute = resolve(path)
  const found = await stat(absolute).catch((error: unknown) => {
    throw fileError(error, path, 'a model file or folder')
  })
  if (!found.isDirectory()) return modelFile(absolute)
  const names = await readdir(absolute)
  if (names.includes('modalign.json')) return savedModel(absolute)
  if (names.includes('config.json')) return languageModel(absolute, names)
  const candidates = names.filter((name) => /\.(gguf|onnx|safetensors)$/.test(name))
  throw new ModalignError({
    code: 'INPUT_UNKNOWN',
    file: path,
    got: 'a folder with neither modalign.json nor config.json',
    expected: 'a tuned model, a Hugging Face language model, or a GGUF, ONNX or safetensors file',
    ...(candidates.length > 0 && { hint: `in it are ${candidates.slice(0, 10).join(', ')}: name one` }),
  })
}

/** By its first bytes, not by its name. */
async function modelFile(file: string): Promise<Inspection> {
  const source = await fileSource(file)
  const start = String.fromCharCode(...(await source.read(0, Math.min(9, source.size))))
  if (start.startsWith('GGUF')) return ggufFile(file)
  return start.endsWith('{') || file.endsWith('.safetensors') ? safetensorsFile(file) : onnxFile(file)
}

async function safetensorsFile(file: string): Promise<Inspection> {
  const { tensors, metadata, size } = await openSafetensors(file)
  return {
    kind: 'safetensors',
    file,
    bytes: size,
    parameters: countParameters(tensors),
    metadata: Object.fromEntries(metadata),
    tensors: rowsOf(tensors),
  }
}

const longestMetadata = 200

async function ggufFile(file: string): Promise<Inspection> {
  const { metadata, tensors, source } = await openGguf(file)
  const shown = [...metadata].flatMap(([key, { type, value }]): [string, string | number | boolean][] => {
    if (type === 'array' || (type === 'string' && value.length > longestMetadata)) return []
    return [[key, typeof value === 'bigint' ? value.toString() : value]]
  })
  return {
    kind: 'gguf',
    file,
    bytes: source.size,
    metadata: Object.fromEntries(shown),
    parameters: countParameters(tensors),
    dtypes: counted([...tensors.values()].map(({ type }) => type.name)),
    tokenizer: metadata.has('tokenizer.ggml.tokens'),
    chatTemplate: metadata.has('tokenizer.chat_template'),
    tensors: [...tensors].map(([name, { type, shape }]) => ({ name, dtype: type.name, dims: shape })),
  }
}

function counted(names: readonly string[]): Readonly<Record<string, number>> {
  const counts = new Map<string, number>()
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1)
  return Object.fromEntries(counts)
}

function countParameters(tensors: ReadonlyMap<string, Pick<SafetensorsEntry, 'shape'>>): number {
  return [...tensors.values()].reduce((sum, { shape }) => sum + elementCount(shape), 0)
}

function rowsOf(tensors: ReadonlyMap<string, SafetensorsEntry>): readonly TensorRow[] {
  return [...tensors].map(([name, { dtype, shape }]) => ({ name, dtype, dims: shape }))
}

async function savedModel(folder: string): Promise<Inspection> {
  const manifest = await readManifest(join(folder, 'modalign.json'))
  const known = modalities.filter((modality) => manifest[modality] !== undefined)
  const files = await Promise.all(known.map((modality) => openSafetensors(join(folder, projectorFile(modality)))))
  const tensors = new Map(files.flatMap((one) => [...one.tensors]))
  return { kind: 'modalign', folder, manifest, parameters: countParameters(tensors), tensors: rowsOf(tensors) }
}

async function onnxFile(file: string): Promise<Inspection> {
  const { model } = await readOnnxFile(file)
  const graph = mainGraph(model)
  const counts = new Map<string, number>()
  for (const { domain, opType } of graph.node) {
    const operator = domain === '' || domain === 'ai.onnx' ? opType : `${domain}.${opType}`
    counts.set(operator, (counts.get(operator) ?? 0) + 1)
  }
  const initializers = new Set(graph.initializer.map(({ name }) => name))
  const described = (info: (typeof graph.input)[number]): TensorRow => row(valueDescription(info))
  return {
    kind: 'onnx',
    file,
    producer: [model.producerName, model.producerVersion].filter((text) => text !== '').join(' '),
    irVersion: Number(model.irVersion),
    opsets: Object.fromEntries(model.opsetImport.map(({ domain, version }) => [domain, Number(version)])),
    inputs: graph.input.filter(({ name }) => !initializers.has(name)).map(described),
    outputs: graph.output.map(described),
    parameters: graph.initializer.reduce((sum, { dims }) => sum + elementCount(dims.map(Number)), 0),
    operators: [...counts]
      .map(([operator, count]) => ({ operator, count }))
      .sort((a, b) => b.count - a.count || (a.operator < b.operator ? -1 : 1)),
    tensors: listTensors(model).map(({ origin, opType, ...value }) => ({ ...row(value), origin: opType ?? origin })),
  }
}

function row({
  name,
  dtype,
  dims,
}: {
  readonly name: string
  readonly dtype?: string
  readonly dims?: readonly (number | string)[]
}): TensorRow {
  return { name, dtype: dtype ?? '?', ...(dims && { dims }) }
}

/** What of a config.json says what the model is. */
const telling = [
  'architectures',
  'model_type',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'num_key_value_heads',
  'vocab_size',
  'max_position_embeddings',
  'tie_word_embeddings',
  'torch_dtype',
] as const
const configSchema: z.ZodType<JsonObject> = z.record(z.string(), z.json())

async function languageModel(folder: string, names: readonly string[]): Promise<Inspection> {
  const config = configSchema.safeParse(await readJson(join(folder, 'config.json'), 2 ** 20))
  if (!config.success)
    throw new ModalignError({ code: 'LLM_CONFIG', file: join(folder, 'config.json'), got: 'another value', expected: 'a JSON object' })
  const { tensors, files } = await openCheckpoint(folder)
  return {
    kind: 'language-model',
    folder,
    config: Object.fromEntries(telling.flatMap((key) => (config.data[key] === undefined ? [] : [[key, config.data[key]]]))),
    parameters: countParameters(tensors),
    bytes: files.reduce((sum, { size }) => sum + size, 0),
    files: files.map(({ file }) => file ?? ''),
    dtypes: counted([...tensors.values()].map(({ dtype }) => dtype)),
    tokenizer: names.includes('tokenizer.json'),
    chatTemplate: await hasTemplate(folder),
    tensors: rowsOf(tensors),
  }
}

/** A template that cannot be read is an error; none is an answer. */
async function hasTemplate(folder: string): Promise<boolean> {
  try {
    await loadChatTemplate(folder)
    return true
  } catch (error) {
    if (error instanceof ModalignError && error.code === 'TEMPLATE_MISSING') return false
    throw error
  }
}
