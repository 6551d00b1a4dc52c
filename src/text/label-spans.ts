/** Conversations as token ids, with the tokens that a model is to learn marked: built turn by turn, never by searching text. */
import { ModalignError } from '../errors.ts'
import type { Sample, Turn } from '../model/contracts.ts'
import type { ChatTemplate } from './chat-template.ts'
import { conversationPieces, type MediaPart, type Piece } from './conversation.ts'
import type { TextSegment, Tokenizer } from './tokenizer.ts'

export type { MediaPart } from './conversation.ts'

export interface PromptOptions {
  readonly tokenizer: Tokenizer
  readonly template: ChatTemplate
  /** How many of the language model's tokens a medium occupies: at least 1. */
  readonly mediaTokens: (part: MediaPart) => number
}

export interface LabelOptions extends PromptOptions {
  /** In tokens, media included. Default: no limit. */
  readonly maxLength?: number
  /** What becomes of a longer sample: an error (default), or its end is cut off, never within a medium. */
  readonly overflow?: 'error' | 'truncate'
}

/** Where a medium stands: `ids[start]` to `ids[start + length - 1]`. `turn` counts from 0. */
export interface MediaSpan {
  readonly part: MediaPart
  readonly turn: number
  readonly start: number
  readonly length: number
}

/** Media are counted from 0 in the order in which they stand; each id of medium `i` is `-(i + 1)`. */
export interface PromptIds {
  readonly ids: Int32Array
  readonly media: readonly MediaSpan[]
}

export interface LabelledIds extends PromptIds {
  /** How much the prediction of `ids[i]` counts; 0 where it is no target. The first id never is one: nothing stands before it. */
  readonly weights: Float32Array
  /** How many weights are above 0: at least 1. */
  readonly targets: number
}

/**
 * Ids of a sample and the weight of each as a target.
 *
 * The ids are those that Transformers' `apply_chat_template(tokenize=True)` gives, as long as no turn says a control token; where one does, it stays text. A
 * medium cuts the text as a special token would. Targets are the tokens that hold at least one character of a supervised turn's content, of the white space in front of
 * it that the generation prompt lacks, or of what the template closes the turn with, up to and with its first control token. So a token that straddles the
 * header's end is a target exactly when it holds something of the answer; between control tokens, as in ChatML, none does. Assistant turns are supervised unless
 * their `weight` is 0, others if theirs is above 0.
 *
 * @throws ModalignError `DATA_NO_TARGET`, `DATA_TOO_LONG`, `DATA_WEIGHT`, `DATA_EMPTY`, `DATA_ROLE_ORDER`, `MEDIA_TOKEN_COUNT`, `TEMPLATE_DROPS_TURN`,
 * `TEMPLATE_CHANGES_TEXT`, `TEMPLATE_LIMIT`, `TEMPLATE_FAILED`, all naming the record
 * @example
 * const { ids, weights } = labelSpans(sample, { tokenizer, template, mediaTokens: () => 49 })
 */
export function labelSpans(sample: Sample, options: LabelOptions): LabelledIds {
  try {
    return fitted(assemble(conversationPieces(sample.turns, { ...options, addGenerationPrompt: false }), sample.turns, options), options)
  } catch (error) {
    throw inRecord(error, sample)
  }
}

/**
 * The same sample once the sizes of its media are known: each medium takes so many places, and the text keeps its ids and weights.
 *
 * @param lengths one for each medium, at least 1
 * @throws ModalignError `DATA_TOO_LONG`, `DATA_NO_TARGET`, `MEDIA_TOKEN_COUNT`
 */
export function withMediaLengths(
  sample: LabelledIds,
  lengths: readonly number[],
  options: Pick<LabelOptions, 'maxLength' | 'overflow'>,
): LabelledIds {
  if (sample.media.every(({ length }, index) => length === lengths[index])) return sample
  const ids: number[] = []
  const weights: number[] = []
  const media: MediaSpan[] = []
  let taken = 0
  const takeText = (end: number): void => {
    for (; taken < end; taken++) {
      ids.push(sample.ids[taken] ?? 0)
      weights.push(sample.weights[taken] ?? 0)
    }
  }
  for (const [index, span] of sample.media.entries()) {
    takeText(span.start)
    taken += span.length
    const length = mediaLength(lengths[index] ?? 0, span)
    media.push({ ...span, start: ids.length, length })
    for (let i = 0; i < length; i++) {
      ids.push(-(index + 1))
      weights.push(0)
    }
  }
  takeText(sample.ids.length)
  return fitted({ ids: Int32Array.from(ids), weights: Float32Array.from(weights), media }, options)
}

/**
 * Ids of a conversation that a model is to continue.
 *
 * @param options.addGenerationPrompt ends with the header of an answer; default true
 * @throws as {@link labelSpans}, without a record
 * @example
 * const { ids } = renderPrompt([{ role: 'user', content: [{ type: 'text', text: 'Hi' }] }], { tokenizer, template, mediaTokens: () => 49 })
 */
export function renderPrompt(turns: readonly Turn[], options: PromptOptions & { readonly addGenerationPrompt?: boolean }): PromptIds {
  const { ids, media } = assemble(conversationPieces(turns, { addGenerationPrompt: true, ...options }), turns, options)
  return { ids, media }
}

