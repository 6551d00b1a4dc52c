/** Text to token ids and back, as Hugging Face's tokenizers do it, with the pipeline of `@huggingface/tokenizers`. */
import type { Tokenizer as LibraryTokenizer } from '@huggingface/tokenizers'
import { ModalignError } from '../errors.ts'
import type { JsonValue } from '../io/json.ts'
import { AddedTokenFinder } from './added-tokens.ts'
import { type Extent, pretokenOrigins, tokenExtents } from './alignment.ts'
import { buildPipeline, canonicalJson, declaredTokens, withDeclared } from './pipeline.ts'
import { contains } from './portable-components.ts'
import { type Edge, normalizedEdges, pushToken, type SegmentedIds, segmentEdges, type TextSegment, within } from './segments.ts'
import { StreamDecoder } from './stream-decoder.ts'
import { type AddedToken, describeTokenizer, invalid, isObject, type TokenizerDescription, type TokenizerFiles } from './tokenizer-file.ts'

export type { SegmentedIds, TextSegment } from './segments.ts'
export type { StreamDecoder } from './stream-decoder.ts'
export type { AddedToken, TokenizerFiles } from './tokenizer-file.ts'

export interface SpecialToken {
  readonly id: number
  readonly content: string
}

/** The tokens that the configuration names. Absent where it names none, or one that the vocabulary lacks. */
export interface SpecialTokens {
  readonly bos?: SpecialToken
  readonly eos?: SpecialToken
  readonly pad?: SpecialToken
  readonly unk?: SpecialToken
}

export interface EncodeOptions {
  /** Puts the tokens around the text that the tokenizer's post-processor says (often `<s>` before it). Default false. */
  readonly addSpecialTokens?: boolean
}

export interface DecodeOptions {
  /** Leaves special tokens out. Default false. */
  readonly skipSpecialTokens?: boolean
}

/** 1 Mi UTF-16 units: more than language models read, and some seconds of work, in the worst case (one endless word) 20. */
const longestText = 2 ** 20
const longestRememberedWord = 32
const rememberedWords = 2 ** 15

interface EncodedWord {
  readonly ids: readonly number[]
  readonly extents: readonly Extent[]
}

/**
 * A tokenizer. Immutable; make one with `loadTokenizer` or {@link createTokenizer}.
 *
 * Lone surrogates are read as U+FFFD. `decode` never "cleans up" spaces, and gives one U+FFFD for each broken sequence of bytes. Known differences from the original that
 * remain: a `Precompiled` normalizer (SentencePiece's character map) is approximated by NFKC; where two ways to cut a word score exactly the same, a Unigram model
 * may take the other one; atomic groups and possessive quantifiers in patterns count as plain ones. Settings that would be ignored are refused.
 */
export class Tokenizer {
  /** SHA-256 of `tokenizer.json` with its keys sorted and without white space, in hexadecimal. */
  readonly identity: string
  /** Highest id plus one: the rows that an embedding table needs. */
  readonly vocabularySize: number
  readonly specialTokens: SpecialTokens
  /** Ids that end an answer: the eos token and those that `generation_config.json` names. */
  readonly eosIds: readonly number[]
  readonly addedTokens: readonly AddedToken[]
  /** Contents of the tokens that steer a model and that no stranger's text may become. */
  readonly controlTokens: ReadonlySet<string>

  readonly #description: TokenizerDescription
  readonly #library: LibraryTokenizer
  readonly #idOf = new Map<string, number>()
  readonly #tokenOf: (string | undefined)[] = []
  readonly #specialIds: ReadonlySet<number>
  readonly #finder: AddedTokenFinder
  readonly #normalizedFinder: AddedTokenFinder
  readonly #byteLevel: boolean
  readonly #byteDecoder: boolean
  /** Words come again and again. */
  readonly #words = new Map<string, EncodedWord>()
  readonly #around: { readonly before: readonly number[]; readonly after: readonly number[] }

