/**
 * The text on which the tiny language model is trained. It sees no picture: where a picture would stand in a conversation, a short text stands that says what the picture
 * would show (a name, sometimes with tags), and the model learns to read what stands there and answer.
 */
import type { Sample, Turn } from '../../src/model/contracts.ts'
import type { Concept } from './drawings.ts'
import {
  commonTags,
  nameQuestion,
  pick,
  predicateKinds,
  type QuestionAnswer,
  type QuestionKind,
  questionAbout,
  randomOf,
} from './drawings-questions.ts'

/** One conversation. `description`: the text in the picture's place; absent where nothing stands there. */
export interface CorpusConversation {
  readonly id: string
  readonly description?: string
  readonly turns: readonly { readonly question: string; readonly answer: string }[]
}

export interface CorpusOptions {
  /** Default 1. */
  readonly seed?: number
  /** How many passes over the concepts. Default 1. */
  readonly epochs?: number
}

/** What the model says when asked about a picture that is not there. */
export const noPictureAnswer = 'i see no picture.'

function shuffled<T>(random: () => number, items: readonly T[]): T[] {
  const result = [...items]
  for (let last = result.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1))
    const [a, b] = [result[last], result[other]]
    if (a !== undefined && b !== undefined) {
      result[last] = b
      result[other] = a
    }
  }
  return result
}

/** What stands in the picture's place: mostly the name, which is one token; sometimes tags with it. */
function describe(concept: Concept, random: () => number, words: ReadonlySet<string>): string {
  if (random() < 0.85) return concept.name
  const tags = shuffled(
    random,
    concept.tags.filter((tag) => words.has(tag)),
  ).slice(0, 4)
  return [concept.name, ...tags].join(', ')
}

function conversationAbout(
  concept: Concept,
  random: () => number,
  words: readonly string[],
  wordSet: ReadonlySet<string>,
): Omit<CorpusConversation, 'id'> {
  const form = random()
  if (form < 0.03) return { turns: [{ question: `What group is ${concept.name} in?`, answer: concept.group }] }
  if (form < 0.04) return { turns: [{ question: nameQuestion, answer: noPictureAnswer }] }
  const kinds: [QuestionKind, ...QuestionKind[]] = ['group', 'kind', 'word', ...predicateKinds]
  const turns: QuestionAnswer[] = []
  const count = random() < 0.6 ? 1 : 2
  while (turns.length < count) {
    const asked = questionAbout(random() < (turns.length === 0 ? 0.7 : 0.3) ? 'name' : pick(random, kinds), concept, random, words)
    if (asked !== undefined) turns.push(asked)
  }
  return { description: describe(concept, random, wordSet), turns: turns.map(({ question, answer }) => ({ question, answer })) }
}

/**
 * The conversations, in the order in which to train on them: every epoch visits every concept once, in a new order. The same seed gives the same conversations.
 *
 * @example
 * const [first] = [...languageCorpus(concepts, { seed: 1, epochs: 1 })]
 * // { id: 'corpus/0/1f431', description: 'cat face', turns: [{ question: 'What is this?', answer: 'cat face' }] }
 */
export function* languageCorpus(concepts: readonly Concept[], { seed = 1, epochs = 1 }: CorpusOptions = {}): Generator<CorpusConversation> {
  const words = commonTags(concepts)
  const wordSet = new Set(words)
  for (let epoch = 0; epoch < epochs; epoch++) {
    for (const concept of shuffled(randomOf('order', seed, epoch), concepts)) {
      yield {
        id: `corpus/${epoch}/${concept.id}`,
        ...conversationAbout(concept, randomOf('corpus', seed, epoch, concept.id), words, wordSet),
      }
    }
  }
}

/** The conversation as a sample: the description is the first text part of the first turn, the question the second, with a line break between as LLaVA has one after `<image>`. */
export function corpusSample({ id, description, turns }: CorpusConversation): Sample {
  const messages = turns.flatMap(({ question, answer }, index): Turn[] => [
    {
      role: 'user',
      content:
        index === 0 && description !== undefined
          ? [
              { type: 'text', text: description },
              { type: 'text', text: `\n${question}` },
            ]
          : [{ type: 'text', text: question }],
    },
    { role: 'assistant', content: [{ type: 'text', text: answer }] },
  ])
  return { id, turns: messages }
}

/** How often the tokenizer's text repeats each name and each role's name: often enough that each becomes one token. */
const tokenRepeats = 64

/** Plain text for training the tokenizer: every name, group and tag, the roles' names, and the corpus's own conversations. */
export function* tokenizerCorpus(concepts: readonly Concept[], options: CorpusOptions = {}): Generator<string> {
  for (const { name, group, subgroup } of concepts) {
    yield `${name}\n`.repeat(tokenRepeats)
    yield `${group}\n${subgroup}`
    yield 'system\nuser\nassistant'
  }
  for (const { description, turns } of languageCorpus(concepts, options)) {
    yield [description, ...turns.flatMap(({ question, answer }) => [question, answer])].filter((text) => text !== undefined).join('\n')
  }
}
