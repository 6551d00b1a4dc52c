/** Encoders, projectors and a language model, composed: what tunes, chats, captions and is saved. */
import { ModalignError } from '../errors.ts'
import { multiplyDims } from '../graph/dim.ts'
import { featureStatistics, initialValues } from '../graph/initial-values.ts'
import { reshape } from '../graph/operators/reshape.ts'
import type { Parameter, Trainables } from '../graph/parameters.ts'
import { dimAt } from '../graph/tensor.ts'
import type { GenerationOptions, GenerationRequest } from '../llm/generation/generate-tokens.ts'
import type { Adapters, LanguageModel } from '../llm/language-model.ts'
import { lower } from '../onnx/lower.ts'
import { createSession } from '../runtime/node.ts'
import type { DeviceRequest, Session } from '../runtime/session.ts'
import { float32Tensor } from '../tensors.ts'
import type { MediaPart } from '../text/conversation.ts'
import { type PromptIds, renderPrompt } from '../text/label-spans.ts'
import { type Branch, type Branches, branchOf, checkBranches, mediaPath, modalitiesOf } from './branches.ts'
import type { MediaSource, Modality, Turn } from './contracts.ts'
import { encodeMedia, type MediumFeatures, prepareMedium, withTexts } from './media-features.ts'
import { stackFeatures } from './media-feeds.ts'
import { localReader, type MediaReader, type ReadOptions } from './media-reader.ts'
import { type MediaPath, project } from './splice.ts'
import { projectedTokens } from './token-grid.ts'

export interface ComposeOptions extends Branches {
  readonly llm: LanguageModel
  /** Of the projectors' first values. Default 0. */
  readonly seed?: number
  /** Trained values instead of first ones. */
  readonly parameters?: Trainables
  /** Where the projectors run. Default `cpu`: they are small. */
  readonly device?: DeviceRequest
  /** Default: media are decoded in this process. */
  readonly reader?: MediaReader
}

export type ChatOptions = GenerationOptions & ReadOptions
export interface CaptionOptions extends ChatOptions {
  /** What the media are. Default `image`. */
  readonly modality?: Modality
  /** Default `What is this?` */
  readonly prompt?: string
}

/**
 * Puts encoders, projectors and a language model together. Nothing is loaded that `loadLanguageModel` and the encoders have not loaded; sessions open when first needed.
 *
 * @throws PROJECTOR_SHAPE, MODEL_PARAMETERS if `parameters` are not the projectors', MODEL_MODALITY if there is no encoder, or one in another's place.
 * @example
 * const model = await compose({ llm: await loadLanguageModel('models/SmolLM2-135M-Instruct'), image: { encoder: await mobilenetV2('mobilenet.onnx'), projector: mlp({ depth: 2 }) } })
 */
export async function compose(options: ComposeOptions): Promise<MultimodalModel> {
  return new MultimodalModel(options)
}

export class MultimodalModel implements AsyncDisposable {
  readonly llm: LanguageModel
  readonly branches: Branches
  readonly reader: MediaReader
  /** The ways of its media into the language model, always in one order. */
  readonly mediaPaths: readonly MediaPath[]
  readonly #device: DeviceRequest
  #parameters: Trainables
  /** Whether the projectors still have their first values. */
  #fresh = true
  readonly #projections = new Map<Modality, Promise<Session>>()

  constructor({ llm, image, audio, video, seed = 0, parameters, device = 'cpu', reader = localReader }: ComposeOptions) {
    this.llm = llm
    this.branches = { ...(image && { image }), ...(audio && { audio }), ...(video && { video }) }
    checkBranches(this.branches)
    this.reader = reader
    this.#device = device
    this.mediaPaths = this.modalities.map((modality) => mediaPath(modality, this.branch(modality), llm.embeddingRms))
    this.#parameters = initialValues(this.#declared(), seed)
    if (parameters !== undefined) this.setParameters({ ...this.adapterParameters, ...parameters })
  }

  /** What it sees or hears, always in one order. */
  get modalities(): readonly Modality[] {
    return modalitiesOf(this.branches)
  }

  /** @throws MODEL_MODALITY if the model has no encoder for it */
  branch(modality: Modality): Branch {
    return branchOf(this.branches, modality)
  }

