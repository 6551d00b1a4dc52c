/** Which token comes next. Pure functions of logits, options and one random number. */
import { ModalignError } from '../../errors.ts'
import type { SamplingOptions } from './sampling-options.ts'
import { penalised, type TokenHistory } from './sampling-penalties.ts'
import { argMax, argMaxOfNumbers, leading } from './sampling-ranking.ts'

/** What may come next: ids, likeliest first, and their probabilities, which add up to 1. */
export interface Candidates {
  readonly ids: Uint32Array
  readonly probabilities: Float64Array
}

/** Tokens that are exp(-50) times as likely as the likeliest, or less: no random number of 53 bits ever falls on one. */
const negligible = 50
/** Distributions of trained models rarely need more candidates than this; where they do, all are sorted. */
const fewCandidates = 256

/**
 * The distribution of the next token. Penalties, temperature, top-k, top-p, min-p and typical-p apply in this order, as in Transformers' logits processors. Among equal
 * scores the lower id comes first, and exactly k tokens are kept.
 *
 * @param logits float32 [vocabularySize]; not changed.
 * @param history what the penalties count.
 * @throws GENERATION_NOT_FINITE if a logit is NaN, or the largest is infinite
 *
 * @example
 * candidates(Float32Array.of(1, 3, 2), { temperature: 1, topK: 2 }).ids // 1, 2
 */
export function candidates(logits: Float32Array, options: SamplingOptions, history?: TokenHistory): Candidates {
  const { ids, weights, total } = distribution(logits, options, history, 1)
  return { ids, probabilities: weights.map((weight) => weight / total) }
}

/**
 * The next token: see {@link candidates}.
 *
 * @param uniform a number in [0, 1): what decides among the candidates.
 *
 * @example
 * chooseToken(Float32Array.of(1, 3, 2), {}) // 1
 */
export function chooseToken(logits: Float32Array, options: SamplingOptions, history?: TokenHistory, uniform = 0): number {
  const { ids, weights, total } = distribution(logits, options, history, uniform)
  let target = uniform * total
  for (const [rank, weight] of weights.entries()) {
    target -= weight
    if (target < 0) return ids[rank] ?? 0
  }
  return ids[ids.length - 1] ?? 0
}

interface Distribution {
  readonly ids: Uint32Array
  readonly weights: Float64Array
  /** Of the weights of all candidates, also of those that were not asked for. */
  readonly total: number
}

/** @param share candidates beyond this share of the probability are not asked for. */
function distribution(logits: Float32Array, options: SamplingOptions, history: TokenHistory | undefined, share: number): Distribution {
  const { temperature = 0, topK = 0, topP = 1, minP = 0, typicalP = 1 } = options
  const scores = penalised(logits, options, history)
  const best = argMaxOfNumbers(scores)
  const largest = scores[best] ?? Number.NaN
  if (!Number.isFinite(largest)) checkFinite(scores, scores[argMax(scores)] ?? 0)
  if (temperature === 0) return { ids: Uint32Array.of(best), weights: Float64Array.of(1), total: 1 }
  const weightOf = (id: number): number => Math.exp(((scores[id] ?? 0) - largest) / temperature)
  const bound = largest - negligible * temperature
  const needed = topK > 0 || typicalP < 1 ? 1 : topP < 1 ? topP : share
  let ids = leading(scores, bound, topK > 0 ? topK : needed < 1 || minP > 0 ? fewCandidates : 0)
  let weights = Float64Array.from(ids, weightOf)
  let total = sum(weights)
  if (topK === 0 && ids.length === fewCandidates) {
    total = totalWeight(scores, largest, temperature)
    // What min-p leaves decides what the random number is a share of: it must end among these.
    const enough = (minP === 0 || topP < 1) && sum(weights) > needed * total
    const cut = minP > 0 && (weights[weights.length - 1] ?? 0) < minP
    if (!enough && !cut) {
      ids = leading(scores, bound, 0)
      weights = Float64Array.from(ids, weightOf)
    }
  }
  const nucleus = topP < 1 ? reaching(weights, topP * total) : weights.length
  // Weights are relative to the likeliest token's, which is 1.
  const likely = minP > 0 ? countWhile(weights, (weight) => weight >= minP) : weights.length
  const kept = Math.min(nucleus, likely)
  if (topP < 1 || minP > 0) [ids, weights, total] = [ids.subarray(0, kept), weights.subarray(0, kept), sum(weights.subarray(0, kept))]
  return typicalP < 1 ? typical({ ids, weights, total }, typicalP) : { ids, weights, total }
}

/** How many of the first weights it takes to reach `target`; the one that crosses it counts, so there is always one. */
function reaching(weights: Float64Array, target: number): number {
  let reached = 0
  let count = 0
  while (count < weights.length && (count === 0 || reached < target)) reached += weights[count++] ?? 0
  return count
}

function countWhile(weights: Float64Array, holds: (weight: number) => boolean): number {
  const end = weights.findIndex((weight) => !holds(weight))
  return end < 0 ? weights.length : end
}

/** The candidates whose surprise -log p lies nearest to the entropy, until their probability reaches `mass`; all that lie as near as the last one. */
function typical({ ids, weights, total }: Distribution, mass: number): Distribution {
  const probabilities = weights.map((weight) => weight / total)
  const entropy = -probabilities.reduce((expected, p) => expected + (p > 0 ? p * Math.log(p) : 0), 0)
  const distances = probabilities.map((p) => Math.abs(-Math.log(p) - entropy))
  const order = Array.from(distances.keys()).sort((a, b) => (distances[a] ?? 0) - (distances[b] ?? 0) || a - b)
  const last =
    reaching(
      Float64Array.from(order, (rank) => probabilities[rank] ?? 0),
      mass,
    ) - 1
  const furthest = distances[order[last] ?? 0] ?? 0
  const kept = Array.from(distances.keys()).filter((rank) => (distances[rank] ?? 0) <= furthest)
  const keptWeights = Float64Array.from(kept, (rank) => weights[rank] ?? 0)
  return { ids: Uint32Array.from(kept, (rank) => ids[rank] ?? 0), weights: keptWeights, total: sum(keptWeights) }
}

function totalWeight(scores: Float32Array, largest: number, temperature: number): number {
  let total = 0
  for (let id = 0; id < scores.length; id++) total += Math.exp(((scores[id] ?? 0) - largest) / temperature)
  return total
}

/** @throws GENERATION_NOT_FINITE */
export function checkFinite(scores: Float32Array, largest: number): void {
  let broken = !Number.isFinite(largest)
  for (let id = 0; id < scores.length && !broken; id++) broken = Number.isNaN(scores[id])
  if (!broken) return
  throw new ModalignError({
    code: 'GENERATION_NOT_FINITE',
    got: Number.isFinite(largest) ? 'NaN among the logits' : `${largest} as the largest logit`,
    expected: 'numbers',
    hint: 'the weights or the projected media hold NaN or infinity, or overflow in half precision',
  })
}

function sum(values: Float64Array): number {
  let total = 0
  for (const value of values) total += value
  return total
}
