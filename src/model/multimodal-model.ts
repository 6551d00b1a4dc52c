/** An encoder, a projector and a language model, composed: what tunes, chats, captions and is saved. */
import { ModalignError } from '../errors.ts'
import { multiplyDims } from '../graph/dim.ts'
import { featureStatistics, initialValues } from '../graph/initial-values.ts'
import { reshape } from '../graph/operators/reshape.ts'
import type { Parameter, Trainables } from '../graph/parameters.ts'
import { dimAt } from '../graph/tensor.ts'
import type { GenerationOptions, GenerationRequest } from '../llm/generation.ts'
import type { LanguageModel } from '../llm/language-model.ts'
import { lower } from '../onnx/lower.ts'
import { createSession } from '../runtime/node.ts'
import type { DeviceRequest, Session } from '../runtime/session.ts'
import type { MediaPart } from '../text/conversation.ts'
import { type PromptIds, renderPrompt } from '../text/label-spans.ts'
import type { Encoder, Features, MediaSource, Projector, TokenGrid, Turn } from './contracts.ts'
import { localReader, type MediaReader, type ReadOptions } from './media-reader.ts'
import { type MediaPath, project } from './splice.ts'
import { gridTokens } from './token-grid.ts'

export interface ImageBranch {
  readonly encoder: Encoder<'image'>
  readonly projector: Projector
}
export interface ComposeOptions {
  readonly llm: LanguageModel
  readonly image: ImageBranch
  /** Of the projector's first values. Default 0. */
  readonly seed?: number
  /** Trained values instead of first ones. */
  readonly parameters?: Trainables
  /** Where the projector runs. Default `cpu`: it is small. */
  readonly device?: DeviceRequest
  /** Default: media are decoded in this process. */
  readonly reader?: MediaReader
}

export type ChatOptions = GenerationOptions & ReadOptions
export interface CaptionOptions extends ChatOptions {
  /** Default `What is this?` */
  readonly prompt?: string
}

/**
 * Puts an encoder, a projector and a language model together. Nothing is loaded that `loadLanguageModel` and the encoder have not loaded; sessions open when first needed.
 *
 * @throws PROJECTOR_SHAPE, MODEL_PARAMETERS if `parameters` are not the projector's.
 * @example
 * const model = await compose({ llm: await loadLanguageModel('models/SmolLM2-135M-Instruct'), image: { encoder: await mobilenetV2('mobilenet.onnx'), projector: mlp({ depth: 2 }) } })
 */
export async function compose(options: ComposeOptions): Promise<MultimodalModel> {
  return new MultimodalModel(options)
}

export class MultimodalModel implements AsyncDisposable {
  readonly llm: LanguageModel
  readonly image: ImageBranch
  readonly reader: MediaReader
  /** Features of one picture, and where they lie. */
  readonly grid: TokenGrid
  /** How many of the language model's tokens one picture occupies. */
  readonly imageTokens: number
  readonly #device: DeviceRequest
  #parameters: Trainables
  /** Whether the projector still has its first values. */
  #fresh = true
  #projection: Promise<Session> | undefined

  constructor({ llm, image, seed = 0, parameters, device = 'cpu', reader = localReader }: ComposeOptions) {
    this.llm = llm
    this.image = image
    this.reader = reader
    this.#device = device
    this.grid = image.encoder.grid({})
    this.imageTokens = gridTokens(image.projector.definition.tokens(this.grid, image.projector.options))
    this.#parameters = initialValues(this.#declared(), seed)
    if (parameters !== undefined) this.setParameters(parameters)
  }

  get mediaPath(): MediaPath {
    return {
      modality: 'image',
      projector: this.image.projector,
      grid: this.grid,
      width: this.image.encoder.width,
      embeddingRms: this.llm.embeddingRms,
    }
  }

  /** The projector's values, by names such as `image.0.weight`. */
  get parameters(): Trainables {
    return this.#parameters
  }

  /** Whether the projector begins with statistics of the training data, which it has not seen yet. */
  get needsStatistics(): boolean {
    return this.#fresh && this.#declared().some(({ initializer }) => initializer.kind === 'feature-mean')
  }

