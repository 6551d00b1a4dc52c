/** Records that hold a conversation and the paths of the media in it: what LLaVA's files, and those of chat messages, have in common. */
import { type ErrorDetails, ModalignError } from '../src/errors.ts'
import { type JsonRecord, jsonFileRecords } from '../src/io/json-stream.ts'
import { findJsonFault, jsonPointer } from '../src/io/json-syntax.ts'
import type { JsonObject, JsonValue, Modality, Part, Role, Sample, SampleOptions, Turn } from '../src/model/contracts.ts'
import { mediaPathFault } from './media-path.ts'

/** What a format calls things. */
export interface RecordLayout {
  /** The key of the list of turns. */
  readonly turns: string
  /** The keys of a turn. */
  readonly role: string
  readonly text: string
  /** What another format calls the role: for hints. */
  readonly otherRole: string
  /** The keys of the media's paths. */
  readonly media: Readonly<Record<Modality, string>>
  readonly roles: ReadonlyMap<string, Role>
}

export interface ConversationOptions {
  /** A record that has media but not one placeholder for them: an error (default), or `prepend`, which puts them before the first user turn, each followed by a newline. */
  readonly missingPlaceholder?: 'error' | 'prepend'
  /** A conversation that the assistant opens: an error (default), or `drop`, which removes that turn as LLaVA's own loader does. */
  readonly leadingAssistant?: 'error' | 'drop'
}

/** Samples of a JSON array or JSON Lines file, in file order, in constant memory. */
export async function* conversationSamples(
  path: string,
  name: string,
  layout: RecordLayout,
  options: ConversationOptions,
  { signal, onBad }: SampleOptions = {},
): AsyncGenerator<Sample, void, undefined> {
  let empty = true
  const report = (error: ModalignError): void => {
    empty = false
    if (onBad === undefined) throw error
    onBad(error)
  }
  const streamOptions = { ...(signal && { signal }), ...(onBad && { onBad: report }) }
  for await (const record of jsonFileRecords(path, streamOptions)) {
    empty = false
    let sample: Sample | undefined
    try {
      sample = new RecordReader(record, path, name, layout, options).sample()
    } catch (error) {
      if (!(error instanceof ModalignError)) throw error
      report(error)
    }
    if (sample !== undefined) yield sample
  }
  if (empty) throw new ModalignError({ code: 'DATASET_EMPTY', file: path, got: 'no records', expected: 'at least one record' })
}

const placeholderOf = (modality: Modality): string => `<${modality}>`
const modalities = ['image', 'audio', 'video'] as const
const nouns: Readonly<Record<Modality, string>> = { image: 'image', audio: 'sound', video: 'video' }

interface RecordMedia {
  readonly modality: Modality
  readonly paths: readonly string[] | undefined
}
/** Media of one kind, and what stands for each in the text. */
interface Placed {
  readonly modality: Modality
  readonly paths: readonly string[]
  readonly placeholder: string
}

interface RawTurn {
  /** Position in the record's list of turns. */
  readonly index: number
  readonly role: Role
  readonly value: string
}

/** Checks one record and turns it into a sample. */
class RecordReader {
  private readonly record: JsonRecord
  private readonly file: string
  private readonly name: string
  private readonly layout: RecordLayout
  private readonly options: ConversationOptions

  constructor(record: JsonRecord, file: string, name: string, layout: RecordLayout, options: ConversationOptions) {
    this.record = record
    this.file = file
    this.name = name
    this.layout = layout
    this.options = options
  }

  private get recordKeys(): ReadonlySet<string> {
    const { turns, media } = this.layout
    return new Set(['id', turns, ...Object.values(media)])
  }

  sample(): Sample {
    const { value } = this.record
    if (!isObject(value)) this.fail({ code: 'DATASET_RECORD_TYPE', got: kindOf(value), expected: `an object with "${this.layout.turns}"` })
    const media = modalities.map((modality) => ({ modality, paths: this.paths(value, modality) }))
    const turns = this.turns(value)
    this.checkOrder(turns)
    const exact = this.exactIntegers()
    return {
      id: this.id(value, exact),
      turns: this.placeMedia(turns, media),
      origin: { file: this.file, record: this.record.record, dataset: this.name, fields: this.fields(value, exact) },
    }
  }

