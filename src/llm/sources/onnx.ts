/**
 * An ONNX export: `config.json`, `tokenizer.json` and `onnx/model*.onnx` as transformers.js and Optimum lay it out, or onnxruntime-genai's folder. Its weights are used where they
 * lie, in float32, float16 or blocks of 4 or 8 bits; the family's formula takes the place of its nodes, differentiable for training and fused again for generation.
 */
import { readdir } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../../errors.ts'
import { integers } from '../../graph/tensor.ts'
import { fileError } from '../../io/file-error.ts'
import type { JsonValue } from '../../io/json.ts'
import { lower } from '../../onnx/lower.ts'
import { createLocalSession } from '../../runtime/local.ts'
import { createChatTemplate } from '../../text/chat-template.ts'
import { loadTokenizer, readJson, readTemplateFiles, requireTokenizer } from '../../text/model-folder.ts'
import { chosenTemplate } from '../../text/template-choice.ts'
import { traceDecoder } from '../adapters/plan.ts'
import type { Decoder } from '../decoder.ts'
import { checkAttributes, withoutUnusedWindow } from '../exports/export-attributes.ts'
import { configFromExport, type ExportConfig, exportConfigSchema, type GenaiConfig, genaiConfigSchema } from '../exports/export-config.ts'
import { type ExportFile, readExport } from '../exports/export-file.ts'
import { type ExportWeights, exportLookup, exportWeights, type StoredMatrix, type TableSize } from '../exports/export-weights.ts'
import { buildDecoder } from '../families/index.ts'
import { fingerprintsOf, once } from './folder.ts'
import type { ModelSource, SourceOptions } from './model-source.ts'

const largestConfigBytes = 1_048_576
const embeddingsName = 'model.embed_tokens.weight'

/** The .onnx files of a model folder, its own and those of `onnx/`; none where the folder is no export. */
export async function exportFiles(folder: string): Promise<readonly string[]> {
  const names = await readdir(folder, { withFileTypes: true }).catch((error: unknown) => {
    throw fileError(error, folder, 'a model folder')
  })
  if (names.some(({ name }) => name.endsWith('.safetensors'))) return []
  const inside = names.some((entry) => entry.name === 'onnx' && entry.isDirectory()) ? await readdir(join(folder, 'onnx')) : []
  return [...names.map(({ name }) => name), ...inside.map((name) => join('onnx', name))]
    .filter((name) => name.endsWith('.onnx'))
    .map((name) => join(folder, name))
}

/**
 * @param path a folder, of whose exports `model.onnx` is taken, or the only one; or the file of one export: `MODEL/onnx/model_q4.onnx`
 * @throws ModalignError `LLM_AMBIGUOUS`, `LLM_CONFIG_MISSING`, `LLM_CONFIG`, `LLM_EXPORT_*` (a kind of export that is not understood, or one of another model than config.json
 * says), `ONNX_*`, `TENSOR_MISSING`, `WEIGHT_SHAPE`, `TOKENIZER_*`
 */
export async function openExport(path: string, options: SourceOptions = {}): Promise<ModelSource> {
  const isFile = path.endsWith('.onnx')
  const file = isFile ? path : chosen(path, await exportFiles(path))
  const own = dirname(resolve(file))
  const folder = isFile && basename(own) === 'onnx' ? dirname(own) : isFile ? own : resolve(path)
  const configFile = join(folder, 'config.json')
  const exported = await readExport(file)
  const { config: said, weights } = await described(folder, configFile, exported)
  await checkAttributes(exported, said)
  const config = withoutUnusedWindow(exported, said)
  const size = sizeOf(config)
  const embeddings = weights.table === undefined ? await separateTable(exported, size) : { table: weights.table, file: undefined }
  // A head in blocks is not the table that it was made from.
  const separateHead = weights.matrices.get('lm_head')?.layout === 'blocks'
  const json = jsonOf({ ...config, ...(separateHead && { tie_word_embeddings: false }) })
  const used = new Set<string>()
  const heads = config.num_attention_heads
  const headDim = config.head_dim ?? config.hidden_size / heads
  const kvRows = (config.num_key_value_heads ?? heads) * headDim
  const lookup = exportLookup(weights, {
    file,
    embeddingsName,
    table: embeddings.table,
    attention: { query: heads * headDim, key: kvRows, value: kvRows },
    used: (module) => used.add(module),
  })
  const { decoder } = traceDecoder((change = (same) => same) => buildDecoder(json, change(lookup), configFile))
  checkUsed(exported, weights, used)
  const [templateFiles, template] = await Promise.all([
    readTemplateFiles(folder),
    chosenTemplate(options.template),
    requireTokenizer(folder),
  ])
  return {
    label: basename(folder),
    path: resolve(path),
    config: json,
    configFile,
    weights: lookup,
    fingerprints: fingerprintsOf([...exported.files, ...(embeddings.file?.files ?? [])]),
    rms: () => sampledRms(decoder),
    tokenizer: () => loadTokenizer(folder),
    template: once(() => createChatTemplate({ ...templateFiles, ...template })),
    generationConfig: await readJson(join(folder, 'generation_config.json'), largestConfigBytes),
  }
}

