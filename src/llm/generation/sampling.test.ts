import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ModalignError } from '../../errors.ts'
import { candidates, chooseToken } from './sampling.ts'
import { type SamplingOptions, samplingSchema } from './sampling-options.ts'
import type { TokenHistory } from './sampling-penalties.ts'
import { leading } from './sampling-ranking.ts'

/** A prompt without an answer yet. */
const said = (prompt: readonly number[]): TokenHistory => ({ prompt, answer: [] })

interface Case {
  readonly options: SamplingOptions
  readonly logits: readonly number[]
  readonly history: readonly number[]
  readonly probabilities: readonly number[]
}
const cases: readonly Case[] = JSON.parse(readFileSync(new URL('../../../test/fixtures/parity/sampling.json', import.meta.url), 'utf8'))

const made: readonly (Omit<Case, 'history'> & { readonly prompt: readonly number[]; readonly answer: readonly number[] })[] = JSON.parse(
  readFileSync(new URL('../../../test/fixtures/generation/sampling.json', import.meta.url), 'utf8'),
)
const all = [...cases.map(({ history, ...rest }) => ({ ...rest, prompt: history, answer: [] })), ...made].map((one) => ({
  ...one,
  label: JSON.stringify(one.options),
}))

test.each(all)(
  "$options gives the distribution of Transformers' logits processors",
  ({ options, logits, prompt, answer, probabilities }) => {
    const { ids, probabilities: ours } = candidates(Float32Array.from(logits), options, { prompt, answer })
    const kept = probabilities.flatMap((probability, id) => (probability > 0 ? [id] : []))
    expect(Array.from(ids).sort((a, b) => a - b)).toEqual(kept)
    for (const [rank, id] of ids.entries()) expect(ours[rank]).toBeCloseTo(probabilities[id] ?? Number.NaN, 6)
    expect(ours.reduce((sum, probability) => sum + probability, 0)).toBeCloseTo(1, 12)
  },
)

test('candidates come likeliest first, the lower id first among equals', () => {
  expect(Array.from(candidates(Float32Array.of(1, 3, 2, 3), { temperature: 1 }).ids)).toEqual([1, 3, 2, 0])
  expect(Array.from(candidates(Float32Array.of(1, 3, 2, 3), { temperature: 1, topK: 1 }).ids)).toEqual([1])
})

test('a penalty counts an id once, however often it occurred', () => {
  const logits = Float32Array.of(2, 1.9, -1)
  const penalised = { repetitionPenalty: 1.1 }
  expect(chooseToken(logits, penalised, said([]))).toBe(0)
  expect(chooseToken(logits, penalised, said([0]))).toBe(1)
  const once = candidates(logits, { ...penalised, temperature: 1 }, said([0, 2]))
  expect(candidates(logits, { ...penalised, temperature: 1 }, said([0, 2, 0, 2, 0, -1, 99]))).toEqual(once)
  expect(Array.from(logits)).toEqual(Array.from(Float32Array.of(2, 1.9, -1)))
})

describe('choosing', () => {
  test('without a temperature takes the likeliest, the first of equals, whatever the random number', () => {
    for (const uniform of [0, 0.5, 1 - 2 ** -53]) expect(chooseToken(Float32Array.of(1, 3, 3, 2), {}, said([]), uniform)).toBe(1)
    expect(chooseToken(Float32Array.of(1, 3, 3, 2), { topK: 3, topP: 0.1 }, said([]), 0.99)).toBe(1)
  })

  const logits = fc
    .array(fc.float({ min: -30, max: 30, noNaN: true }), { minLength: 1, maxLength: 40 })
    .map((values) => Float32Array.from(values))
  const options = fc.record(
    {
      temperature: fc.constantFrom(0.1, 0.7, 1, 3),
      topK: fc.nat({ max: 50 }),
      topP: fc.double({ min: 0.01, max: 1, noNaN: true }),
      minP: fc.constantFrom(0, 0.01, 0.5, 1),
      typicalP: fc.constantFrom(0.1, 0.9, 1),
      noRepeatNgramSize: fc.constantFrom(0, 2),
      presencePenalty: fc.constantFrom(0, 1, -1),
      repetitionPenalty: fc.constantFrom(0.5, 1, 1.3),
    },
    { requiredKeys: ['temperature'] },
  )

  test('any number in [0, 1) falls on a candidate, and each candidate on a share of its probability', () => {
    fc.assert(
      fc.property(logits, options, fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (scores, chosen, uniform) => {
        const { ids, probabilities } = candidates(scores, chosen, said([0, 1]))
        expect(ids.length).toBeGreaterThan(0)
        expect(ids).toContain(chooseToken(scores, chosen, said([0, 1]), uniform))
        // The middle of a candidate's share gives that candidate.
        let start = 0
        for (const [rank, probability] of probabilities.entries()) {
          if (probability > 1e-9) expect(chooseToken(scores, chosen, said([0, 1]), start + probability / 2)).toBe(ids[rank])
          start += probability
        }
      }),
      { seed: 2 },
    )
  })

  test('frequencies follow the probabilities', () => {
    const scores = Float32Array.of(0, 1, 2, 3)
    const { ids, probabilities } = candidates(scores, { temperature: 1.5 })
    const counts = new Map<number, number>()
    const draws = 4000
    // Evenly spread numbers: each share is met to within one draw.
    for (let i = 0; i < draws; i++) {
      const id = chooseToken(scores, { temperature: 1.5 }, said([]), (i + 0.5) / draws)
      counts.set(id, (counts.get(id) ?? 0) + 1)
    }
    for (const [rank, id] of ids.entries()) expect(Math.abs((counts.get(id) ?? 0) - (probabilities[rank] ?? 0) * draws)).toBeLessThan(1.5)
  })
})