  /** For {@link createTokenizer}: `identity` is computed asynchronously. */
  constructor(files: TokenizerFiles, identity: string) {
    const described = describeTokenizer(files)
    this.identity = identity
    const { model } = described
    const vocabulary: Iterable<readonly [string, number]> =
      model.type === 'BPE' ? model.vocabulary : model.pieces.map(([piece], id): [string, number] => [piece, id])
    for (const [token, id] of vocabulary) {
      this.#idOf.set(token, id)
      this.#tokenOf[id] = token
    }
    const declared = declaredTokens(files)
    const description = { ...described, addedTokens: withDeclared(described.addedTokens, declared, this.#idOf, files) }
    this.#description = description
    this.addedTokens = description.addedTokens
    for (const { content, id } of this.addedTokens) {
      this.#idOf.set(content, id)
      this.#tokenOf[id] = content
    }
    this.vocabularySize = this.#tokenOf.length
    this.specialTokens = this.#namedTokens(declared)
    this.eosIds = this.#answerEnds(files)
    this.#specialIds = new Set(this.addedTokens.filter((token) => token.special).map((token) => token.id))
    this.controlTokens = new Set([
      ...this.addedTokens.filter((token) => token.special).map((token) => token.content),
      ...[...declared.values()].filter((content) => this.#idOf.has(content)),
      ...this.eosIds.flatMap((id) => this.#tokenOf[id] ?? []),
    ])

    this.#byteLevel = contains(description.preTokenizer, 'ByteLevel')
    this.#byteDecoder = contains(description.decoder, 'ByteFallback')
    this.#library = buildPipeline(description, this.controlTokens, files.file)
    const normalizer = this.#library.normalizer
    const normalized = (token: AddedToken) => normalizer !== null && token.normalized
    this.#finder = new AddedTokenFinder(this.addedTokens.filter((token) => !normalized(token)).map((token) => [token.content, token]))
    this.#normalizedFinder = new AddedTokenFinder(
      this.addedTokens.filter(normalized).map((token) => [normalizer?.normalize(token.content) ?? token.content, token]),
    )
    this.#around = this.#surroundings()
  }

  /**
   * Ids of a text in which added tokens, special ones too, are found: for templates and prompts of your own. For text from elsewhere see {@link encodeText}.
   *
   * @throws ModalignError `TOKENIZER_TEXT_TOO_LONG` above 1 Mi UTF-16 units
   * @example
   * tokenizer.encode('<|im_start|>user\n') // [1, 4093, 198]
   */
  encode(text: string, { addSpecialTokens = false }: EncodeOptions = {}): number[] {
    const { ids } = this.encodeSegments([{ text }])
    return addSpecialTokens ? [...this.#around.before, ...ids, ...this.#around.after] : ids
  }

  /**
   * Ids of a stranger's text: what looks like a control token in it (`<|im_end|>`, `</s>`) is encoded as the characters that it is made of. Added tokens that
   * are not special (runs of spaces, `<think>`) are ordinary vocabulary and are found.
   *
   * @example
   * tokenizer.encodeText('</s>').includes(tokenizer.specialTokens.eos.id) // false
   */
  encodeText(text: string): number[] {
    return this.encodeSegments([{ text, plain: this.controlTokens }]).ids
  }

  /**
   * Ids of the joined segments, exactly as if their text were encoded at once, and which segments each token covers. The segments say where control tokens count.
   *
   * @param continued true when something (media) stands before the text, so that it does not get a word mark that only the very first text gets
   */
  encodeSegments(segments: readonly TextSegment[], continued = false): SegmentedIds {
    const text = segments
      .map((segment) => segment.text)
      .join('')
      .replace(/\p{Surrogate}/gu, '\ufffd')
    if (text.length > longestText) throw tooLong(text.length)
    const edges = segmentEdges(segments)
    const permitted = (start: number, end: number, token: AddedToken) => {
      for (const edge of edges) {
        if (edge.start < end && edge.end > start && segments[edge.segment]?.plain?.has(token.content) === true) return false
      }
      return true
    }
    const out: SegmentedIds = { ids: [], first: [], last: [] }
    try {
      for (const section of this.#finder.split(text, permitted)) {
        if (section.token !== undefined) {
          pushToken(out, section.token.id, { start: section.coreStart, end: section.coreEnd }, edges)
          continue
        }
        this.#encodeSection(
          text.slice(section.start, section.end),
          !continued && section.start === 0,
          within(edges, section),
          segments,
          out,
        )
      }
    } catch (error) {
      // The library spreads long lists into arguments.
      if (error instanceof RangeError) throw tooLong(text.length, error)
      throw typedFailure(error)
    }
    return out
  }

  /**
   * The text of ids. Ids that the vocabulary lacks (the padding rows of an embedding table) give nothing, as in Hugging Face's decoder.
   *
   * @throws ModalignError `TOKENIZER_ID` for what cannot be an id: negative numbers and fractions
   */
  decode(ids: Iterable<number>, { skipSpecialTokens = false }: DecodeOptions = {}): string {
    const tokens: string[] = []
    for (const id of ids) {
      if (!Number.isInteger(id) || id < 0) throw new ModalignError({ code: 'TOKENIZER_ID', got: String(id), expected: 'an id from 0' })
      const token = this.#tokenOf[id]
      if (token !== undefined && !(skipSpecialTokens && this.#specialIds.has(id))) tokens.push(token)
    }
    if (tokens.length === 0) return ''
    const spelt = this.#byteDecoder ? joinBytes(tokens) : tokens
    try {
      return this.#library.decoder?.decode(spelt) ?? spelt.join(' ')
    } catch (error) {
      throw typedFailure(error)
    }
  }

  /** Decodes ids one at a time as a model produces them. */
  streamDecoder(options: DecodeOptions = {}): StreamDecoder {
    return new StreamDecoder((ids) => this.decode(ids, options))
  }

  /** The token with this id, in the vocabulary's spelling. */
  token(id: number): string | undefined {
    return this.#tokenOf[id]
  }

  /** The id of a token in the vocabulary's spelling. */
  id(token: string): number | undefined {
    return this.#idOf.get(token)
  }

  /** Text between two added tokens: normalized, cut into words, merged. */
  #encodeSection(text: string, isFirst: boolean, edges: readonly Edge[], segments: readonly TextSegment[], out: SegmentedIds): void {
    const { normalizer } = this.#library
    const normalize = (part: string) => (normalizer === null ? part : normalizer.normalize(part))
    const normalized = normalize(text)
    const moved = normalized === text ? edges : normalizedEdges(normalized, text, edges, normalize)
    const permitted = (start: number, end: number, token: AddedToken) =>
      moved.every((edge) => edge.start >= end || edge.end <= start || segments[edge.segment]?.plain?.has(token.content) !== true)
    for (const section of this.#normalizedFinder.split(normalized, permitted)) {
      if (section.token === undefined)
        this.#encodeWords(normalized.slice(section.start, section.end), isFirst && section.start === 0, within(moved, section), out)
      else pushToken(out, section.token.id, { start: section.coreStart, end: section.coreEnd }, moved)
    }
  }

  #encodeWords(text: string, isFirst: boolean, edges: readonly Edge[], out: SegmentedIds): void {
    const { pre_tokenizer: preTokenizer, model } = this.#library
    if (model === null || text === '') return
    const words = preTokenizer === null ? [text] : preTokenizer.pre_tokenize(text, { section_index: isFirst ? 0 : 1 })
    const origins = edges.length > 1 ? pretokenOrigins(text, words, this.#byteLevel) : undefined
    let at = 0
    for (const word of words) {
      const { ids, extents } = this.#encodeWord(word, model, origins !== undefined)
      for (const [i, id] of ids.entries()) {
        const extent = extents[i]
        const place = origins && extent && { start: origins[at + extent.start] ?? 0, end: origins[at + extent.end] ?? 0 }
        pushToken(out, id, place, edges)
      }
      at += word.length
    }
  }

  #encodeWord(word: string, model: NonNullable<LibraryTokenizer['model']>, aligned: boolean): EncodedWord {
    const known = this.#words.get(word)
    if (known !== undefined) return known
    const tokens = this.#spellUnknown(model._call([word]))
    const remember = word.length <= longestRememberedWord
    const isKnown = (token: string) => this.#idOf.has(token)
    const extents = aligned || remember ? tokenExtents(word, tokens, { fuseUnknown: model.fuse_unk, isKnown }) : []
    const ids = tokens.map((token) => this.#idOf.get(token) ?? this.#unknownId())
    const encoded = { ids: ids.filter((id) => id !== undefined), extents: extents.filter((_, i) => ids[i] !== undefined) }
    if (remember) {
      if (this.#words.size >= rememberedWords) this.#words.clear()
      this.#words.set(word, encoded)
    }
    return encoded
  }

  /** Unigram with byte fallback: the library gives a piece that it does not know as it stands. */
  #spellUnknown(tokens: readonly string[]): readonly string[] {
    const { model } = this.#description
    if (model.type !== 'Unigram' || !model.byteFallback) return tokens
    return tokens.flatMap((token) => {
      if (this.#idOf.has(token)) return token
      const bytes = Array.from(new TextEncoder().encode(token), byteToken)
      return bytes.every((byte) => this.#idOf.has(byte)) ? bytes : token
    })
  }

  #unknownId(): number | undefined {
    const { model } = this.#description
    if (model.type === 'Unigram') return model.unknownId
    return model.unknown === undefined ? undefined : this.#idOf.get(model.unknown)
  }

  #namedTokens(declared: ReadonlyMap<string, string>): SpecialTokens {
    const find = (name: string) => {
      const content = declared.get(name)
      const id = content === undefined ? undefined : this.#idOf.get(content)
      return content === undefined || id === undefined ? undefined : { id, content }
    }
    const bos = find('bos_token')
    const eos = find('eos_token')
    const pad = find('pad_token')
    const unk = find('unk_token')
    return { ...(bos && { bos }), ...(eos && { eos }), ...(pad && { pad }), ...(unk && { unk }) }
  }

  #answerEnds({ generationConfig }: TokenizerFiles): readonly number[] {
    const named = isObject(generationConfig) ? generationConfig.eos_token_id : undefined
    const ids = (Array.isArray(named) ? named : [named]).filter(
      (id: JsonValue | undefined): id is number => typeof id === 'number' && this.#tokenOf[id] !== undefined,
    )
    const { eos } = this.specialTokens
    return [...new Set(eos === undefined ? ids : [eos.id, ...ids])]
  }

  /** What the post-processor puts around a text. */
  #surroundings(): { readonly before: readonly number[]; readonly after: readonly number[] } {
    const postProcessor = this.#library.post_processor
    if (postProcessor === null) return { before: [], after: [] }
    const text = '\u0000text\u0000'
    const { tokens } = postProcessor.post_process([text], null, true)
    const place = tokens.indexOf(text)
    const ids = (part: readonly string[]) => part.flatMap((token) => this.#idOf.get(token) ?? [])
    return { before: ids(tokens.slice(0, place)), after: ids(tokens.slice(place + 1)) }
  }
}

/**
 * Makes a tokenizer from parsed files.
 *
 * @throws ModalignError `TOKENIZER_INVALID`, `TOKENIZER_UNSUPPORTED`, `TOKENIZER_REGEX`
 * @example
 * const tokenizer = await createTokenizer({ tokenizer: JSON.parse(await readFile('tokenizer.json', 'utf8')) })
 */
export async function createTokenizer(files: TokenizerFiles): Promise<Tokenizer> {
  try {
    const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(canonicalJson(files.tokenizer)))
    return new Tokenizer(files, Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join(''))
  } catch (error) {
    if (error instanceof RangeError) throw invalid(files.file, '', 'lists or objects nested too deeply', 'a tokenizer.json')
    throw typedFailure(error, files.file)
  }
}

/** The library takes a component's settings as they come and fails only when it uses them. */
function typedFailure(error: unknown, file?: string): unknown {
  if (error instanceof ModalignError || !(error instanceof Error)) return error
  const expected = 'settings of components that @huggingface/tokenizers can use'
  return new ModalignError({ code: 'TOKENIZER_INVALID', file, got: error.message, expected, cause: error })
}

function byteToken(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`
}

/** Runs of byte tokens as the text that they spell. */
function joinBytes(tokens: readonly string[]): string[] {
  const out: string[] = []
  let bytes: number[] = []
  const flush = () => {
    if (bytes.length > 0) out.push(new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(bytes)))
    bytes = []
  }
  for (const token of tokens) {
    const byte = /^<0x([0-9A-F]{2})>$/.exec(token)?.[1]
    if (byte !== undefined) bytes.push(Number.parseInt(byte, 16))
    else {
      flush()
      out.push(token)
    }
  }
  flush()
  return out
}

function tooLong(length: number, cause?: unknown): ModalignError {
  return new ModalignError({
    code: 'TOKENIZER_TEXT_TOO_LONG',
    got: `${length} characters`,
    expected: `at most ${longestText}, in words of reasonable length`,
    cause,
  })
}