  private id(value: JsonObject, exact: ReadonlyMap<string, string>): string {
    const { id } = value
    if (typeof id === 'number') return exact.get('/id') ?? String(id)
    if (id === undefined || id === null || id === '') return `${this.name}#${this.record.record}`
    if (typeof id !== 'string') this.fail({ code: 'DATASET_ID_TYPE', field: '/id', got: kindOf(id), expected: 'a string or a number' })
    return id
  }

  /** The media of one kind; undefined where the record does not have the key. */
  private paths(value: JsonObject, modality: Modality): readonly string[] | undefined {
    const key = this.layout.media[modality]
    if (!Object.hasOwn(value, key)) return undefined
    const found = value[key]
    if (Array.isArray(found)) return found.map((item: JsonValue, i) => this.path(item, modality, `/${key}/${i}`))
    return [this.path(found, modality, `/${key}`)]
  }

  private path(item: JsonValue | undefined, modality: Modality, field: string): string {
    const path = isObject(item) && (item.bytes === undefined || item.bytes === null) ? item.path : item
    if (typeof path !== 'string') {
      const hint = item === null ? 'leave the key out of text-only records' : undefined
      this.fail({
        code: `DATASET_${modality.toUpperCase()}_TYPE`,
        field,
        got: kindOf(item),
        expected: field === `/${this.layout.media[modality]}` ? 'a path or a list of paths' : 'a path',
        hint,
      })
    }
    const fault = mediaPathFault(path)
    if (fault !== undefined) this.fail({ ...fault, field })
    return path
  }

  private turns(value: JsonObject): readonly RawTurn[] {
    const { turns: key } = this.layout
    const { [key]: conversations } = value
    const field = `/${key}`
    if (conversations === undefined) {
      const other = ['messages', 'conversations'].find((name) => name !== key && name in value)
      const hint = other === undefined ? undefined : `the record has "${other}": this is another format`
      this.fail({ code: 'DATASET_CONVERSATIONS', field, got: 'no such key', expected: 'a list of turns', hint })
    }
    if (!Array.isArray(conversations))
      this.fail({ code: 'DATASET_CONVERSATIONS', field, got: kindOf(conversations), expected: 'a list of turns' })
    if (conversations.length === 0)
      this.fail({ code: 'DATASET_CONVERSATIONS', field, got: 'an empty list', expected: 'at least one question and answer' })
    return conversations.map((turn: JsonValue, index) => this.turn(turn, index))
  }

  private turn(turn: JsonValue, index: number): RawTurn {
    const { turns, role: roleKey, text: textKey, roles, otherRole } = this.layout
    const at = `/${turns}/${index}`
    if (!isObject(turn))
      this.fail({ code: 'DATASET_TURN_TYPE', field: at, got: kindOf(turn), expected: `an object with "${roleKey}" and "${textKey}"` })
    const { [roleKey]: from, [textKey]: value } = turn
    const role = typeof from === 'string' ? roles.get(from) : undefined
    if (role === undefined) {
      const hint = from === undefined && otherRole in turn ? `the turn has "${otherRole}": this is another format` : undefined
      const got = typeof from === 'string' ? from : from === undefined ? 'no such key' : kindOf(from)
      this.fail({ code: 'DATASET_ROLE', field: `${at}/${roleKey}`, got, expected: `one of ${[...roles.keys()].join(', ')}`, hint })
    }
    if (typeof value !== 'string') {
      const got = value === undefined ? 'no such key' : kindOf(value)
      this.fail({ code: 'DATASET_VALUE_TYPE', field: `${at}/${textKey}`, got, expected: 'a string' })
    }
    if (value.trim() === '') {
      const hint = role === 'assistant' ? 'an empty answer leaves nothing to learn' : undefined
      this.fail({
        code: 'DATASET_TURN_EMPTY',
        field: `${at}/${textKey}`,
        got: value === '' ? 'an empty string' : 'only white space',
        expected: 'text',
        hint,
      })
    }
    return { index, role, value }
  }

