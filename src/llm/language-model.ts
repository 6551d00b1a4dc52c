/** A language model from a Hugging Face folder: decoder, tokenizer, chat template, and a session to generate with. */
import { createHash } from 'node:crypto'
import { basename, join, resolve } from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { Trainables } from '../graph/parameters.ts'
import { fileSource } from '../io/byte-source.ts'
import { fingerprint } from '../io/fingerprint.ts'
import { bytesPerElement } from '../tensors.ts'
import type { ChatTemplate } from '../text/chat-template.ts'
import { loadChatTemplate, loadTokenizer, readJson } from '../text/model-folder.ts'
import type { Tokenizer } from '../text/tokenizer.ts'
import { type Checkpoint, openCheckpoint } from '../weights/checkpoint.ts'
import { toFloat32 } from '../weights/float16.ts'
import { tensorFromBytes } from '../weights/safetensors-source.ts'
import type { AdapterSettings } from './adapters/settings.ts'
import { checkpointWeights } from './checkpoint-weights.ts'
import type { BuildDecoder, Decoder } from './decoder.ts'
import { buildDecoder } from './families/index.ts'
import type { GenerationOptions } from './generation.ts'
import { createGenerator, type GeneratorOptions, type TextGenerator } from './generation-session.ts'

export type LanguageModelOptions = GeneratorOptions

export interface LanguageModel extends TextGenerator {
  /** The folder's name. */
  readonly label: string
  /** Where it was loaded from: an absolute path. */
  readonly folder: string
  /** SHA-256 over config, tokenizer and the weights' fingerprints: two models with one identity answer alike. */
  readonly identity: string
  readonly decoder: Decoder
  /** Root mean square of the token embeddings, of a sample of their rows. */
  readonly embeddingRms: number
  readonly tokenizer: Tokenizer
  readonly template: ChatTemplate
  /** Builds `decoder` again, its weights looked up otherwise: what adapters are made with. */
  readonly build: BuildDecoder
  /** Generates with another decoder made from this model, as this model would. */
  readonly generatorOf: (decoder: Decoder) => TextGenerator
  /** What of it is trained, and its present values; absent for a model as it was published. */
  readonly adapters?: Adapters
}

/** What `adapt` adds to a language model. */
export interface Adapters {
  readonly settings: AdapterSettings
  /** The present values, by names such as `llm.model.layers.0.self_attn.q_proj.lora_A.weight`. */
  readonly parameters: Trainables
  /** Takes values of all parameters; the next generation uses them. @throws ADAPTER_PARAMETERS naming the first difference */
  setParameters(values: Trainables): void
}

const largestConfigBytes = 1_048_576

/** What generation_config.json may say about sampling; `do_sample: false` (the default) means greedy. */
const generationDefaults = z.object({
  do_sample: z.boolean().nullish(),
  temperature: z.number().nullish(),
  top_k: z.int().nullish(),
  top_p: z.number().nullish(),
  repetition_penalty: z.number().nullish(),
})

/**
 * Loads a language model from a Hugging Face folder: `config.json`, `*.safetensors`, `tokenizer.json`, `tokenizer_config.json`. Weights are referred to where they lie.
 *
 * @throws LLM_CONFIG_MISSING, LLM_FAMILY_UNKNOWN, LLM_CONFIG, CHECKPOINT_*, WEIGHT_*, TOKENIZER_*, TEMPLATE_*
 * @example
 * await using llm = await loadLanguageModel('models/SmolLM2-135M-Instruct')
 * llm.decoder.hiddenSize // 576
 */
export async function loadLanguageModel(folder: string, options: LanguageModelOptions = {}): Promise<LanguageModel> {
  const configFile = join(folder, 'config.json')
  const config = await readJson(configFile, largestConfigBytes)
  if (config === undefined) {
    throw new ModalignError({
      code: 'LLM_CONFIG_MISSING',
      file: configFile,
      expected: 'a Hugging Face model folder with config.json',
      hint: 'name the folder that holds config.json, *.safetensors and tokenizer.json',
    })
  }
  const [checkpoint, tokenizer, template] = await Promise.all([openCheckpoint(folder), loadTokenizer(folder), loadChatTemplate(folder)])
  const lookup = checkpointWeights(checkpoint)
  const build: BuildDecoder = (change = (same) => same) => buildDecoder(config, change(lookup), configFile)
  const decoder = build()
  if (tokenizer.vocabularySize > decoder.vocabularySize) {
    throw new ModalignError({
      code: 'LLM_VOCABULARY',
      file: configFile,
      field: '/vocab_size',
      got: String(decoder.vocabularySize),
      expected: `at least the tokenizer's ${tokenizer.vocabularySize}`,
      hint: 'tokenizer and weights are of different models',
    })
  }
  const hash = createHash('sha256').update(JSON.stringify(config)).update(tokenizer.identity)
  for (const file of new Set([...checkpoint.tensors.values()].map((tensor) => tensor.file)))
    hash.update(await fingerprint(await fileSource(file)))
  const defaults = samplingDefaults(await readJson(join(folder, 'generation_config.json'), largestConfigBytes))
  return languageModel({
    label: basename(resolve(folder)),
    folder: resolve(folder),
    identity: hash.digest('hex'),
    decoder,
    build,
    embeddingRms: await sampledRms(checkpoint, decoder.embeddingsName),
    tokenizer,
    template,
    defaults,
    options,
  })
}

const sampledBlocks = 16
const sampledBytes = 65_536

/** Of evenly spaced blocks, so that a table of gigabytes is not read for one number. */
async function sampledRms(checkpoint: Checkpoint, name: string): Promise<number> {
  const { file, dtype, offset, byteLength } = checkpoint.tensor(name)
  const source = await fileSource(file)
  const size = bytesPerElement[dtype]
  const block = Math.min(sampledBytes, byteLength)
  let [sum, count] = [0, 0]
  for (let index = 0; index < sampledBlocks; index++) {
    const start = Math.floor(((byteLength - block) * index) / (sampledBlocks - 1) / size) * size
    const values = toFloat32(tensorFromBytes(await source.read(offset + start, block), { dtype, shape: [block / size] }, { name, file }))
    for (const value of values) sum += value * value
    count += values.length
  }
  return Math.sqrt(sum / count)
}

interface Parts
  extends Pick<LanguageModel, 'label' | 'folder' | 'identity' | 'decoder' | 'build' | 'embeddingRms' | 'tokenizer' | 'template'> {
  readonly defaults: GenerationOptions
  readonly options: LanguageModelOptions
}

function languageModel({ defaults, options, ...parts }: Parts): LanguageModel {
  const generatorOf = (decoder: Decoder): TextGenerator =>
    createGenerator({ decoder, stopTokenIds: parts.tokenizer.eosIds, defaults }, options)
  return { ...parts, generatorOf, ...generatorOf(parts.decoder) }
}

function samplingDefaults(json: unknown): GenerationOptions {
  const parsed = generationDefaults.safeParse(json ?? {})
  if (!parsed.success || parsed.data.do_sample !== true) return {}
  const { temperature, top_k: topK, top_p: topP, repetition_penalty: repetitionPenalty } = parsed.data
  return {
    temperature: temperature ?? 1,
    ...(topK == null ? {} : { topK }),
    ...(topP == null ? {} : { topP }),
    ...(repetitionPenalty == null ? {} : { repetitionPenalty }),
  }
}
