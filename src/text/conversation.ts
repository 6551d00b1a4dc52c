/**
 * A conversation as pieces: what the template says, what each turn says, and where media stand.
 *
 * Chat templates are opaque programs, so the pieces are found by rendering. Once with a private marker in place of each turn's content (this says where
 * contents stand and what the template writes around them; it depends on the roles only and is remembered), and once with the contents themselves, which proves that
 * the pieces joined are what the template makes of this conversation. Prefixes of the conversation say where an answer begins (where the generation prompt ends)
 * and with what the template closes it. Nothing is ever looked for in a turn's text.
 */
import { ModalignError } from '../errors.ts'
import type { Modality, Part, Role, Turn } from '../model/contracts.ts'
import type { ChatTemplate, Message } from './chat-template.ts'
import { pythonStrip } from './python-values.ts'
import type { Tokenizer } from './tokenizer.ts'

export type MediaPart = Extract<Part, { readonly type: Modality }>

/** `turn` counts from 0. `answer`: the turn's model has to produce this piece: its content, white space that the generation prompt lacks, and the closing token. */
export type Piece =
  | { readonly type: 'template'; readonly text: string; readonly turn: number | undefined; readonly answer: boolean }
  | { readonly type: 'content'; readonly text: string; readonly turn: number; readonly role: Role; readonly answer: true }
  | { readonly type: 'media'; readonly part: MediaPart; readonly turn: number }

export interface ConversationOptions {
  readonly template: ChatTemplate
  readonly tokenizer: Tokenizer
  /** Ends with the header of an answer. */
  readonly addGenerationPrompt: boolean
}

/** Where one turn's content stands: template text, then white space that the answer begins with, the content, and the template text that closes it. */
interface Slot {
  readonly turn: number
  readonly before: string
  readonly gap: string
  readonly closing: string
}
interface Skeleton {
  readonly slots: readonly Slot[]
  readonly end: string
}

const rememberedSkeletons = 256
const skeletons = new WeakMap<ChatTemplate, WeakMap<Tokenizer, Map<string, Skeleton>>>()

/** Private-use characters: one that no text here contains opens a marker. */
const firstMarker = 0xf0000
const markerEnd = String.fromCodePoint(0xffffd)

/**
 * Cuts a conversation into pieces whose texts, joined, are what the template renders.
 *
 * @throws ModalignError `DATA_ROLE_ORDER` (the template refuses the roles), `TEMPLATE_DROPS_TURN`, `TEMPLATE_CHANGES_TEXT` (it rewrites what a turn says by
 * more than trimming), and what {@link ChatTemplate.render} throws
 */
export function conversationPieces(turns: readonly Turn[], options: ConversationOptions): readonly Piece[] {
  if (turns.length === 0) throw new ModalignError({ code: 'DATA_EMPTY', field: '/turns', got: 'no turns', expected: 'at least one turn' })
  const marker = unusedMarker(turns, options.template)
  const media: { readonly part: MediaPart; readonly turn: number }[] = []
  const messages = turns.map(({ role, content }, turn): Message => {
    const texts = content.map((part) => {
      if (part.type === 'text') return part.text
      media.push({ part, turn })
      return `${marker}${media.length - 1}${markerEnd}`
    })
    return { role, content: texts.join('') }
  })
  const skeleton = skeletonOf(turns, options)
  const contents = renderedContents(messages, skeleton, options)
  const pieces: Piece[] = []
  const add = (text: string, turn: number | undefined, answer: boolean) => {
    if (text !== '') pieces.push({ type: 'template', text, turn, answer })
  }
  for (const [i, { turn, before, gap, closing }] of skeleton.slots.entries()) {
    add(before, undefined, false)
    add(gap, turn, true)
    const role = turns[turn]?.role ?? 'user'
    for (const [j, text] of (contents[i] ?? '').split(new RegExp(`${marker}(\\d+)${markerEnd}`, 'u')).entries()) {
      if (j % 2 === 1) {
        const found = media[Number(text)]
        if (found !== undefined) pieces.push({ type: 'media', ...found })
      } else if (text !== '') pieces.push({ type: 'content', text, turn, role, answer: true })
    }
    add(closing, turn, true)
  }
  add(skeleton.end, undefined, false)
  return pieces
}

function skeletonOf(turns: readonly Turn[], options: ConversationOptions): Skeleton {
  const { template, tokenizer, addGenerationPrompt } = options
  const roles = turns.map((turn) => turn.role)
  const key = `${roles.join(' ')}${addGenerationPrompt ? ' +' : ''}`
  const known = rememberedFor(template, tokenizer)
  let skeleton = known.get(key)
  if (skeleton === undefined) {
    skeleton = findSkeleton(roles, options)
    if (known.size >= rememberedSkeletons) known.clear()
    known.set(key, skeleton)
  }
  return skeleton
}

function rememberedFor(template: ChatTemplate, tokenizer: Tokenizer): Map<string, Skeleton> {
  const ofTemplate = skeletons.get(template) ?? new WeakMap<Tokenizer, Map<string, Skeleton>>()
  skeletons.set(template, ofTemplate)
  const known = ofTemplate.get(tokenizer) ?? new Map<string, Skeleton>()
  ofTemplate.set(tokenizer, known)
  return known
}