  /** An optional system turn, then user, assistant, user, assistant, ... */
  private checkOrder(turns: readonly RawTurn[]): void {
    const talk = this.conversation(turns)
    talk.forEach(({ index, role }, i) => {
      const expected = i % 2 === 0 ? 'user' : 'assistant'
      if (role === expected) return
      const hint =
        role === 'system'
          ? 'a system turn can only be the first'
          : i === 0
            ? 'the option leadingAssistant: "drop" leaves such a turn out, as LLaVA does'
            : 'user and assistant take turns'
      const got = i === 0 ? `${role} first` : `${role} after ${talk[i - 1]?.role}`
      this.fail({ code: 'DATASET_ROLE_ORDER', field: `/${this.layout.turns}/${index}/${this.layout.role}`, got, expected, hint })
    })
    const last = turns.at(-1)
    if (talk.length === 0 || talk.length % 2 === 1) {
      const got = `${last?.role ?? 'nothing'} as the last turn`
      this.fail({
        code: 'DATASET_ROLE_ORDER',
        field: `/${this.layout.turns}/${last?.index ?? 0}/${this.layout.role}`,
        got,
        expected: 'an answer of the assistant at the end',
      })
    }
  }

  /** The turns without the system turn, and without a leading answer if the options drop it. */
  private conversation(turns: readonly RawTurn[]): readonly RawTurn[] {
    const talk = turns[0]?.role === 'system' ? turns.slice(1) : turns
    return this.options.leadingAssistant === 'drop' && talk[0]?.role === 'assistant' ? talk.slice(1) : talk
  }

  private placeMedia(turns: readonly RawTurn[], media: readonly RecordMedia[]): readonly Turn[] {
    const system = turns[0]?.role === 'system' ? turns.slice(0, 1) : []
    const talk = this.conversation(turns)
    const kinds = media.flatMap(({ modality, paths }): Placed[] => {
      // In a record without sounds or videos, their placeholders are plain text. Images' never are: a picture was forgotten.
      if (paths === undefined && modality !== 'image') return []
      return [{ modality, paths: paths ?? [], placeholder: placeholderOf(modality) }]
    })
    const named = asVideos(kinds, talk)
    const prefix = named.map((kind) => this.prefix(kind, talk)).join('')
    const [first, ...later] = talk
    const placed = prefix === '' || first === undefined ? talk : [{ ...first, value: prefix + first.value }, ...later]
    const left = new Map(named.map(({ modality, paths, placeholder }) => [placeholder, { modality, paths: [...paths] }]))
    const cut = new RegExp(`(${[...left.keys()].join('|')})`)
    return [...system, ...placed].map(({ role, value }) => {
      if (role !== 'user') return { role, content: [{ type: 'text', text: value }] }
      const content = value.split(cut).flatMap((piece): Part[] => {
        const kind = left.get(piece)
        const source = kind?.paths.shift()
        if (kind !== undefined && source !== undefined) return [{ type: kind.modality, source }]
        return piece === '' ? [] : [{ type: 'text', text: piece }]
      })
      return { role, content }
    })
  }

  /** What goes before the conversation: the placeholders of media that it does not mention at all, where the options ask for that. */
  private prefix(kind: Placed, talk: readonly RawTurn[]): string {
    const placeholders = countPlaceholders(talk, kind.placeholder)
    if (placeholders === kind.paths.length) return ''
    if (placeholders === 0 && this.options.missingPlaceholder === 'prepend' && talk.length > 0)
      return `${kind.placeholder}\n`.repeat(kind.paths.length)
    const surplus = placeholders > kind.paths.length
    const key = this.layout.media[kind.modality]
    this.fail({
      code: 'DATASET_PLACEHOLDER_COUNT',
      field: surplus ? `/${this.layout.turns}/${surplusTurn(talk, kind)}/${this.layout.text}` : `/${key}`,
      got: counted(placeholders, `${kind.placeholder} placeholder`),
      expected: `${kind.paths.length} (the record has ${counted(kind.paths.length, nouns[kind.modality])})`,
      hint: this.countHint(talk, placeholders, kind),
    })
  }

