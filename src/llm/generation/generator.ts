/** Generation in a session of its own, opened when it is first needed: what a loaded language model generates with. */
import { ModalignError } from '../../errors.ts'
import { abortError } from '../../runtime/abort.ts'
import { expectedDevice } from '../../runtime/native.ts'
import { type DeviceRequest, withoutUndefined } from '../../runtime/session.ts'
import type { SessionDescription } from '../../runtime/session-worker.ts'
import type { Tokenizer } from '../../text/tokenizer.ts'
import type { Decoder, PresentValues } from '../decoder.ts'
import { checkRequest } from './answer.ts'
import { AnswerTexts, type TextDecoderOfIds } from './answer-text.ts'
import type { Beam, EndEvent, GenerationEvent, GenerationOptions, GenerationRequest } from './generate-tokens.ts'
import { cacheAbilities, generationGraph } from './graph.ts'
import { checkGenerationOptions } from './options.ts'
import { type BuiltGraph, GenerationThread, type StartedThread } from './thread.ts'

export interface GeneratorOptions {
  /** Where generation runs. Default `auto`. */
  readonly device?: DeviceRequest
  /** Threads of one run on the CPU. */
  readonly threads?: number
  /** Repack the weights for speed. Default true. False shares the mapped pages of the weights' file with every other session that does, and opens in a moment. */
  readonly prepacking?: boolean
  /**
   * Answers under way at a time; others wait until one ends. Default 16. With 1, a small model in blocks of 4 or 8 bits gets a graph of its own for one row: each token takes a
   * twentieth to a tenth less time on the CPU, and opening half as long again or more.
   */
  readonly batchSize?: number
}

/** A request with the key that its random numbers hang on; default: its place in the batch. */
export interface KeyedRequest extends GenerationRequest {
  readonly key?: string
}

export interface TextGenerator extends AsyncDisposable {
  /** Where generation runs. Opens the session. */
  readonly session: () => Promise<SessionDescription>
  /**
   * Tokens for every request, as they come. All requests under way, of this call and of others, run as one batch that they join and leave; none depends on another.
   * Beam search and choices go request by request, and their answers come whole.
   *
   * @throws GENERATION_OPTIONS, GENERATION_EMPTY, GENERATION_NOT_FINITE, GENERATION_TOO_LONG, GENERATION_MEDIA, or an AbortError between tokens.
   */
  generate(
    requests: readonly KeyedRequest[],
    options?: GenerationOptions & { readonly signal?: AbortSignal },
  ): AsyncGenerator<GenerationEvent>
  dispose(): Promise<void>
}

export interface GeneratorSource {
  readonly decoder: Decoder
  /** Where an answer ends, unless a call says otherwise. */
  readonly stopTokenIds: readonly number[]
  /** Makes text of tokens: without it events have none, and there are neither stop strings nor choices. */
  readonly tokenizer?: Pick<Tokenizer, 'encode' | 'streamDecoder'>
  /** What a call does not say. */
  readonly defaults: GenerationOptions
  /** Of `decoder`, as {@link openGeneration} gave it: then it need not be opened here. */
  readonly opened?: Promise<GenerationThread>
}

/** Rows of one batch, where the options do not say: enough to use the weights well, few enough for their caches. */
const usualBatch = 16