test.each([
  [Float32Array.of(1, Number.NaN), 'NaN among the logits'],
  [Float32Array.of(Number.NaN, Number.NaN), 'NaN as the largest logit'],
  [Float32Array.of(1, Number.POSITIVE_INFINITY), 'Infinity as the largest logit'],
  [Float32Array.of(Number.NEGATIVE_INFINITY), '-Infinity as the largest logit'],
])('refuses %s', (logits, got) => {
  for (const temperature of [0, 1]) {
    let error: unknown
    try {
      chooseToken(logits, { temperature })
    } catch (thrown) {
      error = thrown
    }
    expect(error).toBeInstanceOf(ModalignError)
    expect(error).toMatchObject({ code: 'GENERATION_NOT_FINITE', details: { got } })
  }
})

test('a token that is ruled out by -Infinity is never chosen', () => {
  expect(Array.from(candidates(Float32Array.of(Number.NEGATIVE_INFINITY, 0), { temperature: 2 }).ids)).toEqual([1])
})

test.each([
  { temperature: -1 },
  { temperature: Number.NaN },
  { topK: 1.5 },
  { topP: 0 },
  { topP: 1.01 },
  { repetitionPenalty: 0 },
  { top_p: 0.5 },
  { minP: 1.5 },
  { typicalP: 0 },
  { noRepeatNgramSize: -1 },
  { presencePenalty: Number.NaN },
])('options %j are refused', (options) => {
  expect(samplingSchema.safeParse(options).success).toBe(false)
})

describe('ranking', () => {
  const value = fc.oneof(fc.float({ noNaN: true }), fc.constantFrom(0, -0, 1, -1, Number.NEGATIVE_INFINITY))
  test('the first of many are the first of all of them sorted, whatever their signs and however many are equal', () => {
    fc.assert(
      fc.property(
        fc.array(value, { minLength: 1, maxLength: 60 }),
        fc.nat({ max: 70 }),
        fc.constantFrom(Number.NEGATIVE_INFINITY, 0),
        (values, count, bound) => {
          const scores = Float32Array.from(values)
          const sorted = Array.from(scores.keys())
            .filter((id) => (scores[id] ?? 0) > bound)
            .sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0) || a - b)
          expect(Array.from(leading(scores, bound, count))).toEqual(count > 0 ? sorted.slice(0, count) : sorted)
        },
      ),
      { seed: 4, numRuns: 300 },
    )
  })

  test('with many candidates a random number falls where it falls when all are sorted', () => {
    const scores = Float32Array.from({ length: 5000 }, (_, id) => Math.sin(id * 12.9898) * 3)
    for (const options of [
      { temperature: 1 },
      { temperature: 0.8, topP: 0.97 },
      { temperature: 1, minP: 0.01 },
      { temperature: 1, minP: 0.9 },
      { temperature: 0.05, topP: 0.5 },
    ]) {
      const { ids, probabilities } = candidates(scores, options)
      let start = 0
      for (const [rank, probability] of probabilities.entries()) {
        if (rank % 97 === 0) expect(chooseToken(scores, options, undefined, start + probability / 2)).toBe(ids[rank])
        start += probability
      }
      expect(start).toBeCloseTo(1, 9)
    }
  })
})
