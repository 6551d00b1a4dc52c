/** Which token comes next. Pure functions of logits, options and one random number. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'

export const samplingSchema = z.strictObject({
  /** 0: the likeliest token (greedy). */
  temperature: z.number().min(0).max(100).optional(),
  /** Only the k likeliest. 0: no limit. */
  topK: z.int().min(0).optional(),
  /** Only the likeliest tokens that together reach this probability. 1: no limit. */
  topP: z.number().gt(0).max(1).optional(),
  /** Logits of tokens that already occur are divided by this (multiplied where negative). 1: none. */
  repetitionPenalty: z.number().positive().max(100).optional(),
})
export type SamplingOptions = z.infer<typeof samplingSchema>

/** What may come next: ids, likeliest first, and their probabilities, which add up to 1. */
export interface Candidates {
  readonly ids: Uint32Array
  readonly probabilities: Float64Array
}

/** Tokens that are exp(-50) times as likely as the likeliest, or less: no random number of 53 bits ever falls on one. */
const negligible = 50

/**
 * The distribution of the next token. Penalties, temperature, top-k and top-p apply in this order, as in Transformers' logits processors. Among equal scores the lower
 * id comes first, and exactly k tokens are kept.
 *
 * @param logits float32 [vocabularySize]; not changed.
 * @param history ids of prompt and answer so far, for the repetition penalty (Keskar et al. 2019, section 4.1).
 * @throws GENERATION_NOT_FINITE if a logit is NaN, or the largest is infinite
 *
 * @example
 * candidates(Float32Array.of(1, 3, 2), { temperature: 1, topK: 2 }, []).ids // 1, 2
 */
export function candidates(logits: Float32Array, options: SamplingOptions, history: Iterable<number>): Candidates {
  const { temperature = 0, topK = 0, topP = 1, repetitionPenalty = 1 } = options
  const scores = repetitionPenalty === 1 ? logits : penalised(logits, history, repetitionPenalty)
  const best = argMax(scores)
  const largest = scores[best] ?? 0
  if (!Number.isFinite(largest) || scores.some(Number.isNaN)) {
    throw new ModalignError({
      code: 'GENERATION_NOT_FINITE',
      got: Number.isFinite(largest) ? 'NaN among the logits' : `${largest} as the largest logit`,
      expected: 'numbers',
      hint: 'the weights or the projected media hold NaN or infinity, or overflow in half precision',
    })
  }
  if (temperature === 0) return { ids: Uint32Array.of(best), probabilities: Float64Array.of(1) }
  const order = likeliest(scores, largest - negligible * temperature, topK)
  const weights = Float64Array.from(order, (id) => Math.exp(((scores[id] ?? 0) - largest) / temperature))
  const total = sum(weights)
  let kept = order.length
  if (topP < 1) {
    let reached = 0
    kept = 0
    // The token that crosses the bound is kept, so one always is.
    while (kept < order.length && reached < topP * total) reached += weights[kept++] ?? 0
  }
  const keptTotal = sum(weights.subarray(0, kept))
  return { ids: order.subarray(0, kept), probabilities: weights.subarray(0, kept).map((weight) => weight / keptTotal) }
}

/**
 * The next token: see {@link candidates}.
 *
 * @param uniform a number in [0, 1): what decides among the candidates.
 *
 * @example
 * chooseToken(Float32Array.of(1, 3, 2), {}, [], 0) // 1
 */
export function chooseToken(logits: Float32Array, options: SamplingOptions, history: Iterable<number>, uniform: number): number {
  const { ids, probabilities } = candidates(logits, options, history)
  let target = uniform
  for (const [rank, probability] of probabilities.entries()) {
    target -= probability
    if (target < 0) return ids[rank] ?? 0
  }
  return ids[ids.length - 1] ?? 0
}

/** Index of the largest; the first of equals. */
export function argMax(values: Float32Array): number {
  let best = 0
  for (let index = 1; index < values.length; index++) if ((values[index] ?? 0) > (values[best] ?? 0)) best = index
  return best
}

function penalised(logits: Float32Array, history: Iterable<number>, penalty: number): Float32Array {
  const scores = Float32Array.from(logits)
  for (const id of new Set(history)) {
    const score = scores[id]
    if (score !== undefined) scores[id] = score < 0 ? score * penalty : score / penalty
  }
  return scores
}

/** Ids of scores above a bound by falling score, the lower id first among equals; the first `count` of them (0: all). */
function likeliest(scores: Float32Array, bound: number, count: number): Uint32Array {
  const ids = Uint32Array.from(scores.keys()).filter((id) => (scores[id] ?? 0) > bound)
  ids.sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0) || a - b)
  return count > 0 ? ids.subarray(0, count) : ids
}

function sum(values: Float64Array): number {
  return values.reduce((total, value) => total + value, 0)
}
