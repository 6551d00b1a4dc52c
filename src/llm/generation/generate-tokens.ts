/** Generation: prompts in, tokens out, for batches whose rows begin and end when they do. */
import { Answer, checkRequest } from './answer.ts'
import type { GeneratorModel } from './cache-rows.ts'
import { GenerationLoop } from './loop.ts'
import type { GenerationOptions } from './options.ts'

export type { GeneratorModel } from './cache-rows.ts'
export { type GenerationOptions, generationOptionsSchema } from './options.ts'

export interface GenerationRequest {
  /** Prompt ids; negative ones are places of media, filled from `media` in order. */
  readonly ids: ArrayLike<number>
  /** float32, one row of hiddenSize for every negative id. */
  readonly media?: Float32Array
}

/** `stop`: a stop token or a stop string; `length`: `maxNewTokens`; `context`: the model has no more positions. */
export type FinishReason = 'stop' | 'length' | 'context'

export interface TokenEvent {
  readonly type: 'token'
  /** The request's place among those of the call. */
  readonly row: number
  readonly id: number
  /** Text that has become certain with this token: never half a character, often nothing. Empty where there is no tokenizer. */
  readonly text: string
  /** Natural logarithm of the token's probability under the model, before penalties and temperature. With `logprobs`. */
  readonly logprob?: number
  /** The likeliest tokens in its place, likeliest first. With `topLogprobs`. */
  readonly topLogprobs?: readonly { readonly id: number; readonly logprob: number }[]
}

export interface EndEvent {
  readonly type: 'end'
  readonly row: number
  readonly reason: FinishReason
  /** Text that was held back. */
  readonly text: string
  /** Beam search: the beams, best first. */
  readonly beams?: readonly Beam[]
  /** Choices, in the order in which they were given. */
  readonly choices?: readonly ScoredChoice[]
}
export type GenerationEvent = TokenEvent | EndEvent

export interface Beam {
  readonly ids: readonly number[]
  /** The sum of the tokens' log-probabilities (and of the stop token's) over the length to the power of `lengthPenalty`. */
  readonly score: number
  /** Whether a stop token ended it. */
  readonly finished: boolean
}

export interface ScoredChoice {
  readonly text: string
  /** The sum of the log-probabilities of its tokens. */
  readonly logprob: number
}

/** Uniform random numbers of one request: number `index` decides its token `index`. */
export type Draw = (row: number, index: number) => number

/**
 * Generates for every row of a batch; rows that have ended take no further part.
 *
 * @param options `maxNewTokens`, sampling, `stopTokenIds` (required here: the caller knows the model's). Nothing that needs a tokenizer.
 * @throws GENERATION_EMPTY, GENERATION_TOO_LONG, GENERATION_MEDIA, GENERATION_NOT_FINITE, and an AbortError between tokens.
 * @example
 * for await (const event of generateTokens({ session, decoder }, [{ ids: [1, 2, 3] }], { stopTokenIds: [2], draw: () => 0 })) console.log(event)
 */
export async function* generateTokens(
  model: GeneratorModel,
  requests: readonly GenerationRequest[],
  {
    draw,
    signal,
    ...options
  }: GenerationOptions & { readonly stopTokenIds: readonly number[]; readonly draw: Draw; readonly signal?: AbortSignal },
): AsyncGenerator<GenerationEvent> {
  for (const request of requests) checkRequest(request, model.decoder)
  const answers = requests.map(
    (request, row) => new Answer({ request, options, row, draw: (index) => draw(row, index) }, model.decoder.maxPositions),
  )
  const loop = new GenerationLoop(model, { batchSize: Math.max(1, requests.length) })
  try {
    yield* loop.answer(answers, signal)
  } finally {
    await loop.dispose()
  }
}
