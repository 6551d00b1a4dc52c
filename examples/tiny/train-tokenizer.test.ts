import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { ModalignError } from '../../src/errors.ts'
import { trainByteLevelBpe } from './train-tokenizer.ts'

const fixture = (name: string): unknown => JSON.parse(readFileSync(new URL(`../../test/fixtures/text/${name}`, import.meta.url), 'utf8'))
const specialTokens = ['<|im_start|>', '<|im_end|>', '<|endoftext|>']

function corpus(): readonly string[] {
  const value = fixture('corpus.json')
  if (typeof value !== 'object' || value === null || !('corpus' in value) || !Array.isArray(value.corpus))
    throw new Error('corpus.json has no corpus')
  return value.corpus.map(String)
}

test('learns the very file that Hugging Face tokenizers learns from the same corpus', () => {
  expect(trainByteLevelBpe(corpus(), { vocabularySize: 900, specialTokens })).toEqual(fixture('byte-level.json'))
})

test('and the same of whole lines, whose merges cross spaces', () => {
  expect(trainByteLevelBpe(corpus(), { vocabularySize: 600, specialTokens, within: 'lines' })).toEqual(fixture('byte-level-lines.json'))
})

test('the order of the corpus does not matter', () => {
  const options = { vocabularySize: 500, specialTokens }
  expect(trainByteLevelBpe(corpus().toReversed(), options)).toEqual(trainByteLevelBpe(corpus(), options))
})

test('stops early when nothing is left to merge', () => {
  const { model } = trainByteLevelBpe(['aab', 'aab'], { vocabularySize: 1000, specialTokens: [] })
  expect(model.merges).toEqual([
    ['a', 'a'],
    ['aa', 'b'],
  ])
  expect(Object.keys(model.vocab)).toHaveLength(258)
})

test.each([
  [{ vocabularySize: 258, specialTokens }, '/vocabularySize'],
  [{ vocabularySize: 300.5, specialTokens }, '/vocabularySize'],
  [{ vocabularySize: 300, specialTokens: ['<|a|>', '<|a|>'] }, '/specialTokens/1'],
  [{ vocabularySize: 300, specialTokens: [''] }, '/specialTokens/0'],
  [{ vocabularySize: 300, specialTokens: ['user'] }, '/specialTokens/0'],
])('refuses %j', (options, field) => {
  let error: unknown
  try {
    trainByteLevelBpe(['text'], options)
  } catch (thrown) {
    error = thrown
  }
  expect(error).toBeInstanceOf(ModalignError)
  expect(error).toMatchObject({ code: 'TOKENIZER_TRAINING_OPTIONS', details: { field } })
})