  private countHint(talk: readonly RawTurn[], placeholders: number, { modality, paths, placeholder }: Placed): string {
    const key = this.layout.media[modality]
    const questions = talk.filter(({ role }) => role === 'user').map(({ value }) => value.replaceAll(placeholder, ''))
    const nearly = new RegExp(`<\\s*${modality}\\s*/?\\s*>`, 'i')
    const near = questions.map((text) => nearly.exec(text)?.[0]).find((match) => match !== undefined)
    if (near !== undefined) return `write ${placeholder} instead of ${near}`
    if (placeholders === 0) return `add ${placeholder} to a user turn, or set the option missingPlaceholder: "prepend"`
    if (placeholders < paths.length) return `every file in "${key}" needs its own placeholder`
    const { value } = this.record
    const others = [modality, `${modality}s`].filter((name) => name !== key)
    const otherKey = isObject(value) ? others.find((name) => Object.hasOwn(value, name)) : undefined
    if (otherKey !== undefined) return `the record has "${otherKey}", which this format does not read: its key is "${key}"`
    return `remove the extra placeholder, or list every file in "${key}"`
  }

  private fields(value: JsonObject, exact: ReadonlyMap<string, string>): JsonObject {
    const fields = Object.entries(value)
      .filter(([key]) => !this.recordKeys.has(key))
      .map(([key, item]): [string, JsonValue] => [key, withExactIntegers(item, [key], exact)])
    const { turns, role, text } = this.layout
    const { [turns]: conversations } = value
    const turnKeys = new Set([role, text])
    if (
      Array.isArray(conversations) &&
      conversations.some((turn: JsonValue) => isObject(turn) && Object.keys(turn).some((key) => !turnKeys.has(key)))
    ) {
      const extras = conversations.map((turn: JsonValue, i): JsonValue => {
        const rest = Object.entries(isObject(turn) ? turn : {}).filter(([key]) => !turnKeys.has(key))
        return Object.fromEntries(rest.map(([key, item]) => [key, withExactIntegers(item, [turns, i, key], exact)]))
      })
      fields.push([turns, extras])
    }
    return Object.fromEntries(fields)
  }

  /** Pointer -> digits of the integers that `JSON.parse` rounded. */
  private exactIntegers(): ReadonlyMap<string, string> {
    const found = new Map<string, string>()
    const { text } = this.record
    if (!/\d{16}/.test(text)) return found
    findJsonFault(text, {
      onNumber(path, source) {
        if (/^-?\d+$/.test(source) && !Number.isSafeInteger(Number(source))) found.set(jsonPointer(path), source)
      },
    })
    return found
  }

  private fail(details: ErrorDetails): never {
    throw new ModalignError({ file: this.file, record: this.record.record, line: this.record.line, ...details })
  }
}

function countPlaceholders(turns: readonly RawTurn[], placeholder: string): number {
  return turns.reduce((sum, { role, value }) => (role === 'user' ? sum + value.split(placeholder).length - 1 : sum), 0)
}

/** The turn that holds the first placeholder without a file. */
function surplusTurn(talk: readonly RawTurn[], { placeholder, paths }: Placed): number {
  const last = talk.findIndex((_, i) => countPlaceholders(talk.slice(0, i + 1), placeholder) > paths.length)
  return talk[last]?.index ?? 0
}

/** LLaVA-NeXT's video data say `<image>` where the video goes. */
function asVideos(kinds: readonly Placed[], talk: readonly RawTurn[]): readonly Placed[] {
  const [image, video] = [kinds.find(({ modality }) => modality === 'image'), kinds.find(({ modality }) => modality === 'video')]
  if (image === undefined || video === undefined || image.paths.length > 0 || countPlaceholders(talk, video.placeholder) > 0) return kinds
  if (countPlaceholders(talk, image.placeholder) !== video.paths.length) return kinds
  return kinds.flatMap((kind) => (kind === image ? [] : kind === video ? [{ ...video, placeholder: image.placeholder }] : [kind]))
}

const counted = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? '' : 's'}`

function withExactIntegers(value: JsonValue, path: readonly (string | number)[], exact: ReadonlyMap<string, string>): JsonValue {
  if (exact.size === 0) return value
  if (typeof value === 'number') return exact.get(jsonPointer(path)) ?? value
  if (Array.isArray(value)) return value.map((item: JsonValue, i) => withExactIntegers(item, [...path, i], exact))
  if (!isObject(value)) return value
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, withExactIntegers(item, [...path, key], exact)]))
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function kindOf(value: JsonValue | undefined): string {
  if (value === undefined) return 'nothing'
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'a list'
  if (typeof value === 'object') return 'an object'
  return typeof value === 'string' ? `the string ${JSON.stringify(value)}` : `the ${typeof value} ${value}`
}
