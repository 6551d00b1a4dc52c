/** LLaVA instruction data: the JSON array or JSON Lines files of LLaVA, LLaVA-NeXT, ShareGPT4V, ALLaVA and their kin. */
import { basename, dirname, extname } from 'node:path'
import { type ErrorDetails, ModalignError } from '../src/errors.ts'
import { type JsonRecord, jsonFileRecords } from '../src/io/json-stream.ts'
import { findJsonFault, jsonPointer } from '../src/io/json-syntax.ts'
import type { DatasetSource, JsonObject, JsonValue, Part, Role, Sample, SampleOptions, Turn } from '../src/model/contracts.ts'
import { mediaPathFault } from './media-path.ts'

export interface LlavaOptions {
  /** Folder that the records' image paths are relative to; default: the folder of the file. */
  readonly root?: string
  /** Default: the file's name without its extension. */
  readonly name?: string
  /** A record that has images but not one `<image>`: an error (default), or `prepend`, which puts them before the first user turn, each followed by a newline. */
  readonly missingPlaceholder?: 'error' | 'prepend'
  /** A conversation that the assistant opens: an error (default), or `drop`, which removes that turn as LLaVA's own loader does. */
  readonly leadingAssistant?: 'error' | 'drop'
}

export interface LlavaSource extends DatasetSource {
  readonly path: string
  /** Folder that media sources are relative to. */
  readonly root: string
}

/**
 * A LLaVA file as a dataset. Samples come in file order, in constant memory; nothing is read before the iteration begins.
 *
 * A record is `{ id?, image?, conversations: [{ from, value }, ...] }`. `image` is a path, a list of paths, or absent in text-only records. The k-th `<image>`
 * in the user turns of a record stands for its k-th image; text around it is kept as it is, newlines included. In system and assistant turns `<image>` is plain
 * text. Roles: human or user, gpt or assistant, and system for the first turn. User and assistant alternate, and the assistant has the last word.
 * Ids may be strings or numbers (given as strings, every digit kept); records without one are named `NAME#RECORD`. All other keys are kept in
 * `origin.fields`; keys of turns likewise under `origin.fields.conversations`. Integers there that a double cannot hold become strings of their digits.
 *
 * @throws ModalignError while iterating: `DATASET_EMPTY`, `DATASET_RECORD_TYPE`, `DATASET_ID_TYPE`, `DATASET_IMAGE_TYPE`, `DATASET_CONVERSATIONS`,
 * `DATASET_TURN_TYPE`, `DATASET_ROLE`, `DATASET_ROLE_ORDER`, `DATASET_VALUE_TYPE`, `DATASET_TURN_EMPTY`, `DATASET_PLACEHOLDER_COUNT`, `PATH_ESCAPE`,
 * `PATH_URL`, `PATH_INVALID`, and what `jsonFileRecords` throws
 * @example
 * for await (const { id, turns } of llava('llava_instruct_150k.json', { root: 'coco/train2017' }).samples()) console.log(id, turns.length)
 */
export function llava(path: string, options: LlavaOptions = {}): LlavaSource {
  const name = options.name ?? basename(path, extname(path))
  return { name, path, root: options.root ?? dirname(path), samples: (sampleOptions) => samples(path, name, options, sampleOptions) }
}

async function* samples(
  path: string,
  name: string,
  options: LlavaOptions,
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
      sample = new RecordReader(record, path, name, options).sample()
    } catch (error) {
      if (!(error instanceof ModalignError)) throw error
      report(error)
    }
    if (sample !== undefined) yield sample
  }
  if (empty) throw new ModalignError({ code: 'DATASET_EMPTY', file: path, got: 'no records', expected: 'at least one record' })
}

const placeholder = '<image>'
const roles: ReadonlyMap<string, Role> = new Map([
  ['human', 'user'],
  ['user', 'user'],
  ['gpt', 'assistant'],
  ['assistant', 'assistant'],
  ['system', 'system'],
])
const recordKeys = new Set(['id', 'image', 'conversations'])
const turnKeys = new Set(['from', 'value'])

