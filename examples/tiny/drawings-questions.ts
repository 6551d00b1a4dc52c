/** What can be asked about a concept, and the answers. The language model's corpus and the pictures' records share these, so that both use one wording. */
import { createHash } from 'node:crypto'
import type { Concept } from './drawings.ts'

export type QuestionKind = 'name' | 'group' | 'kind' | 'food' | 'drink' | 'animal' | 'person' | 'face' | 'word'

export interface QuestionAnswer {
  readonly kind: QuestionKind
  readonly question: string
  readonly answer: string
}

/** The question by which the demonstration is judged. */
export const nameQuestion = 'What is this?'

const phrasings: Readonly<Record<QuestionKind, readonly [string, ...string[]]>> = {
  name: [nameQuestion, 'What is in the picture?', 'What do you see?', 'Name this.'],
  group: ['Which group is it in?', 'What group does this belong to?'],
  kind: ['What kind of thing is it?', 'What kind is this?'],
  food: ['Is it food?', 'Can you eat this?'],
  drink: ['Is it a drink?', 'Can you drink this?'],
  animal: ['Is it an animal?', 'Is this an animal?'],
  person: ['Is it a person?', 'Is this a person?'],
  face: ['Is it a face?', 'Is this a face?'],
  word: ['Does it go with WORD?', 'Does WORD fit this?'],
}

/** Things of an animal's subgroup that are no whole animal, and drawings of which it depends whom one asks. No question is asked about them. */
const partsOfAnimals: ReadonlySet<string> = new Set([
  'pig nose',
  'paw prints',
  'feather',
  'wing',
  'spiral shell',
  'coral',
  'oyster',
  'spider web',
  'microbe',
  'unicorn',
  'dragon face',
  'dragon',
])

/** Yes, no, or no question, because the answer is a matter of opinion. */
const predicates: Readonly<Record<'food' | 'drink' | 'animal' | 'person' | 'face', (concept: Concept) => boolean | undefined>> = {
  food: ({ group, subgroup }) =>
    group === 'food and drink' ? subgroup.startsWith('food') || undefined : group.startsWith('animals') ? undefined : false,
  drink: ({ group, subgroup }) => (subgroup === 'drink' ? true : group === 'food and drink' ? undefined : false),
  animal: ({ name, subgroup }) => (partsOfAnimals.has(name) || subgroup.endsWith('face') ? undefined : subgroup.startsWith('animal')),
  person: ({ subgroup }) => (/^(body|hand|person fantasy|person symbol|family)/.test(subgroup) ? undefined : subgroup.startsWith('person')),
  face: ({ group, subgroup, name }) =>
    group === 'smileys and emotion'
      ? subgroup.startsWith('face') || undefined
      : group === 'people and body' || name.includes('face')
        ? undefined
        : false,
}
export const predicateKinds = ['food', 'drink', 'animal', 'person', 'face'] as const

/** Numbers in [0, 1) that depend on nothing but the words given: SHA-256 in counter mode, 53 bits a number. */
export function randomOf(...seed: readonly (string | number)[]): () => number {
  let block = Buffer.alloc(0)
  let counter = 0
  let offset = 0
  return () => {
    if (offset + 8 > block.length) {
      block = createHash('sha256')
        .update(JSON.stringify([...seed, counter++]))
        .digest()
      offset = 0
    }
    const value = Number(block.readBigUInt64LE(offset) >> 11n) / 2 ** 53
    offset += 8
    return value
  }
}

export function pick<T>(random: () => number, choices: readonly [T, ...T[]]): T {
  return choices[Math.floor(random() * choices.length)] ?? choices[0]
}

/** Tags that at least `minConcepts` concepts (default 3) carry: words worth a question. Sorted by how often, then by spelling. */
export function commonTags(concepts: readonly Concept[], minConcepts = 3): readonly string[] {
  const counts = new Map<string, number>()
  for (const { tags } of concepts) for (const tag of tags) counts.set(tag, (counts.get(tag) ?? 0) + 1)
  return [...counts]
    .filter(([, count]) => count >= minConcepts)
    .toSorted(([a, m], [b, n]) => n - m || (a < b ? -1 : 1))
    .map(([tag]) => tag)
}

/** Does the word belong to the concept: is it a tag or a word of its names and groups? */
function goesWith({ tags, name, group, subgroup }: Concept, word: string): boolean {
  return tags.includes(word) || [name, group, subgroup].some((text) => text.split(/[^\p{L}\p{N}-]+/u).includes(word))
}

/**
 * One question of the kind with its answer; undefined where the concept has no clear answer.
 *
 * @param words what "Does it go with ...?" may ask about ({@link commonTags})
 * @example
 * questionAbout('food', concepts[0], randomOf(1), commonTags(concepts)) // { kind: 'food', question: 'Is it food?', answer: 'no' }
 */
export function questionAbout(
  kind: QuestionKind,
  concept: Concept,
  random: () => number,
  words: readonly string[],
): QuestionAnswer | undefined {
  const question = pick(random, phrasings[kind])
  switch (kind) {
    case 'name':
      return { kind, question, answer: concept.name }
    case 'group':
      return { kind, question, answer: concept.group }
    case 'kind':
      return { kind, question, answer: concept.subgroup }
    case 'word': {
      const own = words.filter((word) => concept.tags.includes(word))
      const others = words.filter((word) => !goesWith(concept, word))
      const yes = random() < 0.5
      const [first, ...rest] = yes ? own : others
      return first === undefined
        ? undefined
        : { kind, question: question.replace('WORD', pick(random, [first, ...rest])), answer: yes ? 'yes' : 'no' }
    }
    default: {
      const answer = predicates[kind](concept)
      return answer === undefined ? undefined : { kind, question, answer: answer ? 'yes' : 'no' }
    }
  }
}
