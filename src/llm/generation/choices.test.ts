import fc from 'fast-check'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { generationModel, type WatchedModel } from '../../../test/generation-model.ts'
import { CacheRows } from './cache-rows.ts'
import { scoreAnswers } from './choices.ts'

let model: WatchedModel
beforeAll(async () => {
  model = await generationModel()
})
afterAll(() => model.session.dispose())

/** From logits of whole prompts, one after another: nothing shared. */
async function scored(prompt: readonly number[], answer: readonly number[]): Promise<number> {
  let sum = 0
  for (const [index, id] of answer.entries()) {
    const rows = new CacheRows(model)
    const [logits = new Float32Array(0)] = await rows.read([{ ids: [...prompt, ...answer.slice(0, index)] }])
    await rows.clear()
    const largest = Math.max(...logits)
    sum += (logits[id] ?? 0) - largest - Math.log(logits.reduce((total, logit) => total + Math.exp(logit - largest), 0))
  }
  return sum
}

test('answers have the sum of the log-probabilities that their tokens have one by one, whatever they begin with in common', async () => {
  const answer = fc.array(fc.nat({ max: 3 }), { minLength: 1, maxLength: 4 })
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.nat({ max: 95 }), { minLength: 1, maxLength: 6 }),
      fc.array(answer, { minLength: 1, maxLength: 6 }),
      async (prompt, answers) => {
        const scores = await scoreAnswers(model, { ids: prompt }, answers)
        for (const [index, one] of answers.entries()) expect(scores[index]).toBeCloseTo(await scored(prompt, one), 3)
      },
    ),
    { seed: 3, numRuns: 8 },
  )
})

test('hundreds of answers cost a step for each of their tokens and each thirty-two of them; the prompt is read once', async () => {
  const answers = Array.from({ length: 200 }, (_, index) => [index % 10, Math.floor(index / 10), 7])
  const { length } = model.runs
  const scores = await scoreAnswers(model, { ids: [1, 2, 3, 4, 5, 6, 7, 8] }, answers)
  const runs = model.runs.slice(length)
  expect(runs.filter(([, tokens]) => tokens === 8)).toHaveLength(1)
  expect(runs.length).toBeLessThanOrEqual(1 + 2 * Math.ceil(200 / 32))
  // Probabilities of different answers of one length can add up to 1 at most.
  expect(scores.reduce((sum, score) => sum + Math.exp(score), 0)).toBeLessThan(1)
  expect(scores[137]).toBeCloseTo(await scored([1, 2, 3, 4, 5, 6, 7, 8], answers[137] ?? []), 3)
})