interface RawTurn {
  /** Position in the record's `conversations`. */
  readonly index: number
  readonly role: Role
  readonly value: string
}

/** Checks one record and turns it into a sample. */
class RecordReader {
  private readonly record: JsonRecord
  private readonly file: string
  private readonly name: string
  private readonly options: LlavaOptions

  constructor(record: JsonRecord, file: string, name: string, options: LlavaOptions) {
    this.record = record
    this.file = file
    this.name = name
    this.options = options
  }

  sample(): Sample {
    const { value } = this.record
    if (!isObject(value)) this.fail({ code: 'DATASET_RECORD_TYPE', got: kindOf(value), expected: 'an object with "conversations"' })
    const images = this.images(value)
    const turns = this.turns(value)
    this.checkOrder(turns)
    const exact = this.exactIntegers()
    return {
      id: this.id(value, exact),
      turns: this.placeImages(turns, images),
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

  private images(value: JsonObject): readonly string[] {
    if (!Object.hasOwn(value, 'image')) return []
    const { image } = value
    if (Array.isArray(image)) return image.map((item: JsonValue, i) => this.imagePath(item, `/image/${i}`))
    return [this.imagePath(image, '/image')]
  }

  private imagePath(item: JsonValue | undefined, field: string): string {
    const path = isObject(item) && (item.bytes === undefined || item.bytes === null) ? item.path : item
    if (typeof path !== 'string') {
      const hint = item === null ? 'leave the key out of text-only records' : undefined
      this.fail({
        code: 'DATASET_IMAGE_TYPE',
        field,
        got: kindOf(item),
        expected: field === '/image' ? 'a path or a list of paths' : 'a path',
        hint,
      })
    }
    const fault = mediaPathFault(path)
    if (fault !== undefined) this.fail({ ...fault, field })
    return path
  }

  private turns(value: JsonObject): readonly RawTurn[] {
    const { conversations } = value
    const field = '/conversations'
    if (conversations === undefined) {
      const hint = 'messages' in value ? 'the record has "messages": this is another format' : undefined
      this.fail({ code: 'DATASET_CONVERSATIONS', field, got: 'no such key', expected: 'a list of turns', hint })
    }
    if (!Array.isArray(conversations))
      this.fail({ code: 'DATASET_CONVERSATIONS', field, got: kindOf(conversations), expected: 'a list of turns' })
    if (conversations.length === 0)
      this.fail({ code: 'DATASET_CONVERSATIONS', field, got: 'an empty list', expected: 'at least one question and answer' })
    return conversations.map((turn: JsonValue, index) => this.turn(turn, index))
  }

  private turn(turn: JsonValue, index: number): RawTurn {
    const at = `/conversations/${index}`
    if (!isObject(turn))
      this.fail({ code: 'DATASET_TURN_TYPE', field: at, got: kindOf(turn), expected: 'an object with "from" and "value"' })
    const { from, value } = turn
    const role = typeof from === 'string' ? roles.get(from) : undefined
    if (role === undefined) {
      const hint = from === undefined && 'role' in turn ? 'the turn has "role": this is another format' : undefined
      const got = typeof from === 'string' ? from : from === undefined ? 'no such key' : kindOf(from)
      this.fail({ code: 'DATASET_ROLE', field: `${at}/from`, got, expected: `one of ${[...roles.keys()].join(', ')}`, hint })
    }
    if (typeof value !== 'string') {
      const got = value === undefined ? 'no such key' : kindOf(value)
      this.fail({ code: 'DATASET_VALUE_TYPE', field: `${at}/value`, got, expected: 'a string' })
    }
    if (value.trim() === '') {
      const hint = role === 'assistant' ? 'an empty answer leaves nothing to learn' : undefined
      this.fail({
        code: 'DATASET_TURN_EMPTY',
        field: `${at}/value`,
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
      this.fail({ code: 'DATASET_ROLE_ORDER', field: `/conversations/${index}/from`, got, expected, hint })
    })
    const last = turns.at(-1)
    if (talk.length === 0 || talk.length % 2 === 1) {
      const got = `${last?.role ?? 'nothing'} as the last turn`
      this.fail({
        code: 'DATASET_ROLE_ORDER',
        field: `/conversations/${last?.index ?? 0}/from`,
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

  private placeImages(turns: readonly RawTurn[], images: readonly string[]): readonly Turn[] {
    const system = turns[0]?.role === 'system' ? turns.slice(0, 1) : []
    const talk = this.conversation(turns)
    const placeholders = countPlaceholders(talk)
    const [first, ...later] = talk
    const prepend = placeholders === 0 && this.options.missingPlaceholder === 'prepend' && first !== undefined
    if (placeholders !== images.length && !prepend) this.failCount(talk, placeholders, images.length)
    const prefix = `${placeholder}\n`.repeat(images.length)
    const placed = prepend ? [{ ...first, value: prefix + first.value }, ...later] : talk
    let next = 0
    return [...system, ...placed].map(({ role, value }) => {
      if (role !== 'user') return { role, content: [{ type: 'text', text: value }] }
      const content: Part[] = []
      value.split(placeholder).forEach((text, piece) => {
        const source = piece > 0 ? images[next++] : undefined
        if (source !== undefined) content.push({ type: 'image', source })
        if (text !== '') content.push({ type: 'text', text })
      })
      return { role, content }
    })
  }

  private failCount(talk: readonly RawTurn[], placeholders: number, images: number): never {
    const surplus = placeholders > images
    this.fail({
      code: 'DATASET_PLACEHOLDER_COUNT',
      field: surplus ? `/conversations/${surplusTurn(talk, images)}/value` : '/image',
      got: counted(placeholders, `${placeholder} placeholder`),
      expected: `${images} (the record has ${counted(images, 'image')})`,
      hint: this.countHint(talk, placeholders, images),
    })
  }

  private countHint(talk: readonly RawTurn[], placeholders: number, images: number): string {
    const questions = talk.filter(({ role }) => role === 'user').map(({ value }) => value.replaceAll(placeholder, ''))
    const near = questions.map((text) => /<\s*image\s*\/?\s*>/i.exec(text)?.[0]).find((match) => match !== undefined)
    if (near !== undefined) return `write ${placeholder} instead of ${near}`
    if (placeholders === 0) return `add ${placeholder} to a user turn, or set the option missingPlaceholder: "prepend"`
    if (placeholders < images) return 'every file in "image" needs its own placeholder'
    const { value } = this.record
    const otherKey = isObject(value) ? ['images', 'video', 'videos', 'audio'].find((key) => Object.hasOwn(value, key)) : undefined
    if (otherKey !== undefined) return `the record has "${otherKey}", which this format does not read: its key is "image"`
    return 'remove the extra placeholder, or list every file in "image"'
  }

  private fields(value: JsonObject, exact: ReadonlyMap<string, string>): JsonObject {
    const fields = Object.entries(value)
      .filter(([key]) => !recordKeys.has(key))
      .map(([key, item]): [string, JsonValue] => [key, withExactIntegers(item, [key], exact)])
    const { conversations } = value
    if (
      Array.isArray(conversations) &&
      conversations.some((turn: JsonValue) => isObject(turn) && Object.keys(turn).some((key) => !turnKeys.has(key)))
    ) {
      const extras = conversations.map((turn: JsonValue, i): JsonValue => {
        const rest = Object.entries(isObject(turn) ? turn : {}).filter(([key]) => !turnKeys.has(key))
        return Object.fromEntries(rest.map(([key, item]) => [key, withExactIntegers(item, ['conversations', i, key], exact)]))
      })
      fields.push(['conversations', extras])
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

function countPlaceholders(turns: readonly RawTurn[]): number {
  return turns.reduce((sum, { role, value }) => (role === 'user' ? sum + value.split(placeholder).length - 1 : sum), 0)
}

/** The turn that holds the first placeholder without an image. */
function surplusTurn(talk: readonly RawTurn[], images: number): number {
  const last = talk.findIndex((_, i) => countPlaceholders(talk.slice(0, i + 1)) > images)
  return talk[last]?.index ?? 0
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