/** Opens nothing yet, unless it is given what was opened. */
export function createGenerator(source: GeneratorSource, options: GeneratorOptions = {}): TextGenerator {
  const { decoder, tokenizer, defaults } = source
  let opened: Promise<GenerationThread> | undefined = source.opened
  /** The values of adapters that it was opened with. */
  let openedWith: PresentValues | undefined

  const open = async (): Promise<GenerationThread> => {
    const present = decoder.trained?.present()
    if (present !== openedWith) {
      // Answers under way end with the values that they began with.
      await (await opened)?.idle()
      await dispose()
    }
    openedWith = present
    opened ??= openGeneration(decoder, options)
    return opened
  }

  async function* generate(
    given: readonly KeyedRequest[],
    { signal, ...asked }: GenerationOptions & { readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<GenerationEvent> {
    const checked = checkGenerationOptions(asked)
    if (given.length === 0) return
    if (signal?.aborted) throw abortError(signal)
    if (tokenizer === undefined) refuseText(checked)
    const thread = await open()
    const requests = withSoftPrompt(given, decoder)
    for (const request of requests) checkRequest(request, thread.decoder)
    const { numBeams = 1, choices, ...rest } = checked
    // What the model's folder says about drawing is for answers that are drawn.
    const drawn = choices === undefined && numBeams === 1
    const all = { ...(drawn && defaults), ...rest, stopTokenIds: rest.stopTokenIds ?? source.stopTokenIds }
    const textOf = (): TextDecoderOfIds | undefined => tokenizer?.streamDecoder({ skipSpecialTokens: true })
    if (choices !== undefined && tokenizer !== undefined) {
      const answers = choices.map((choice) => tokenizer.encode(choice))
      for (const [row, request] of requests.entries())
        yield* chosen(row, choices, answers, await thread.scores(request, answers, signal), textOf)
    } else if (numBeams > 1) {
      for (const [row, request] of requests.entries())
        yield* said(row, await thread.beams(request, { ...all, numBeams }, signal), all.maxNewTokens, textOf)
    } else {
      const texts = new AnswerTexts(requests.length, textOf, all.stopStrings)
      yield* thread.answers(requests, all, texts, signal)
    }
  }

  const dispose = async (): Promise<void> => {
    if (opened === undefined) return
    const closing = opened
    opened = undefined
    await closeGeneration(closing)
  }
  return { session: async () => (await open()).description, generate, dispose, [Symbol.asyncDispose]: dispose }
}

/** @throws GENERATION_OPTIONS for what cannot be done without a tokenizer. */
function refuseText({ choices, stopStrings }: GenerationOptions): void {
  if (choices !== undefined || stopStrings !== undefined)
    throw new ModalignError({
      code: 'GENERATION_OPTIONS',
      field: choices === undefined ? '/stopStrings' : '/choices',
      expected: 'a generator with a tokenizer',
    })
}

/** The events of a whole answer. */
function* whole(
  row: number,
  ids: readonly number[],
  text: TextDecoderOfIds | undefined,
  end: Omit<EndEvent, 'type' | 'row' | 'text'>,
): Generator<GenerationEvent> {
  for (const id of ids) yield { type: 'token', row, id, text: text?.push(id) ?? '' }
  yield { type: 'end', row, ...end, text: text?.end() ?? '' }
}

function* chosen(
  row: number,
  choices: readonly string[],
  answers: readonly (readonly number[])[],
  scores: readonly number[],
  textOf: () => TextDecoderOfIds | undefined,
): Generator<GenerationEvent> {
  const best = scores.indexOf(Math.max(...scores))
  const scored = choices.map((text, index) => ({ text, logprob: scores[index] ?? Number.NEGATIVE_INFINITY }))
  yield* whole(row, answers[best] ?? [], textOf(), { reason: 'stop', choices: scored })
}

function* said(
  row: number,
  beams: readonly Beam[],
  maxNewTokens = 256,
  textOf: () => TextDecoderOfIds | undefined,
): Generator<GenerationEvent> {
  const [best] = beams
  if (best === undefined) throw new Error('internal: beam search gives beams')
  const reason = best.finished ? 'stop' : best.ids.length >= maxNewTokens ? 'length' : 'context'
  yield* whole(row, best.ids, textOf(), { reason, beams })
}

/** A soft prompt takes the first places of every sequence, as media do theirs. */
function withSoftPrompt(requests: readonly KeyedRequest[], { trained, hiddenSize }: Decoder): readonly KeyedRequest[] {
  if (trained?.softPrompt === undefined) return requests
  const { softPrompt } = trained.present()
  const places = new Array<number>(softPrompt.length / hiddenSize).fill(-1)
  return requests.map(({ ids, media = new Float32Array(0), ...request }) => {
    const rows = new Float32Array(softPrompt.length + media.length)
    rows.set(softPrompt)
    rows.set(media, softPrompt.length)
    return { ...request, ids: [...places, ...Array.from(ids)], media: rows }
  })
}

/** Waits until nothing runs any more. What could not be opened needs no closing. */
export async function closeGeneration(opened: Promise<GenerationThread> | undefined): Promise<void> {
  const thread = await opened?.catch(() => undefined)
  await thread?.dispose()
}

/**
 * Starts the thread and the session of a decoder.
 *
 * @param started a thread for it that has begun to start before
 * @throws as `createSession`
 */
export async function openGeneration(
  decoder: Decoder,
  { device, threads, prepacking, batchSize = usualBatch }: GeneratorOptions,
  started?: StartedThread,
): Promise<GenerationThread> {
  const expected = expectedDevice(device)
  const build = (): BuiltGraph => {
    const lowered = generationGraph(decoder, { appends: expected === 'cpu' || expected === 'wasm', oneRow: batchSize === 1 })
    const { bytes, externalRoot, externalData } = lowered
    return { model: withoutUndefined({ bytes, externalRoot, externalData }), appends: cacheAbilities(lowered, decoder, expected).appends }
  }
  const opening = {
    options: { ...withoutUndefined({ device, threads, prepacking }), memoryPattern: false },
    decoder: decoder.trained?.present().decoder ?? decoder,
    batchSize,
  }
  return GenerationThread.open(build, opening, started)
}