  /** The values of all that is trained: the projectors', by names such as `image.0.weight`, the encoders', `image-encoder.*`, and the language model's adapters', `llm.*`. */
  get parameters(): Trainables {
    return { ...this.#parameters, ...this.adapterParameters }
  }

  /** Those besides the projectors'. */
  get adapterParameters(): Trainables {
    return Object.assign({}, ...this.#adapted.map(({ parameters }) => parameters))
  }

  /** What is trained besides projectors. */
  get #adapted(): readonly Pick<Adapters, 'parameters' | 'setParameters'>[] {
    const encoders = this.modalities.flatMap((modality) => this.branch(modality).encoder.trained ?? [])
    return this.llm.adapters === undefined ? encoders : [...encoders, this.llm.adapters]
  }

  /** Those of the projectors alone. */
  get projectorParameters(): Trainables {
    return this.#parameters
  }

  /** Whether a projector begins with statistics of the training data, which it has not seen yet. */
  get needsStatistics(): boolean {
    return this.#fresh && this.#declared().some(({ initializer }) => initializer.kind === 'feature-mean')
  }

  /** Gives fresh projectors their data's statistics. */
  setStatistics(media: readonly MediumFeatures[]): void {
    const statistics = this.mediaPaths.flatMap(({ modality, width }) => {
      const features = media.filter((one) => one.modality === modality).map(({ data }) => data)
      const own = this.#declared().filter(({ name }) => name.startsWith(`${modality}.`))
      return Object.entries(featureStatistics(own, features, width))
    })
    this.setParameters({ ...this.parameters, ...Object.fromEntries(statistics) })
  }

  /** Values of all that is trained. @throws MODEL_PARAMETERS, ADAPTER_PARAMETERS naming the first difference. */
  setParameters(all: Trainables): void {
    const adapted = this.#adapted
    const isTheirs = (name: string): boolean => adapted.some(({ parameters }) => Object.hasOwn(parameters, name))
    const values = Object.fromEntries(Object.entries(all).filter(([name]) => !isTheirs(name)))
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
    for (const one of adapted) {
      const { parameters } = one
      one.setParameters(Object.fromEntries(Object.entries(all).filter(([name]) => Object.hasOwn(parameters, name))))
    }
    this.#fresh = false
    this.#parameters = Object.fromEntries(
      Object.keys(this.#parameters).map((name) => [name, values[name] ?? { dims: [], data: new Float32Array(0) }]),
    )
  }

  /**
   * How many tokens a medium occupies, as far as can be told before it is decoded: 1 where that depends on its size.
   *
   * @throws MODEL_MODALITY
   */
  plannedTokens({ type }: Pick<MediaPart, 'type'>): number {
    const { projector } = this.branch(type)
    const grid = this.mediaPaths.find(({ modality }) => modality === type)?.grid
    return grid === undefined ? 1 : projectedTokens(projector, grid)
  }

  /** Features of media of any modality, in order. @throws what decoding, preprocessing and encoding throw */
  async encode(media: readonly MediaPart[], { root, signal }: ReadOptions = {}): Promise<readonly MediumFeatures[]> {
    const prepared = await Promise.all(
      media.map((part) => prepareMedium(this.branch(part.type), this.reader, part, { root, signal }, this.llm.tokenizer)),
    )
    return encodeMedia((modality) => this.branch(modality), prepared, signal)
  }

  /** Features to token embeddings, float32 [tokensOut, hiddenSize] each, separators included and text among them left out, in order. */
  async project(media: readonly MediumFeatures[], signal?: AbortSignal): Promise<readonly Float32Array[]> {
    const found: Float32Array[] = []
    for (const path of this.mediaPaths) {
      const indices = media.flatMap((one, index) => (one.modality === path.modality ? [index] : []))
      if (indices.length === 0) continue
      const { feeds, tokensOut } = stackFeatures(
        path,
        indices.flatMap((index) => media[index]?.data ?? []),
      )
      const session = await this.#projection(path)
      const parameters = Object.entries(this.#parameters).filter(([name]) => name.startsWith(`${path.modality}.`))
      const { embeddings } = await session.run(
        { ...Object.fromEntries(parameters.map(([name, { dims, data }]) => [name, float32Tensor(data, dims)])), ...feeds },
        signal === undefined ? {} : { signal },
      )
      if (embeddings?.dtype !== 'float32') throw new Error('internal: embeddings are float32')
      const width = this.llm.decoder.hiddenSize
      const separator = this.#parameters[`${path.modality}.separator`]?.data
      for (const [place, index] of indices.entries()) {
        const { tokensOut: length = 0, separators = [], texts = [] } = media[index] ?? {}
        const start = place * tokensOut * width
        const own = embeddings.data.subarray(start, start + (length - separators.length - texts.length) * width)
        found[index] = separator === undefined ? own : separated(own, separators, separator)
      }
    }
    return found
  }

  /** Prompt ids of a conversation that the model is to continue. `tokens`: how many each of its media occupies, as encoding has found. */
  prompt(turns: readonly Turn[], tokens: (part: MediaPart) => number = (part) => this.plannedTokens(part)): PromptIds {
    return renderPrompt(turns, { tokenizer: this.llm.tokenizer, template: this.llm.template, mediaTokens: tokens })
  }

  /** Conversations that the model is to continue, with their media's embeddings: what a language model's `generate` takes. */
  async requests(conversations: readonly (readonly Turn[])[], { root, signal }: ReadOptions = {}): Promise<readonly GenerationRequest[]> {
    const parts = conversations.flatMap((turns) => turns.flatMap(({ content }) => content.filter(isMedia)))
    return this.#requests(conversations, new Map(zip(parts, await this.encode(parts, { root, signal }))), signal)
  }

  async #requests(
    conversations: readonly (readonly Turn[])[],
    features: ReadonlyMap<MediaPart, MediumFeatures>,
    signal: AbortSignal | undefined,
  ): Promise<readonly GenerationRequest[]> {
    const prompts = conversations.map((turns) => this.prompt(turns, (part) => features.get(part)?.tokensOut ?? 0))
    const media = prompts.map((prompt) => prompt.media.flatMap(({ part }) => features.get(part) ?? []))
    const embeddings = await this.project(media.flat(), signal)
    let used = 0
    return prompts.map(({ ids }, index) => {
      const own = embeddings.slice(used, used + (media[index]?.length ?? 0))
      used += own.length
      return own.length === 0 ? { ids } : { ids: withTexts(ids, prompts[index]?.media ?? [], media[index] ?? []), media: joined(own) }
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
    for await (const event of this.llm.generate(requests, { ...options, ...(signal === undefined ? {} : { signal }) })) {
      if (event.text !== '') yield event.text
    }
  }

  /**
   * One answer for each medium, generated as one batch.
   *
   * @example
   * const [caption] = await model.caption(['cat.jpg'], { prompt: 'Describe the picture.' })
   */
  async caption(sources: readonly MediaSource[], options: CaptionOptions = {}): Promise<readonly string[]> {
    const { root, signal, modality: type = 'image' } = options
    return this.answer(
      sources,
      await this.encode(
        sources.map((source) => ({ type, source })),
        { root, signal },
      ),
      options,
    )
  }

  /** Answers about media whose features are known. `sources` serve as the keys of the random numbers. */
  async answer(
    sources: readonly MediaSource[],
    media: readonly MediumFeatures[],
    { prompt = 'What is this?', modality: type = 'image', root: _, signal, ...options }: CaptionOptions = {},
  ): Promise<readonly string[]> {
    const parts = sources.map((source): MediaPart => ({ type, source }))
    const conversations = parts.map((part): readonly Turn[] => [{ role: 'user', content: [part, { type: 'text', text: `\n${prompt}` }] }])
    const requests = await this.#requests(conversations, new Map(zip(parts, media)), signal)
    const keyed = requests.map((request, index) => {
      const source = sources[index]
      return typeof source === 'string' ? { ...request, key: source } : request
    })
    const answers = sources.map(() => '')
    for await (const { row, text } of this.llm.generate(keyed, { ...options, ...(signal === undefined ? {} : { signal }) }))
      answers[row] = (answers[row] ?? '') + text
    return answers.map((answer) => answer.trim())
  }

  /** Closes the projectors' sessions and the encoders; the language model stays with whoever loaded it. */
  async dispose(): Promise<void> {
    const projections = [...this.#projections.values()]
    this.#projections.clear()
    await Promise.all([
      ...projections.map(async (session) => (await session).dispose()),
      ...this.modalities.map((modality) => this.branch(modality).encoder.dispose()),
    ])
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  #declared(): readonly Parameter[] {
    return this.mediaPaths.flatMap((path) => project(path, this.llm.decoder.hiddenSize).scope.parameters)
  }

  #projection(path: MediaPath): Promise<Session> {
    const known = this.#projections.get(path.modality)
    if (known !== undefined) return known
    const opened = openProjection(path, this.llm.decoder.hiddenSize, this.#device)
    this.#projections.set(path.modality, opened)
    return opened
  }
}

async function openProjection(path: MediaPath, hiddenSize: number, device: DeviceRequest): Promise<Session> {
  const { embeddings, inputs, scope } = project(path, hiddenSize)
  const rows = multiplyDims(dimAt(embeddings.shape, 0), dimAt(embeddings.shape, 1))
  const { bytes } = lower({
    outputs: { embeddings: reshape(embeddings, [rows, hiddenSize]) },
    inputs: [...inputs, ...scope.parameters.map(({ tensor }) => tensor)],
  })
  return createSession({ bytes }, { device, memoryPattern: false })
}

/** Rows with a separator's row in chosen places of the result. */
function separated(rows: Float32Array, places: readonly number[], separator: Float32Array): Float32Array {
  const width = separator.length
  const result = new Float32Array(rows.length + places.length * width)
  let [from, to] = [0, 0]
  for (const place of places) {
    const own = place * width - to
    result.set(rows.subarray(from, from + own), to)
    result.set(separator, to + own)
    from += own
    to += own + width
  }
  result.set(rows.subarray(from), to)
  return result
}

const isMedia = (part: Turn['content'][number]): part is MediaPart => part.type !== 'text'

function zip<A, B>(first: readonly A[], second: readonly B[]): readonly (readonly [A, B])[] {
  return first.flatMap((one, index) => {
    const other = second[index]
    return other === undefined ? [] : [[one, other] as const]
  })
}

function joined(parts: readonly Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0))
  let offset = 0
  for (const part of parts) {
    whole.set(part, offset)
    offset += part.length
  }
  return whole
}
