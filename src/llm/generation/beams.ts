/** Beam search: the likeliest whole answers, as far as a few candidates a step can tell.   Steps and scores as Transformers 5 has them. */
import { abortError } from '../../runtime/abort.ts'
import { CacheRows, type GeneratorModel } from './cache-rows.ts'
import type { Beam, GenerationRequest } from './generate-tokens.ts'
import type { GenerationOptions } from './options.ts'
import { checkFinite } from './sampling.ts'
import { penalised } from './sampling-penalties.ts'
import { leading, logSumExp } from './sampling-ranking.ts'

export type BeamOptions = Pick<
  GenerationOptions,
  | 'numBeams'
  | 'lengthPenalty'
  | 'earlyStopping'
  | 'maxNewTokens'
  | 'minNewTokens'
  | 'repetitionPenalty'
  | 'presencePenalty'
  | 'frequencyPenalty'
  | 'noRepeatNgramSize'
> & { readonly stopTokenIds: readonly number[] }

interface Running {
  readonly ids: readonly number[]
  /** Sum of log-probabilities. */
  readonly score: number
  /** Which row of the batch it comes from. */
  readonly row: number
}
interface Candidate extends Running {
  readonly ends: boolean
}

/**
 * The best `numBeams` answers, best first; ids without the stop token, whose log-probability and length count in the score.
 *
 * @throws what a session throws, GENERATION_NOT_FINITE, and an AbortError between tokens
 */
export async function searchBeams(
  model: GeneratorModel,
  request: GenerationRequest,
  options: BeamOptions,
  signal?: AbortSignal,
): Promise<readonly Beam[]> {
  const { numBeams = 1, lengthPenalty = 1, earlyStopping = false, maxNewTokens = 256, stopTokenIds } = options
  const prompt = Array.from(request.ids)
  const longest = Math.min(maxNewTokens, model.decoder.maxPositions - prompt.length)
  const stops = new Set(stopTokenIds)
  // So many that enough are left to go on with if all the best ones end.
  const considered = Math.max(2, 1 + stops.size) * numBeams
  const rows = new CacheRows(model)
  try {
    let logits = await rows.read([request], signal)
    let running: readonly Running[] = [{ ids: [], score: 0, row: 0 }]
    let finished: readonly Beam[] = []
    for (let length = 1; ; length++) {
      const candidates = continuations(running, logits, { ...options, prompt, stops, considered, last: length >= longest })
      const full = finished.length >= numBeams && earlyStopping === true
      const ended = full ? [] : candidates.slice(0, numBeams).filter(({ ends }) => ends)
      finished = best([...finished, ...ended.map((candidate) => finishedBeam(candidate, length, lengthPenalty, stops))], numBeams)
      running = candidates.filter(({ ends }) => !ends).slice(0, numBeams)
      const [first] = running
      if (first === undefined || (earlyStopping === true && finished.length >= numBeams)) return finished
      const hypothetical = earlyStopping === 'never' && lengthPenalty > 0 ? longest : length
      const worst = finished.length < numBeams ? Number.NEGATIVE_INFINITY : (finished[finished.length - 1]?.score ?? 0)
      if (first.score / hypothetical ** lengthPenalty <= worst) return finished
      if (signal?.aborted) throw abortError(signal)
      await rows.arrange(running.map(({ row }) => ({ from: rows, row })))
      logits = await rows.append(
        running.map(({ ids }) => ids[ids.length - 1] ?? 0),
        signal,
      )
    }
  } finally {
    await rows.clear()
  }
}

interface Step extends BeamOptions {
  readonly prompt: readonly number[]
  readonly stops: ReadonlySet<number>
  readonly considered: number
  /** No beam may become longer. */
  readonly last: boolean
}

/** The likeliest ways to go on, best first. */
function continuations(running: readonly Running[], logits: readonly Float32Array[], step: Step): readonly Candidate[] {
  const { prompt, stops, considered, last, minNewTokens = 0 } = step
  const all = running.flatMap(({ ids, score }, row) => {
    const own = logits[row] ?? new Float32Array(0)
    const total = logSumExp(own)
    checkFinite(own, total)
    const scores = penalised(
      own.map((logit) => logit - total),
      step,
      { prompt, answer: ids },
    )
    if (ids.length < minNewTokens) for (const id of stops) if (id < scores.length) scores[id] = Number.NEGATIVE_INFINITY
    return Array.from(
      leading(scores, Number.NEGATIVE_INFINITY, considered),
      (id): Candidate => ({ ids: [...ids, id], score: score + (scores[id] ?? 0), row, ends: last || stops.has(id) }),
    )
  })
  return all.sort((a, b) => b.score - a.score).slice(0, considered)
}

function finishedBeam({ ids, score }: Candidate, length: number, lengthPenalty: number, stops: ReadonlySet<number>): Beam {
  const stopped = stops.has(ids[ids.length - 1] ?? -1)
  return { ids: stopped ? ids.slice(0, -1) : ids, score: score / length ** lengthPenalty, finished: stopped }
}

function best(beams: readonly Beam[], count: number): readonly Beam[] {
  return [...beams].sort((a, b) => b.score - a.score).slice(0, count)
}