/** Whichever of a folder's exports stands for the model: others are variants of its precision, or parts. */
function chosen(folder: string, files: readonly string[]): string {
  const named =
    files.find((file) => basename(file) === 'model.onnx') ?? files.find((file) => basename(file) === 'decoder_model_merged.onnx')
  const models = files.filter((file) => /^(model|decoder_model)(_.*)?\.onnx$/.test(basename(file)))
  const [only] = models.length > 0 ? models : files
  if (named !== undefined) return named
  if (only !== undefined && models.length <= 1) return only
  throw new ModalignError({
    code: 'LLM_AMBIGUOUS',
    file: folder,
    got: models.map((file) => basename(file)).join(', ') || 'no .onnx file',
    expected: 'model.onnx, or one export',
    hint: 'name the file itself, such as onnx/model_q4.onnx',
  })
}

/** config.json, or what stands in for it. */
async function described(
  folder: string,
  configFile: string,
  file: ExportFile,
): Promise<{ readonly config: ExportConfig; readonly weights: ExportWeights }> {
  const json = await readJson(configFile, largestConfigBytes)
  if (json !== undefined) {
    const config = parsedConfig(json, configFile)
    return { config, weights: await exportWeights(file, sizeOf(config)) }
  }
  const genaiFile = join(folder, 'genai_config.json')
  const genai = genaiConfigSchema.safeParse(await readJson(genaiFile, largestConfigBytes))
  if (!genai.success) {
    throw new ModalignError({
      code: 'LLM_CONFIG_MISSING',
      file: configFile,
      expected: 'config.json, or the genai_config.json of an export of onnxruntime-genai',
      hint: 'copy config.json from the model that was exported',
    })
  }
  const weights = await exportWeights(file, tableSizeOf(genai.data))
  return { config: parsedConfig(await configFromExport(genai.data, file, weights), genaiFile), weights }
}

function parsedConfig(json: unknown, file: string): ExportConfig {
  const parsed = exportConfigSchema.safeParse(json)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  throw new ModalignError({
    code: issue?.path[0] === 'model_type' ? 'LLM_EXPORT_FAMILY' : 'LLM_CONFIG',
    file,
    field: `/${issue?.path.join('/') ?? ''}`,
    expected: issue?.message,
    hint: issue?.path[0] === 'model_type' ? 'of other families take the original model folder or a GGUF file' : undefined,
  })
}

const jsonOf = (value: object): JsonValue => z.json().parse(value)
const sizeOf = ({ vocab_size: vocabulary, hidden_size: width }: ExportConfig): TableSize => ({ vocabulary, width })
const tableSizeOf = ({ model }: GenaiConfig): TableSize => ({ vocabulary: model.vocab_size, width: model.decoder.hidden_size })

/** An export that begins with `inputs_embeds` has its table in a file of its own. */
async function separateTable(
  { path, inputs }: ExportFile,
  size: TableSize,
): Promise<{ readonly table: StoredMatrix; readonly file: ExportFile }> {
  const folder = dirname(path)
  const suffix = /_(?:fp16|q4|q4f16|int4|uint4|q8)(?=\.onnx$)/.exec(path)?.[0] ?? ''
  const names = ['embed_tokens', 'embeddings', 'embedding'].flatMap((name) => [`${name}${suffix}.onnx`, `${name}.onnx`])
  const present = new Set(await readdir(folder))
  for (const name of new Set(names)) {
    if (!present.has(name)) continue
    const file = await readExport(join(folder, name))
    const { table } = await exportWeights(file, size)
    if (table !== undefined) return { table, file }
  }
  throw new ModalignError({
    code: 'LLM_EXPORT_EMBEDDINGS',
    file: path,
    got: inputs.includes('inputs_embeds') ? 'an export that begins with inputs_embeds' : 'an export without a table of embeddings',
    expected: `${names.at(0)} beside it, with a table [${size.vocabulary}, ${size.width}]`,
  })
}

/** Every matrix of the export, with its bias, must have its place in the family's formula: else it computes something else. @throws LLM_EXPORT_LAYER */
function checkUsed({ path }: ExportFile, { matrices, vectors }: ExportWeights, used: ReadonlySet<string>): void {
  const biases = [...matrices.keys()].map((module) => `${module}.bias`).filter((name) => vectors.has(name))
  const left = [...matrices.keys(), ...biases].filter((name) => !used.has(name) && name !== 'lm_head')
  if (left.length === 0) return
  throw new ModalignError({
    code: 'LLM_EXPORT_LAYER',
    file: path,
    field: left[0],
    got: `${left.length} products that the model's family does not have`,
    expected: 'the layers that config.json describes',
  })
}

const sampledRows = 256

/** Of evenly spaced rows of the table. */
async function sampledRms({ embed, vocabularySize }: Decoder): Promise<number> {
  const rows = Array.from(
    { length: Math.min(sampledRows, vocabularySize) },
    (_, i) => Math.floor((i * vocabularySize) / sampledRows) % vocabularySize,
  )
  const { bytes, externalRoot, externalData } = lower({ outputs: { rows: embed(integers(rows)) } })
  await using session = await createLocalSession(
    { bytes, ...(externalRoot !== undefined && { externalRoot }), ...(externalData !== undefined && { externalData }) },
    { device: 'cpu', threads: 1, prepacking: false },
  )
  const { rows: values } = await session.run({})
  if (values?.dtype !== 'float32') throw new Error('internal: embeddings are float32')
  return Math.sqrt(values.data.reduce((sum, value) => sum + value * value, 0) / values.data.length)
}
