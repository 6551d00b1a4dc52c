/** Changes of logits that depend on what was said already. Names and formulas as in Transformers; presence and frequency as vLLM and OpenAI have them. */
import type { PenaltyOptions } from './sampling-options.ts'

/** Ids so far. Negative ones (media) are never penalised. */
export interface TokenHistory {
  readonly prompt: readonly number[]
  readonly answer: readonly number[]
}

/** The logits after the penalties: the same array where there is nothing to change. */
export function penalised(logits: Float32Array, options: PenaltyOptions, history: TokenHistory | undefined): Float32Array {
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0, noRepeatNgramSize = 0 } = options
  if (history === undefined || (repetitionPenalty === 1 && presencePenalty === 0 && frequencyPenalty === 0 && noRepeatNgramSize === 0))
    return logits
  const scores = Float32Array.from(logits)
  if (repetitionPenalty !== 1) {
    for (const id of new Set([...history.prompt, ...history.answer])) {
      const score = scores[id]
      if (score !== undefined) scores[id] = score < 0 ? score * repetitionPenalty : score / repetitionPenalty
    }
  }
  if (noRepeatNgramSize > 0)
    for (const id of repeating(history, noRepeatNgramSize)) if (id >= 0 && id < scores.length) scores[id] = Number.NEGATIVE_INFINITY
  if (presencePenalty !== 0 || frequencyPenalty !== 0) {
    for (const [id, count] of counts(history.answer)) {
      const score = scores[id]
      if (score !== undefined) scores[id] = score - count * frequencyPenalty - presencePenalty
    }
  }
  return scores
}

/** The ids that would complete a sequence of `size` tokens that is there already. */
function repeating({ prompt, answer }: TokenHistory, size: number): ReadonlySet<number> {
  const ids = [...prompt, ...answer]
  const start = ids.length - (size - 1)
  const found = new Set<number>()
  for (let at = 0; at + size <= ids.length; at++) {
    let equal = true
    for (let offset = 0; offset < size - 1 && equal; offset++) equal = ids[at + offset] === ids[start + offset]
    if (equal) found.add(ids[at + size - 1] ?? 0)
  }
  return found
}

function counts(ids: readonly number[]): ReadonlyMap<number, number> {
  const found = new Map<number, number>()
  for (const id of ids) found.set(id, (found.get(id) ?? 0) + 1)
  return found
}