interface Assembled extends PromptIds {
  readonly weights: Float32Array
}

function assemble(pieces: readonly Piece[], turns: readonly Turn[], { tokenizer, template, mediaTokens }: PromptOptions): Assembled {
  const weightOf = turns.map(turnWeight)
  const plain = plainTokens(tokenizer, template)
  const ids: number[] = []
  const weights: number[] = []
  const media: MediaSpan[] = []
  let segments: (TextSegment & { readonly weight: number })[] = []
  const flush = () => {
    const encoded = tokenizer.encodeSegments(segments, media.length > 0)
    for (const [i, id] of encoded.ids.entries()) {
      ids.push(id)
      const covered = segments.slice(encoded.first[i], (encoded.last[i] ?? 0) + 1)
      weights.push(covered.reduce((most, { weight }) => Math.max(most, weight), 0))
    }
    segments = []
  }
  for (const piece of pieces) {
    if (piece.type === 'media') {
      flush()
      const length = mediaLength(mediaTokens(piece.part), piece)
      media.push({ part: piece.part, turn: piece.turn, start: ids.length, length })
      for (let i = 0; i < length; i++) {
        ids.push(-media.length)
        weights.push(0)
      }
      continue
    }
    const weight = piece.answer && piece.turn !== undefined ? (weightOf[piece.turn] ?? 0) : 0
    if (piece.type === 'template') segments.push({ text: piece.text, weight })
    else segments.push({ text: piece.text, weight, plain: piece.role === 'assistant' ? plain.answer : plain.other })
  }
  flush()
  if (weights.length > 0) weights[0] = 0
  return { ids: Int32Array.from(ids), weights: Float32Array.from(weights), media }
}

function mediaLength(length: number, { part, turn }: Pick<MediaSpan, 'part' | 'turn'>): number {
  if (Number.isInteger(length) && length >= 1) return length
  throw new ModalignError({
    code: 'MEDIA_TOKEN_COUNT',
    field: `/turns/${turn}`,
    got: `${length} tokens for this ${part.type}`,
    expected: 'at least 1',
  })
}

function fitted(whole: Assembled, { maxLength, overflow = 'error' }: Pick<LabelOptions, 'maxLength' | 'overflow'>): LabelledIds {
  if (maxLength === undefined || whole.ids.length <= maxLength) return labelled(whole)
  if (overflow === 'truncate') return labelled(truncate(whole, maxLength), whole.ids.length)
  throw new ModalignError({
    code: 'DATA_TOO_LONG',
    got: `${whole.ids.length} tokens`,
    expected: `at most ${maxLength}`,
    hint: 'raise the length, leave the sample out, or allow truncation',
  })
}

function turnWeight({ role, weight = role === 'assistant' ? 1 : 0 }: Turn, turn: number): number {
  if (Number.isFinite(weight) && weight >= 0) return weight
  throw new ModalignError({ code: 'DATA_WEIGHT', field: `/turns/${turn}/weight`, got: String(weight), expected: 'a number from 0' })
}

/**
 * What stays text: control tokens everywhere; outside answers also the added tokens that the template writes though the tokenizer does not call them special (some
 * publish `<|im_start|>` that way). In answers those are allowed, because models are taught to write some of them (`<think>`).
 */
function plainTokens(
  tokenizer: Tokenizer,
  template: ChatTemplate,
): { readonly answer: ReadonlySet<string>; readonly other: ReadonlySet<string> } {
  const written = tokenizer.addedTokens.filter(({ content }) => content.trim() !== '' && template.source.includes(content))
  return { answer: tokenizer.controlTokens, other: new Set([...tokenizer.controlTokens, ...written.map((token) => token.content)]) }
}

function truncate({ ids, weights, media }: Assembled, maxLength: number): Assembled {
  const cut = media.find(({ start, length }) => start < maxLength && start + length > maxLength)
  const length = cut?.start ?? maxLength
  return { ids: ids.slice(0, length), weights: weights.slice(0, length), media: media.filter(({ start }) => start < length) }
}

function labelled(assembled: Assembled, truncatedFrom?: number): LabelledIds {
  const targets = assembled.weights.reduce((count, weight) => (weight > 0 ? count + 1 : count), 0)
  if (targets > 0) return { ...assembled, targets }
  throw new ModalignError({
    code: 'DATA_NO_TARGET',
    field: '/turns',
    got:
      truncatedFrom === undefined ? 'no token to learn' : `no token to learn among the first ${assembled.ids.length} of ${truncatedFrom}`,
    expected: 'an assistant turn whose weight is not 0',
    hint: truncatedFrom === undefined ? 'add an answer, or leave the sample out' : 'raise the length, or leave the sample out',
  })
}

function inRecord(error: unknown, { id, origin }: Sample): unknown {
  if (!(error instanceof ModalignError)) return error
  const { got, file } = error.details
  return new ModalignError({
    ...error.details,
    file: error.code.startsWith('TEMPLATE_') ? (file ?? origin?.file) : origin?.file,
    record: origin?.record,
    got: origin === undefined ? `sample ${JSON.stringify(id)}: ${got}` : got,
    cause: error,
  })
}
