/** One answer under way: which tokens were said, what may come next, and when it is over. Text is made of them in `AnswerTexts`. */
import { ModalignError } from '../../errors.ts'
import type { GeneratorModel } from './cache-rows.ts'
import type { FinishReason, GenerationEvent, GenerationRequest } from './generate-tokens.ts'
import type { GenerationOptions } from './options.ts'
import { chooseToken } from './sampling.ts'
import { leading, logSumExp } from './sampling-ranking.ts'

export interface AnswerRequest {
  readonly request: GenerationRequest
  readonly options: GenerationOptions & { readonly stopTokenIds: readonly number[] }
  /** The row that events name. */
  readonly row: number
  /** Uniform random numbers: number `index` decides token `index`. */
  readonly draw: (index: number) => number
}

export class Answer {
  readonly request: GenerationRequest
  readonly prompt: readonly number[]
  readonly ids: number[] = []
  readonly #options: AnswerRequest['options']
  readonly #row: number
  readonly #draw: (index: number) => number
  readonly #stops: ReadonlySet<number>
  readonly #maxPositions: number
  #reason: FinishReason | undefined

  constructor({ request, options, row, draw }: AnswerRequest, maxPositions: number) {
    this.request = request
    this.prompt = Array.from(request.ids)
    this.#options = options
    this.#row = row
    this.#draw = draw
    this.#stops = new Set(options.stopTokenIds)
    this.#maxPositions = maxPositions
  }

  get over(): boolean {
    return this.#reason !== undefined
  }

  /** How many tokens it may still become. */
  get left(): number {
    return Math.min((this.#options.maxNewTokens ?? 256) - this.ids.length, this.#maxPositions - this.prompt.length - this.ids.length)
  }

  /** It is over without an event. */
  leave(): void {
    this.#reason ??= 'stop'
  }

  /** The next token's consequences: events without text. @param logits of that token; not changed. */
  next(logits: Float32Array): readonly GenerationEvent[] {
    const { minNewTokens = 0, logprobs = false, topLogprobs = 0 } = this.#options
    const index = this.ids.length
    const allowed = index < minNewTokens ? without(logits, this.#stops) : logits
    const id = chooseToken(allowed, this.#options, { prompt: this.prompt, answer: this.ids }, this.#draw(index))
    if (this.#stops.has(id)) return [this.#end('stop')]
    this.ids.push(id)
    const event: GenerationEvent = {
      type: 'token',
      row: this.#row,
      id,
      text: '',
      ...(logprobs || topLogprobs > 0 ? logProbabilities(logits, id, topLogprobs) : {}),
    }
    if (this.left > 0) return [event]
    return [event, this.#end(this.ids.length >= (this.#options.maxNewTokens ?? 256) ? 'length' : 'context')]
  }

  #end(reason: FinishReason): GenerationEvent {
    this.#reason = reason
    return { type: 'end', row: this.#row, reason, text: '' }
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
