/** A language model from a folder or a file: decoder, tokenizer, chat template, and a session to generate with. */
import { createHash } from 'node:crypto'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { Trainables } from '../graph/parameters.ts'
import type { ChatTemplate } from '../text/chat-template.ts'
import type { Tokenizer } from '../text/tokenizer.ts'
import type { AdapterSettings } from './adapters/settings.ts'
import type { BuildDecoder, Decoder } from './decoder.ts'
import { buildDecoder } from './families/index.ts'
import type { GenerationOptions } from './generation/generate-tokens.ts'
import { closeGeneration, createGenerator, type GeneratorOptions, openGeneration, type TextGenerator } from './generation/generator.ts'
import { type GenerationThread, startThread } from './generation/thread.ts'
import { type ModelSource, openSource, type SourceOptions } from './sources/index.ts'

export interface LanguageModelOptions extends GeneratorOptions, SourceOptions {
  /**
   * Open the session for generation at once, while tokenizer and template are read: the first answer comes sooner by what these take. For a model that will answer as it is; one that
   * is trained or adapted would hold its weights twice. Default false: it is opened when it is first needed.
   */
  readonly preload?: boolean
}

export interface LanguageModel extends TextGenerator {
  /** The folder's or file's name. */
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
  /** Whether the template was chosen (`LanguageModelOptions.template`) and is not the model's own: a saved model then keeps its text. */
  readonly templateChosen?: boolean
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

/** What generation_config.json may say about sampling; `do_sample: false` (the default) means greedy. */
const generationDefaults = z.object({
  do_sample: z.boolean().nullish(),
  temperature: z.number().nullish(),
  top_k: z.int().nullish(),
  top_p: z.number().nullish(),
  repetition_penalty: z.number().nullish(),
})

/**
 * Loads a language model from a Hugging Face folder (`config.json`, `*.safetensors`, `tokenizer.json`, `tokenizer_config.json`), from a GGUF file, or from an ONNX export (a folder or its .onnx file; see `sources/onnx.ts`). float32 weights are
 * referred to where they lie; others are brought into that form once, in a file of the cache folder that every session maps. A model may also be named as on the Hugging Face
 * Hub (`org/name@revision`): it is looked for in the Hugging Face cache and, only with `download: true`, downloaded into it (`resolveModel`).
 *
 * @throws LLM_CONFIG_MISSING, LLM_FAMILY_UNKNOWN, LLM_CONFIG, LLM_FORM, HUB_*, CHECKPOINT_*, GGUF_*, WEIGHT_*, TOKENIZER_*, DISK_*
 * @example
 * await using llm = await loadLanguageModel('models/SmolLM2-135M-Instruct')
 * llm.decoder.hiddenSize // 576
 */
export async function loadLanguageModel(where: string, options: LanguageModelOptions = {}): Promise<LanguageModel> {
  const started = options.preload === true ? startThread(options.device) : undefined
  let opened: Promise<GenerationThread> | undefined
  try {
    const source = await openSource(where, options)
    const { config, configFile } = source
    const build: BuildDecoder = (change = (same) => same) => buildDecoder(config, change(source.weights), configFile)
    const decoder = build()
    opened = started && openGeneration(decoder, options, started)
    // Whoever generates is told.
    opened?.catch(() => undefined)
    return languageModel({ ...(await described(source, decoder, options)), decoder, build, opened, options })
  } catch (error) {
    await Promise.all([closeGeneration(opened), started?.worker.dispose()])
    throw error
  }
}

type Described = Omit<Parts, 'decoder' | 'build' | 'opened' | 'options'>

/** What is not needed to open the session. */
async function described(source: ModelSource, decoder: Decoder, options: LanguageModelOptions): Promise<Described> {
  const { config, configFile } = source
  const tokenizer = await source.tokenizer()
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
  for (const fingerprint of await source.fingerprints()) hash.update(fingerprint)
  return {
    label: source.label,
    folder: source.path,
    identity: hash.digest('hex'),
    embeddingRms: (await source.rms(decoder.embeddingsName)) * (decoder.embeddingScale ?? 1),
    tokenizer,
    template: source.template(),
    ...(options.template !== undefined && { templateChosen: true }),
    defaults: samplingDefaults(source.generationConfig),
  }
}

interface Parts
  extends Pick<
    LanguageModel,
    'label' | 'folder' | 'identity' | 'decoder' | 'build' | 'embeddingRms' | 'tokenizer' | 'template' | 'templateChosen'
  > {
  readonly defaults: GenerationOptions
  readonly opened: Promise<GenerationThread> | undefined
  readonly options: LanguageModelOptions
}

function languageModel({ defaults, opened, options, ...parts }: Parts): LanguageModel {
  const { decoder: own, tokenizer } = parts
  const source = { tokenizer, stopTokenIds: tokenizer.eosIds, defaults }
  const generatorOf = (decoder: Decoder): TextGenerator => createGenerator({ ...source, decoder }, options)
  return { ...parts, generatorOf, ...createGenerator({ ...source, decoder: own, ...(opened && { opened }) }, options) }
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
