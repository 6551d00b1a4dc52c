import { readFile } from 'node:fs/promises'
import { expect, test } from 'vitest'
import { readConcepts } from './drawings.ts'
import { recipe, tinyTokenizer, trainLanguageModel } from './train-llm.ts'

const folder = new URL('./llm/', import.meta.url)
const replayed = process.env.MODALIGN_LONG === '1' ? 100 : 3

async function committedLog(): Promise<
  readonly { readonly step: number; readonly loss: number; readonly gradientNorm: number; readonly nameLoss?: number }[]
> {
  const text = await readFile(new URL('training-log.jsonl', folder), 'utf8')
  return text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
}

test('the committed log is of the whole recipe, and the model learnt to read names', async () => {
  const log = await committedLog()
  expect(log.map(({ step }) => step)).toEqual(Array.from({ length: recipe.steps }, (_, index) => index + 1))
  // Of clean names: no model can be sure of mixtures.
  expect(log.at(-1)?.nameLoss).toBeLessThan(0.01)
})

test('training the language model again repeats its committed log', { timeout: 600_000 }, async () => {
  const log = await committedLog()
  const concepts = await readConcepts(new URL('./concepts.json', import.meta.url))
  const { tokenizer, template, files } = await tinyTokenizer(concepts)
  expect(JSON.parse(files['tokenizer.json'] ?? '')).toEqual(JSON.parse(await readFile(new URL('tokenizer.json', folder), 'utf8')))
  const training = trainLanguageModel(concepts, { tokenizer, template, steps: replayed })
  let last = await training.next()
  for (; last.done !== true; last = await training.next()) {
    const committed = log[last.value.step - 1]
    // Rounding differs between processors, and grows with the steps.
    const tolerance = last.value.step <= 10 ? 1e-4 : 2e-2
    expect(Math.abs(last.value.loss / (committed?.loss ?? Number.NaN) - 1), `loss of step ${last.value.step}`).toBeLessThan(tolerance)
  }
  await last.value.dispose()
})
