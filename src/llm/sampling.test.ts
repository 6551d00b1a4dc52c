import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ModalignError } from '../errors.ts'
import { candidates, chooseToken, type SamplingOptions, samplingSchema } from './sampling.ts'

interface Case {
  readonly options: SamplingOptions
  readonly logits: readonly number[]
  readonly history: readonly number[]
  readonly probabilities: readonly number[]
}
const cases: readonly Case[] = JSON.parse(readFileSync(new URL('../../test/fixtures/parity/sampling.json', import.meta.url), 'utf8'))

test.each(cases)("$options gives the distribution of Transformers' logits processors", ({ options, logits, history, probabilities }) => {
  const { ids, probabilities: ours } = candidates(Float32Array.from(logits), options, history)
  const kept = probabilities.flatMap((probability, id) => (probability > 0 ? [id] : []))
  expect(Array.from(ids).sort((a, b) => a - b)).toEqual(kept)
  for (const [rank, id] of ids.entries()) expect(ours[rank]).toBeCloseTo(probabilities[id] ?? Number.NaN, 6)
  expect(ours.reduce((sum, probability) => sum + probability, 0)).toBeCloseTo(1, 12)
})

test('candidates come likeliest first, the lower id first among equals', () => {
  expect(Array.from(candidates(Float32Array.of(1, 3, 2, 3), { temperature: 1 }, []).ids)).toEqual([1, 3, 2, 0])
  expect(Array.from(candidates(Float32Array.of(1, 3, 2, 3), { temperature: 1, topK: 1 }, []).ids)).toEqual([1])
})

test('a penalty counts an id once, however often it occurred', () => {
  const logits = Float32Array.of(2, 1.9, -1)
  const penalised = { repetitionPenalty: 1.1 }
  expect(chooseToken(logits, penalised, [], 0)).toBe(0)
  expect(chooseToken(logits, penalised, [0], 0)).toBe(1)
  const once = candidates(logits, { ...penalised, temperature: 1 }, [0, 2])
  expect(candidates(logits, { ...penalised, temperature: 1 }, [0, 2, 0, 2, 0, -1, 99])).toEqual(once)
  expect(Array.from(logits)).toEqual(Array.from(Float32Array.of(2, 1.9, -1)))
})

describe('choosing', () => {
  test('without a temperature takes the likeliest, the first of equals, whatever the random number', () => {
    for (const uniform of [0, 0.5, 1 - 2 ** -53]) expect(chooseToken(Float32Array.of(1, 3, 3, 2), {}, [], uniform)).toBe(1)
    expect(chooseToken(Float32Array.of(1, 3, 3, 2), { topK: 3, topP: 0.1 }, [], 0.99)).toBe(1)
  })

  const logits = fc
    .array(fc.float({ min: -30, max: 30, noNaN: true }), { minLength: 1, maxLength: 40 })
    .map((values) => Float32Array.from(values))
  const options = fc.record(
    {
      temperature: fc.constantFrom(0.1, 0.7, 1, 3),
      topK: fc.nat({ max: 50 }),
      topP: fc.double({ min: 0.01, max: 1, noNaN: true }),
      repetitionPenalty: fc.constantFrom(0.5, 1, 1.3),
    },
    { requiredKeys: ['temperature'] },
  )

  test('any number in [0, 1) falls on a candidate, and each candidate on a share of its probability', () => {
    fc.assert(
      fc.property(logits, options, fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (scores, chosen, uniform) => {
        const { ids, probabilities } = candidates(scores, chosen, [0, 1])
        expect(ids.length).toBeGreaterThan(0)
        expect(ids).toContain(chooseToken(scores, chosen, [0, 1], uniform))
        // The middle of a candidate's share gives that candidate.
        let start = 0
        for (const [rank, probability] of probabilities.entries()) {
          if (probability > 1e-9) expect(chooseToken(scores, chosen, [0, 1], start + probability / 2)).toBe(ids[rank])
          start += probability
        }
      }),
      { seed: 2 },
    )
  })

  test('frequencies follow the probabilities', () => {
    const scores = Float32Array.of(0, 1, 2, 3)
    const { ids, probabilities } = candidates(scores, { temperature: 1.5 }, [])
    const counts = new Map<number, number>()
    const draws = 4000
    // Evenly spread numbers: each share is met to within one draw.
    for (let i = 0; i < draws; i++) {
      const id = chooseToken(scores, { temperature: 1.5 }, [], (i + 0.5) / draws)
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
      chooseToken(logits, { temperature }, [], 0)
    } catch (thrown) {
      error = thrown
    }
    expect(error).toBeInstanceOf(ModalignError)
    expect(error).toMatchObject({ code: 'GENERATION_NOT_FINITE', details: { got } })
  }
})

test('a token that is ruled out by -Infinity is never chosen', () => {
  expect(Array.from(candidates(Float32Array.of(Number.NEGATIVE_INFINITY, 0), { temperature: 2 }, []).ids)).toEqual([1])
})

test.each([
  { temperature: -1 },
  { temperature: Number.NaN },
  { topK: 1.5 },
  { topP: 0 },
  { topP: 1.01 },
  { repetitionPenalty: 0 },
  { top_p: 0.5 },
])('options %j are refused', (options) => {
  expect(samplingSchema.safeParse(options).success).toBe(false)
})