  /** Gives a fresh projector its data's statistics. features float32 [tokens, width] each. */
  setStatistics(features: Iterable<Float32Array>): void {
    this.setParameters({ ...this.#parameters, ...featureStatistics(this.#declared(), features, this.image.encoder.width) })
  }

  /** @throws MODEL_PARAMETERS naming the first difference. */
  setParameters(values: Trainables): void {
    for (const [name, { dims }] of Object.entries(this.#parameters)) {
      const given = values[name]
      if (given === undefined || String(given.dims) !== String(dims)) {
        throw new ModalignError({
          code: 'MODEL_PARAMETERS',
          field: name,
          got: given === undefined ? 'nothing' : `[${given.dims.join(', ')}]`,
          expected: `[${dims.join(', ')}]`,
        })
      }
    }
    const unknown = Object.keys(values).find((name) => !Object.hasOwn(this.#parameters, name))
    if (unknown !== undefined)
      throw new ModalignError({ code: 'MODEL_PARAMETERS', field: unknown, expected: 'a parameter of this projector' })
    this.#fresh = false
    this.#parameters = Object.fromEntries(
      Object.keys(this.#parameters).map((name) => [name, values[name] ?? { dims: [], data: new Float32Array(0) }]),
    )
  }

  /** How many tokens a medium of a conversation occupies: what templates, collation and splice all ask. @throws MODEL_MODALITY */
  mediaTokens(part: MediaPart): number {
    if (part.type === 'image') return this.imageTokens
    throw new ModalignError({ code: 'MODEL_MODALITY', got: part.type, expected: 'image: the model has no encoder for anything else' })
  }

  /** Features of pictures, float32 [pictures, tokens, width]. */
  async encode(sources: readonly MediaSource[], options: ReadOptions = {}): Promise<Features> {
    const inputs = await Promise.all(sources.map(async (source) => this.image.encoder.preprocess(await this.reader.image(source, options))))
    return this.image.encoder.encode(inputs, options.signal === undefined ? {} : { signal: options.signal })
  }

  /** Features to token embeddings, float32 [pictures x imageTokens, hiddenSize]. */
  async project(features: Features, signal?: AbortSignal): Promise<Float32Array> {
    const session = await this.#projectionSession()
    const parameters = Object.fromEntries(
      Object.entries(this.#parameters).map(([name, { dims, data }]) => [name, { dtype: 'float32' as const, dims, data }]),
    )
    const { count, tokens, width, data } = features
    const { embeddings } = await session.run(
      { ...parameters, 'image.features': { dtype: 'float32', dims: [count, tokens, width], data } },
      signal === undefined ? {} : { signal },
    )
    if (embeddings?.dtype !== 'float32') throw new Error('internal: embeddings are float32')
    return embeddings.data
  }

  /** Prompt ids of a conversation that the model is to continue. */
  prompt(turns: readonly Turn[]): PromptIds {
    return renderPrompt(turns, {
      tokenizer: this.llm.tokenizer,
      template: this.llm.template,
      mediaTokens: (part) => this.mediaTokens(part),
    })
  }

  /** Conversations that the model is to continue, with their media's embeddings: what a language model's `generate` takes. */
  async requests(conversations: readonly (readonly Turn[])[], { root, signal }: ReadOptions = {}): Promise<readonly GenerationRequest[]> {
    const prompts = conversations.map((turns) => this.prompt(turns))
    const sources = prompts.flatMap(({ media }) => media.map(({ part }) => part.source))
    if (sources.length === 0) return prompts.map(({ ids }) => ({ ids }))
    const embeddings = await this.project(await this.encode(sources, { root, signal }), signal)
    const each = embeddings.length / sources.length
    let used = 0
    return prompts.map(({ ids, media }) => {
      const start = used
      used += media.length * each
      return { ids, media: embeddings.subarray(start, used) }
    })
  }

  /**
   * Continues a conversation: the answer's text as it comes, never cut inside a character.
   *
   * @throws what decoding, the chat template and generation throw.
   * @example
   * for await (const text of model.chat([{ role: 'user', content: [{ type: 'image', source: 'cat.jpg' }, { type: 'text', text: 'What is this?' }] }])) process.stdout.write(text)
   */
  async *chat(turns: readonly Turn[], { root, signal, ...options }: ChatOptions = {}): AsyncGenerator<string> {
    const requests = await this.requests([turns], { root, signal })
    const decoder = this.llm.tokenizer.streamDecoder({ skipSpecialTokens: true })
    for await (const event of this.llm.generate(requests, { ...options, ...(signal === undefined ? {} : { signal }) })) {
      const text = event.type === 'token' ? decoder.push(event.id) : decoder.end()
      if (text !== '') yield text
    }
  }

  /**
   * One answer for each picture, generated as one batch.
   *
   * @example
   * const [caption] = await model.caption(['cat.jpg'], { prompt: 'Describe the picture.' })
   */
  async caption(sources: readonly MediaSource[], options: CaptionOptions = {}): Promise<readonly string[]> {
    const { root, signal } = options
    return this.answer(sources, await this.encode(sources, { root, signal }), options)
  }

  /** Answers about pictures whose features are known. `sources` serve as the keys of the random numbers. */
  async answer(
    sources: readonly MediaSource[],
    features: Features,
    { prompt = 'What is this?', root: _, signal, ...options }: CaptionOptions = {},
  ): Promise<readonly string[]> {
    const embeddings = await this.project(features, signal)
    const each = embeddings.length / sources.length
    const requests = sources.map((source, index) => {
      const { ids } = this.prompt([
        {
          role: 'user',
          content: [
            { type: 'image', source },
            { type: 'text', text: `\n${prompt}` },
          ],
        },
      ])
      return { ids, media: embeddings.subarray(index * each, (index + 1) * each), ...(typeof source === 'string' ? { key: source } : {}) }
    })
    const answers: number[][] = sources.map(() => [])
    for await (const event of this.llm.generate(requests, { ...options, ...(signal === undefined ? {} : { signal }) })) {
      if (event.type === 'token') answers[event.row]?.push(event.id)
    }
    return answers.map((ids) => this.llm.tokenizer.decode(ids, { skipSpecialTokens: true }).trim())
  }

  /** Closes the projector's session and the encoder; the language model stays with whoever loaded it. */
  async dispose(): Promise<void> {
    const projection = this.#projection
    this.#projection = undefined
    await Promise.all([projection?.then((session) => session.dispose()), this.image.encoder.dispose()])
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  #declared(): readonly Parameter[] {
    return project(this.mediaPath, this.llm.decoder.hiddenSize).scope.parameters
  }

  #projectionSession(): Promise<Session> {
    this.#projection ??= openProjection(this.mediaPath, this.llm.decoder.hiddenSize, this.#device)
    return this.#projection
  }
}

async function openProjection(path: MediaPath, hiddenSize: number, device: DeviceRequest): Promise<Session> {
  const { embeddings, features, scope } = project(path, hiddenSize)
  const rows = multiplyDims(dimAt(embeddings.shape, 0), dimAt(embeddings.shape, 1))
  const { bytes } = lower({
    outputs: { embeddings: reshape(embeddings, [rows, hiddenSize]) },
    inputs: [features, ...scope.parameters.map(({ tensor }) => tensor)],
  })
  return createSession({ bytes }, { device, memoryPattern: false })
}
