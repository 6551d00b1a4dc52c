/** Which of several answers the model finds likeliest. What answers begin with in common is read once: they form a tree. */
import { abortError } from '../../runtime/abort.ts'
import { CacheRows, type GeneratorModel, type MovedRow } from './cache-rows.ts'
import type { GenerationRequest } from './generate-tokens.ts'
import { checkFinite } from './sampling.ts'
import { logSumExp } from './sampling-ranking.ts'

/** Answers under way at a time: each holds a copy of the prompt's cache. */
const together = 32

/** The beginning of one or more answers. */
interface Branch {
  readonly ids: readonly number[]
  readonly logprob: number
  readonly logits: Float32Array
  /** Of these answers, by their index. */
  readonly answers: readonly number[]
}

/**
 * The sum of the log-probabilities of each answer's tokens after the prompt, in the order of the answers.
 *
 * @param answers ids of each, at least one.
 * @throws what a session throws, GENERATION_NOT_FINITE, and an AbortError between tokens
 */
export async function scoreAnswers(
  model: GeneratorModel,
  request: GenerationRequest,
  answers: readonly (readonly number[])[],
  signal?: AbortSignal,
): Promise<readonly number[]> {
  const scores = answers.map(() => 0)
  const [root, rows] = [new CacheRows(model), new CacheRows(model)]
  try {
    const [logits] = await root.read([request], signal)
    if (logits === undefined) throw new Error('internal: one row')
    // Neighbours in this order begin alike.
    const order = Array.from(answers.keys()).sort((a, b) => compare(answers[a] ?? [], answers[b] ?? []))
    for (let start = 0; start < order.length; start += together) {
      let branches: readonly Branch[] = [{ ids: [], logprob: 0, logits, answers: order.slice(start, start + together) }]
      let rowsOf: readonly MovedRow[] = [{ from: root, row: 0 }]
      while (branches.length > 0) {
        const next: (Branch & { readonly parent: number })[] = []
        for (const [parent, branch] of branches.entries()) next.push(...grown(branch, answers, scores).map((one) => ({ ...one, parent })))
        if (next.length === 0) break
        if (signal?.aborted) throw abortError(signal)
        const sources = rowsOf
        await rows.arrange(next.map(({ parent }) => sources[parent] ?? { from: root, row: 0 }))
        const after = await rows.append(
          next.map(({ ids }) => ids[ids.length - 1] ?? 0),
          signal,
        )
        branches = next.map((branch, row) => ({ ...branch, logits: after[row] ?? logits }))
        rowsOf = next.map((_, row) => ({ from: rows, row }))
      }
    }
    return scores
  } finally {
    await root.clear()
    await rows.clear()
  }
}

/** Scores a branch's next tokens; gives the branches that go on beyond them. */
function grown(
  { ids, logprob, logits, answers: own }: Branch,
  answers: readonly (readonly number[])[],
  scores: number[],
): readonly Branch[] {
  const total = logSumExp(logits)
  checkFinite(logits, total)
  const byToken = new Map<number, number[]>()
  for (const answer of own) {
    const id = answers[answer]?.[ids.length]
    if (id !== undefined) byToken.set(id, [...(byToken.get(id) ?? []), answer])
  }
  return [...byToken].flatMap(([id, members]) => {
    const sum = logprob + (logits[id] ?? Number.NEGATIVE_INFINITY) - total
    for (const member of members) scores[member] = sum
    const longer = members.filter((member) => (answers[member]?.length ?? 0) > ids.length + 1)
    return longer.length === 0 ? [] : [{ ids: [...ids, id], logprob: sum, logits, answers: longer }]
  })
}

function compare(a: readonly number[], b: readonly number[]): number {
  for (let index = 0; index < Math.min(a.length, b.length); index++) {
    const difference = (a[index] ?? 0) - (b[index] ?? 0)
    if (difference !== 0) return difference
  }
  return a.length - b.length
}
