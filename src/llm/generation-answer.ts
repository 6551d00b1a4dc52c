/** One answer under way: what was said, what may come next, and when it is over. */
import { ModalignError } from '../errors.ts'
import type { FinishReason, GenerationEvent, GenerationRequest } from './generation.ts'
import type { GeneratorModel } from './generation-cache.ts'
import type { GenerationOptions } from './generation-options.ts'
import { AnswerText, type TextDecoderOfIds } from './generation-text.ts'
import { chooseToken } from './sampling.ts'
import { leading, logSumExp } from './sampling-ranking.ts'

export interface AnswerRequest {
  readonly request: GenerationRequest
  readonly options: GenerationOptions & { readonly stopTokenIds: readonly number[] }
  /** The row that events name. */
  readonly row: number
  /** Uniform random numbers: number `index` decides token `index`. */
  readonly draw: (index: number) => number
  /** Absent: events have no text, and there are no stop strings. */
  readonly decoder?: TextDecoderOfIds | undefined
}

export class Answer {
  readonly request: GenerationRequest
  readonly prompt: readonly number[]
  readonly ids: number[] = []
  readonly #options: AnswerRequest['options']
  readonly #row: number
  readonly #draw: (index: number) => number
  readonly #stops: ReadonlySet<number>
  readonly #text: AnswerText | undefined
  readonly #maxPositions: number
  #reason: FinishReason | undefined

  constructor({ request, options, row, draw, decoder }: AnswerRequest, maxPositions: number) {
    this.request = request
    this.prompt = Array.from(request.ids)
    this.#options = options
    this.#row = row
    this.#draw = draw
    this.#stops = new Set(options.stopTokenIds)
    this.#text = decoder === undefined ? undefined : new AnswerText(decoder, options.stopStrings)
    this.#maxPositions = maxPositions
  }

  get over(): boolean {
    return this.#reason !== undefined
  }

  /** How many tokens it may still become. */
  get left(): number {
    return Math.min((this.#options.maxNewTokens ?? 256) - this.ids.length, this.#maxPositions - this.prompt.length - this.ids.length)
  }

  /** The next token's consequences. @param logits of that token; not changed. */
  next(logits: Float32Array): readonly GenerationEvent[] {
    const { minNewTokens = 0, logprobs = false, topLogprobs = 0 } = this.#options
    const index = this.ids.length
    const allowed = index < minNewTokens ? without(logits, this.#stops) : logits
    const id = chooseToken(allowed, this.#options, { prompt: this.prompt, answer: this.ids }, this.#draw(index))
    if (this.#stops.has(id)) return [this.#end('stop')]
    this.ids.push(id)
    const { text = '', stopped = false } = this.#text?.push(id) ?? {}
    const event: GenerationEvent = {
      type: 'token',
      row: this.#row,
      id,
      text,
      ...(logprobs || topLogprobs > 0 ? logProbabilities(logits, id, topLogprobs) : {}),
    }
    if (stopped) return [event, this.#end('stop', false)]
    if (this.left > 0) return [event]
    return [event, this.#end(this.ids.length >= (this.#options.maxNewTokens ?? 256) ? 'length' : 'context')]
  }

  #end(reason: FinishReason, more = true): GenerationEvent {
    this.#reason = reason
    const rest = more ? this.#text?.end() : undefined
    return { type: 'end', row: this.#row, reason: rest?.stopped === true ? 'stop' : reason, text: rest?.text ?? '' }
  }
}

/** @throws GENERATION_EMPTY, GENERATION_TOO_LONG, GENERATION_MEDIA */
export function checkRequest({ ids, media }: GenerationRequest, { hiddenSize, maxPositions }: GeneratorModel['decoder']): void {
  if (ids.length === 0) throw new ModalignError({ code: 'GENERATION_EMPTY', got: 'a prompt without tokens', expected: 'at least one' })
  if (ids.length >= maxPositions) {
    throw new ModalignError({
      code: 'GENERATION_TOO_LONG',
      got: `${ids.length} tokens`,
      expected: `fewer than the model's ${maxPositions} positions`,
    })
  }
  const places = Array.from(ids).filter((id) => id < 0).length
  const rows = (media?.length ?? 0) / hiddenSize
  if (places !== rows)
    throw new ModalignError({
      code: 'GENERATION_MEDIA',
      got: `${rows} media tokens`,
      expected: `${places}, one for each place in the prompt`,
    })
}

function without(logits: Float32Array, ids: ReadonlySet<number>): Float32Array {
  const allowed = Float32Array.from(logits)
  for (const id of ids) if (id < allowed.length) allowed[id] = Number.NEGATIVE_INFINITY
  return allowed
}

function logProbabilities(
  logits: Float32Array,
  id: number,
  count: number,
): Pick<GenerationEvent & { type: 'token' }, 'logprob' | 'topLogprobs'> {
  const total = logSumExp(logits)
  const of = (one: number): number => (logits[one] ?? 0) - total
  if (count === 0) return { logprob: of(id) }
  return {
    logprob: of(id),
    topLogprobs: Array.from(leading(logits, Number.NEGATIVE_INFINITY, count), (one) => ({ id: one, logprob: of(one) })),
  }
}
