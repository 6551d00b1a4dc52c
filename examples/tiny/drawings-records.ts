/** The drawings as LLaVA instruction records. */
import type { Concept, Style } from './drawings.ts'
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

/** One record of LLaVA's instruction format. */
export interface LlavaRecord {
  readonly id: string
  readonly image: string
  readonly conversations: readonly { readonly from: 'human' | 'gpt'; readonly value: string }[]
}

export interface RecordOptions {
  /** Default 1. */
  readonly seed?: number
  /** How many questions follow "What is this?" in each record, about the same picture. Default 2. */
  readonly followUps?: number
}

/** Where a record's picture lies under the dataset's root. */
export function drawingPath(style: Style, concept: Concept): string {
  return `${style}/${concept.id}.png`
}

/**
 * One record a concept: `<image>` and a question for its name, then questions of other kinds in later turns. The same seed gives the same records.
 *
 * @example
 * datasetRecords('noto', concepts, { followUps: 0 })[0]
 * // { id: 'noto/1f600', image: 'noto/1f600.png', conversations: [{ from: 'human', value: '<image>\nWhat is this?' }, { from: 'gpt', value: 'grinning face' }] }
 */
export function datasetRecords(
  style: Style,
  concepts: readonly Concept[],
  { seed = 1, followUps = 2 }: RecordOptions = {},
): readonly LlavaRecord[] {
  const words = commonTags(concepts)
  return concepts.map((concept) => {
    const random = randomOf('records', seed, style, concept.id)
    const turns: QuestionAnswer[] = [{ kind: 'name', question: nameQuestion, answer: concept.name }]
    const kinds: [QuestionKind, ...QuestionKind[]] = ['group', 'kind', 'word', ...predicateKinds]
    while (turns.length <= followUps) {
      const asked = questionAbout(pick(random, kinds), concept, random, words)
      if (asked !== undefined) turns.push(asked)
    }
    return {
      id: `${style}/${concept.id}`,
      image: drawingPath(style, concept),
      conversations: turns.flatMap(({ question, answer }, index) => [
        { from: 'human' as const, value: index === 0 ? `<image>\n${question}` : question },
        { from: 'gpt' as const, value: answer },
      ]),
    }
  })
}

/** The evaluation's records: "What is this?" about every drawing of the style, nothing else. */
export function evaluationRecords(style: Style, concepts: readonly Concept[]): readonly LlavaRecord[] {
  return datasetRecords(style, concepts, { followUps: 0 })
}
