/** Which token comes next. Pure functions of logits, options and one random number. */
import { z } from 'zod'

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

/**
 * The next token. Penalties, temperature, top-k and top-p apply in this order, as in Transformers' logits processors.
 *
 * @param logits float32 [vocabularySize]; not changed.
 * @param history ids of prompt and answer so far, for the repetition penalty (Keskar et al. 2019, section 4.1).
 * @param uniform a number in [0, 1): what decides among the candidates. Not read when greedy.
 *
 * @example
 * chooseToken(Float32Array.of(1, 3, 2), {}, [], 0) // 1
 */
export function chooseToken(logits: Float32Array, options: SamplingOptions, history: Iterable<number>, uniform: number): number {
  const { temperature = 0, topK = 0, topP = 1, repetitionPenalty = 1 } = options
  const scores = repetitionPenalty === 1 ? logits : penalised(logits, history, repetitionPenalty)
  if (temperature === 0) return argMax(scores)
  const order = likeliest(scores, topK)
  const largest = scores[order[0] ?? 0] ?? 0
  const weights = Float64Array.from(order, (id) => Math.exp(((scores[id] ?? Number.NEGATIVE_INFINITY) - largest) / temperature))
  const total = weights.reduce((sum, w) => sum + w, 0)
  let kept = order.length
  if (topP < 1) {
    let reached = 0
    kept = 0
    // The token that crosses the bound is kept, so one always is.
    while (kept < order.length && reached < topP * total) reached += weights[kept++] ?? 0
  }
  let target = uniform * weights.subarray(0, kept).reduce((sum, w) => sum + w, 0)
  for (let rank = 0; rank < kept; rank++) {
    target -= weights[rank] ?? 0
    if (target < 0) return order[rank] ?? 0
  }
  return order[kept - 1] ?? 0
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

/** Ids by falling score, the lower id first among equals; the first `count` of them (0: all). */
function likeliest(scores: Float32Array, count: number): Uint32Array {
  const ids = Uint32Array.from(scores.keys())
  ids.sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0) || a - b)
  return count > 0 ? ids.subarray(0, count) : ids
}