function findSkeleton(roles: readonly Role[], { template, tokenizer, addGenerationPrompt }: ConversationOptions): Skeleton {
  const marker = unusedMarker([], template)
  const messages = roles.map((role, turn): Message => ({ role, content: `${marker}${turn}${markerEnd}` }))
  const rendered = template.render(messages, { addGenerationPrompt })
  // Template text and turn numbers, alternating.
  const parts = rendered.split(new RegExp(`${marker}(\\d+)${markerEnd}`, 'u'))
  const order = parts.filter((_, i) => i % 2 === 1).map(Number)
  const wrong = roles.findIndex((_, turn) => order.filter((other) => other === turn).length !== 1)
  if (wrong >= 0) {
    throw new ModalignError({
      code: 'TEMPLATE_DROPS_TURN',
      file: template.file,
      field: `/turns/${wrong}`,
      got: `a chat template that writes this ${roles[wrong]} turn ${order.filter((turn) => turn === wrong).length} times`,
      expected: 'once',
      hint: 'the template has no place for this role here: leave the turn out, or join it with its neighbour',
    })
  }
  const slots: Slot[] = []
  let position = 0
  let rest = parts[0] ?? ''
  for (const [i, turn] of order.entries()) {
    const start = position + rest.length
    const gap = roles[turn] === 'assistant' ? answerGap(rendered, start, prefix(template, messages.slice(0, turn), true)) : ''
    const following = parts[2 * i + 2] ?? ''
    const closing = closingOf(following, prefix(template, messages.slice(0, turn + 1), false), messages[turn]?.content ?? '', tokenizer)
    slots.push({ turn, before: rest.slice(0, rest.length - gap.length), gap, closing })
    position = start + (messages[turn]?.content.length ?? 0) + closing.length
    rest = following.slice(closing.length)
  }
  return { slots, end: rest }
}

/** The conversation's beginning as the template writes it, if the template accepts it. */
function prefix(template: ChatTemplate, messages: readonly Message[], addGenerationPrompt: boolean): string | undefined {
  try {
    return template.render(messages, { addGenerationPrompt })
  } catch (error) {
    if (error instanceof ModalignError && (error.code === 'DATA_ROLE_ORDER' || error.code === 'TEMPLATE_FAILED')) return undefined
    throw error
  }
}

/** White space in front of an answer that the generation prompt does not write: the model has to. */
function answerGap(rendered: string, start: number, prompt: string | undefined): string {
  if (prompt === undefined || prompt.length > start || !rendered.startsWith(prompt)) return ''
  const gap = rendered.slice(prompt.length, start)
  return /^\p{White_Space}*$/u.test(gap) ? gap : ''
}

/** What the template writes behind a turn, up to its first control token: only if it writes it whatever comes next, so that another turn's header is never taken. */
function closingOf(following: string, upToHere: string | undefined, content: string, tokenizer: Tokenizer): string {
  if (upToHere === undefined) return ''
  const own = upToHere.slice(upToHere.lastIndexOf(content) + content.length)
  let end = 0
  let begin = Number.POSITIVE_INFINITY
  for (const token of tokenizer.controlTokens) {
    const at = own.indexOf(token)
    if (at >= 0 && (at < begin || (at === begin && at + token.length > end))) {
      begin = at
      end = at + token.length
    }
  }
  const closing = own.slice(0, end)
  return following.startsWith(closing) ? closing : ''
}

/** What the template makes of each content, in the order of the slots: the content itself, or trimmed. */
function renderedContents(
  messages: readonly Message[],
  { slots, end }: Skeleton,
  { template, addGenerationPrompt }: ConversationOptions,
): readonly string[] {
  const rendered = template.render(messages, { addGenerationPrompt })
  let position = 0
  const contents = slots.map(({ turn, before, gap, closing }, i) => {
    const content = messages[turn]?.content ?? ''
    const next = slots[i + 1]
    const behind = closing + (next === undefined ? end : next.before + next.gap)
    const start = position + (i === 0 ? before.length + gap.length : 0)
    const found = [content, pythonStrip(content), pythonStrip(content, 'rstrip'), pythonStrip(content, 'lstrip')].find(
      (variant) =>
        rendered.startsWith(variant + behind, start) && (next !== undefined || start + variant.length + behind.length === rendered.length),
    )
    if (found === undefined || (i === 0 && !rendered.startsWith(before + gap))) {
      throw new ModalignError({
        code: 'TEMPLATE_CHANGES_TEXT',
        file: template.file,
        field: `/turns/${turn}`,
        got: rendered.slice(start, start + 60),
        expected: `${JSON.stringify(content.slice(0, 40))} or the same without white space around it`,
        hint: 'the chat template rewrites this text, so it cannot be told which tokens are the answer',
      })
    }
    position = start + found.length + behind.length
    return found
  })
  return contents
}

function unusedMarker(turns: readonly Turn[], template: ChatTemplate): string {
  for (let code = firstMarker; code < 0xffffd; code++) {
    const marker = String.fromCodePoint(code)
    const used =
      template.source.includes(marker) ||
      turns.some(({ content }) => content.some((part) => part.type === 'text' && part.text.includes(marker)))
    if (!used) return marker
  }
  throw new ModalignError({ code: 'DATA_TEXT', got: 'a text that has every private-use character', expected: 'text' })
}
