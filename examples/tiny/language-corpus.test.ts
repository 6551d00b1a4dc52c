import { expect, test } from 'vitest'
import { readConcepts } from './drawings.ts'
import { commonTags, type QuestionKind, questionAbout, randomOf } from './drawings-questions.ts'
import { datasetRecords, evaluationRecords } from './drawings-records.ts'
import { corpusSample, languageCorpus, noPictureAnswer, tokenizerCorpus } from './language-corpus.ts'

const concepts = await readConcepts(new URL('./concepts.json', import.meta.url))
const words = commonTags(concepts)
const byName = new Map(concepts.map((concept) => [concept.name, concept]))

function answer(kind: QuestionKind, name: string): string | undefined {
  const concept = byName.get(name)
  if (concept === undefined) throw new Error(`no concept ${name}`)
  return questionAbout(kind, concept, randomOf('test'), words)?.answer
}

test.each([
  ['name', 'tomato', 'tomato'],
  ['group', 'tomato', 'food and drink'],
  ['kind', 'tomato', 'food fruit'],
  ['food', 'tomato', 'yes'],
  ['food', 'rocket', 'no'],
  ['food', 'chicken', undefined],
  ['drink', 'hot beverage', 'yes'],
  ['animal', 'owl', 'yes'],
  ['animal', 'feather', undefined],
  ['animal', 'tomato', 'no'],
  ['person', 'firefighter', 'yes'],
  ['person', 'nose', undefined],
  ['face', 'grinning face', 'yes'],
  ['face', 'rocket', 'no'],
] as const)('%s of %s: %s', (kind, name, expected) => {
  expect(answer(kind, name)).toBe(expected)
})

test('"goes with" is yes for tags, no for words that have nothing to do with the concept', () => {
  const seen = new Set<string>()
  for (const concept of concepts.slice(0, 200)) {
    const asked = questionAbout('word', concept, randomOf('word', concept.id), words)
    const word = words.find((one) => asked?.question === `Does it go with ${one}?` || asked?.question === `Does ${one} fit this?`)
    if (asked === undefined || word === undefined) continue
    seen.add(asked.answer)
    expect(concept.tags.includes(word)).toBe(asked.answer === 'yes')
  }
  expect(seen).toEqual(new Set(['yes', 'no']))
})

test('random numbers are uniform, and depend on the seed alone', () => {
  const one = randomOf('a', 1)
  const numbers = Array.from({ length: 20_000 }, one)
  expect(Math.min(...numbers)).toBeGreaterThanOrEqual(0)
  expect(Math.max(...numbers)).toBeLessThan(1)
  expect(Math.abs(numbers.reduce((sum, value) => sum + value, 0) / numbers.length - 0.5)).toBeLessThan(0.01)
  const again = randomOf('a', 1)
  expect(numbers.slice(0, 9)).toEqual(Array.from({ length: 9 }, again))
  expect(randomOf('a', 2)()).not.toBe(numbers[0])
})

test('records are LLaVA records: one picture, the first question holds its place', () => {
  const records = datasetRecords('noto', concepts)
  expect(records.length).toBe(concepts.length)
  for (const [index, { id, image, conversations }] of records.entries()) {
    const name = concepts[index]?.name ?? ''
    expect({ image, conversations }).toMatchObject({
      image: `${id}.png`,
      conversations: [
        { from: 'human', value: '<image>\nWhat is this?' },
        { from: 'gpt', value: name },
        { from: 'human', value: expect.stringMatching(/^[^<]+\?$/) },
        { from: 'gpt', value: expect.stringMatching(/^[^<]+$/) },
        { from: 'human', value: expect.stringMatching(/^[^<]+\?$/) },
        { from: 'gpt', value: expect.stringMatching(/^[^<]+$/) },
      ],
    })
  }
  expect(datasetRecords('noto', concepts)).toEqual(records)
  expect(datasetRecords('noto', concepts, { seed: 2 })).not.toEqual(records)
  expect(evaluationRecords('fluent', concepts).every(({ conversations }) => conversations.length === 2)).toBe(true)
})

test('each epoch of the corpus visits every concept once, in an order of its own, and repeats exactly', () => {
  const corpus = [...languageCorpus(concepts, { epochs: 2 })]
  expect(corpus.length).toBe(2 * concepts.length)
  const ids = corpus.map(({ id }) => id.split('/').at(-1))
  const [first, second] = [ids.slice(0, concepts.length), ids.slice(concepts.length)]
  expect(new Set(first).size).toBe(concepts.length)
  expect(new Set(second)).toEqual(new Set(first))
  expect(second).not.toEqual(first)
  expect([...languageCorpus(concepts, { epochs: 1 })]).toEqual(corpus.slice(0, concepts.length))
  expect([...languageCorpus(concepts, { seed: 2 })]).not.toEqual(corpus.slice(0, concepts.length))
})

test('where nothing stands in the picture’s place, the model says so', () => {
  const blind = [...languageCorpus(concepts, { epochs: 2 })].filter(
    ({ description, turns }) => description === undefined && turns[0]?.question === 'What is this?',
  )
  expect(blind.length).toBeGreaterThan(0)
  for (const { turns } of blind) expect(turns.map(({ answer }) => answer)).toEqual([noPictureAnswer])
})

test('a sample keeps the description apart from the question, with a line break between', () => {
  expect(corpusSample({ id: 'x', description: 'owl', turns: [{ question: 'What is this?', answer: 'owl' }] })).toEqual({
    id: 'x',
    turns: [
      {
        role: 'user',
        content: [
          { type: 'text', text: 'owl' },
          { type: 'text', text: '\nWhat is this?' },
        ],
      },
      { role: 'assistant', content: [{ type: 'text', text: 'owl' }] },
    ],
  })
})

test('the tokenizer’s text holds every name', () => {
  const lines = new Set([...tokenizerCorpus(concepts)].flatMap((text) => text.split('\n')))
  expect(concepts.filter(({ name }) => !lines.has(name))).toEqual([])
})
