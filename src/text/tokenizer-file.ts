/** `tokenizer.json` as a stranger's file: checked whole before anything is built from it. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { JsonObject, JsonValue } from '../io/json.ts'
import { nestedQuantifier } from './pattern-safety.ts'

/** What a tokenizer is made from: the parsed files of a Hugging Face model folder. */
export interface TokenizerFiles {
  /** `tokenizer.json` */
  readonly tokenizer: JsonValue
  /** `tokenizer_config.json` */
  readonly config?: JsonValue | undefined
  /** `special_tokens_map.json` */
  readonly specialTokensMap?: JsonValue | undefined
  /** `generation_config.json`: names further tokens that end an answer. */
  readonly generationConfig?: JsonValue | undefined
  /** Named in errors. */
  readonly file?: string | undefined
}

export interface AddedToken {
  readonly id: number
  readonly content: string
  /** Matches only where no word character touches it. */
  readonly singleWord: boolean
  /** Swallows the white space on its left. */
  readonly lstrip: boolean
  readonly rstrip: boolean
  /** Looked for in the normalized text instead of the text itself. */
  readonly normalized: boolean
  readonly special: boolean
}

export interface BpeModel {
  readonly type: 'BPE'
  readonly vocabulary: ReadonlyMap<string, number>
  readonly merges: readonly (readonly [string, string])[]
  readonly unknown: string | undefined
  readonly byteFallback: boolean
  readonly fuseUnknown: boolean
  readonly ignoreMerges: boolean
}
export interface UnigramModel {
  readonly type: 'Unigram'
  readonly pieces: readonly (readonly [string, number])[]
  readonly unknownId: number
  readonly byteFallback: boolean
}

export interface TokenizerDescription {
  readonly model: BpeModel | UnigramModel
  readonly addedTokens: readonly AddedToken[]
  readonly normalizer: Component | null
  readonly preTokenizer: Component | null
  readonly postProcessor: Component | null
  readonly decoder: Component | null
}

/** A part of the pipeline with its settings, as the file has it. */
export interface Component {
  readonly type: string
  readonly [setting: string]: unknown
}

const largestId = 2 ** 22
const longestToken = 4096

const component = z.looseObject({ type: z.string() })
const addedTokenSchema = z.object({
  id: z.int().min(0).max(largestId),
  content: z.string().min(1).max(longestToken),
  single_word: z.boolean().default(false),
  lstrip: z.boolean().default(false),
  rstrip: z.boolean().default(false),
  normalized: z.boolean().optional(),
  special: z.boolean().default(false),
})
const tokenizerSchema = z.object({
  added_tokens: z.array(addedTokenSchema).max(100_000).nullish(),
  normalizer: component.nullish(),
  pre_tokenizer: component.nullish(),
  post_processor: component.nullish(),
  decoder: component.nullish(),
})
const bpeSchema = z.object({
  unk_token: z.string().nullish(),
  dropout: z.number().nullish(),
  continuing_subword_prefix: z.string().nullish(),
  end_of_word_suffix: z.string().nullish(),
  byte_fallback: z.boolean().nullish(),
  fuse_unk: z.boolean().nullish(),
  ignore_merges: z.boolean().nullish(),
})
const unigramSchema = z.object({ unk_id: z.int().min(0).nullish(), byte_fallback: z.boolean().nullish() })

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/**
 * Checks a `tokenizer.json` and says what it describes.
 *
 * @throws ModalignError `TOKENIZER_INVALID` (structure, ids, merges), `TOKENIZER_UNSUPPORTED` (a model or setting that we cannot reproduce exactly),
 * `TOKENIZER_REGEX` (a pattern that can hang)
 */
export function describeTokenizer({ tokenizer, file }: TokenizerFiles): TokenizerDescription {
  if (!isObject(tokenizer)) throw invalid(file, '', 'not an object', 'the object of a tokenizer.json')
  const parsed = parse(tokenizerSchema, tokenizer, file, '')
  const normalizer = parsed.normalizer ?? null
  const preTokenizer = parsed.pre_tokenizer ?? null
  const decoder = parsed.decoder ?? null
  checkPatterns({ normalizer, pre_tokenizer: preTokenizer, decoder }, file)
  const model = describeModel(tokenizer.model, file)
  const addedTokens = (parsed.added_tokens ?? []).map(
    ({ single_word: singleWord, normalized, ...token }): AddedToken => ({ ...token, singleWord, normalized: normalized ?? !token.special }),
  )
  checkAddedTokens(addedTokens, model, file)
  return { model, addedTokens, normalizer, preTokenizer, postProcessor: parsed.post_processor ?? null, decoder }
}

function describeModel(model: JsonValue | undefined, file: string | undefined): BpeModel | UnigramModel {
  if (!isObject(model)) throw invalid(file, '/model', 'no model', 'an object')
  const type = model.type ?? (Array.isArray(model.vocab) ? 'Unigram' : Array.isArray(model.merges) ? 'BPE' : 'none')
  if (type === 'BPE') return describeBpe(model, file)
  if (type === 'Unigram') return describeUnigram(model, file)
  throw unsupported(file, '/model/type', JSON.stringify(type), 'BPE or Unigram', 'language models that write text use one of these')
}

function describeBpe(model: JsonObject, file: string | undefined): BpeModel {
  const settings = parse(bpeSchema, model, file, '/model')
  if (settings.continuing_subword_prefix)
    throw unsupported(file, '/model/continuing_subword_prefix', settings.continuing_subword_prefix, 'none')
  if (settings.end_of_word_suffix) throw unsupported(file, '/model/end_of_word_suffix', settings.end_of_word_suffix, 'none')
  if (settings.dropout)
    throw unsupported(file, '/model/dropout', String(settings.dropout), 'null', 'with dropout the same text has different ids')
  if (!isObject(model.vocab)) throw invalid(file, '/model/vocab', 'no vocabulary', 'an object of tokens and their ids')
  const vocabulary = new Map<string, number>()
  const taken = new Set<number>()
  const field = (token: string): string => `/model/vocab/${pointer(token)}`
  // Not by Object.entries, which takes twice as long for 50,000 tokens, as other shortcuts here do.
  for (const token of Object.keys(model.vocab)) {
    const id = model.vocab[token]
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id > largestId)
      throw invalid(file, field(token), JSON.stringify(id), 'an id from 0')
    if (token.length > longestToken) throw invalid(file, field(token), `${token.length} characters`, `at most ${longestToken}`)
    if (taken.has(id)) throw invalid(file, field(token), `id ${id} for a second token`, 'one token an id')
    taken.add(id)
    vocabulary.set(token, id)
  }
  const list = model.merges
  if (!Array.isArray(list)) throw invalid(file, '/model/merges', 'no merges', 'a list')
  const merges = list.map((merge: JsonValue, index): readonly [string, string] => {
    const pair: readonly JsonValue[] = typeof merge === 'string' ? merge.split(' ') : Array.isArray(merge) ? merge : []
    const [left, right] = pair
    if (pair.length !== 2 || typeof left !== 'string' || typeof right !== 'string')
      throw invalid(file, `/model/merges/${index}`, JSON.stringify(merge), 'two tokens')
    if (!vocabulary.has(left) || !vocabulary.has(right) || !vocabulary.has(left + right)) {
      const missing = [left, right, left + right].find((token) => !vocabulary.has(token))
      throw invalid(file, `/model/merges/${index}`, JSON.stringify(missing), 'a token of the vocabulary')
    }
    return [left, right]
  })
  return {
    type: 'BPE',
    vocabulary,
    merges,
    unknown: settings.unk_token ?? undefined,
    byteFallback: settings.byte_fallback ?? false,
    fuseUnknown: settings.fuse_unk ?? false,
    ignoreMerges: settings.ignore_merges ?? false,
  }
}

function describeUnigram(model: JsonObject, file: string | undefined): UnigramModel {
  const settings = parse(unigramSchema, model, file, '/model')
  const list = model.vocab
  if (!Array.isArray(list) || list.length === 0 || list.length > largestId)
    throw invalid(file, '/model/vocab', 'no vocabulary', 'a list of pieces')
  const seen = new Set<string>()
  const pieces = list.map((entry: JsonValue, id): readonly [string, number] => {
    const [piece, score]: readonly JsonValue[] = Array.isArray(entry) ? entry : []
    const field = `/model/vocab/${id}`
    if (typeof piece !== 'string' || typeof score !== 'number' || piece.length > longestToken)
      throw invalid(file, field, JSON.stringify(entry), 'a piece and its score')
    if (seen.has(piece)) throw invalid(file, field, JSON.stringify(piece), 'a piece that occurs once')
    seen.add(piece)
    return [piece, score]
  })
  const unknownId = settings.unk_id ?? undefined
  if (unknownId === undefined || unknownId >= pieces.length)
    throw unsupported(file, '/model/unk_id', String(unknownId), `the id of one of the ${pieces.length} pieces`)
  return { type: 'Unigram', pieces, unknownId, byteFallback: settings.byte_fallback ?? false }
}

function checkAddedTokens(tokens: readonly AddedToken[], model: BpeModel | UnigramModel, file: string | undefined): void {
  const added = new Set(tokens.map(({ id }) => id))
  const owners = new Map<number, string>()
  if (model.type === 'BPE') {
    for (const [token, id] of model.vocabulary) if (added.has(id)) owners.set(id, token)
  } else for (const [id, [piece]] of model.pieces.entries()) owners.set(id, piece)
  for (const [index, { id, content }] of tokens.entries()) {
    const owner = owners.get(id)
    if (owner !== undefined && owner !== content)
      throw invalid(file, `/added_tokens/${index}/id`, `${id}, which ${JSON.stringify(owner)} has`, 'an id of its own')
    owners.set(id, content)
  }
}

/** Every `Regex` anywhere below `root`. */
function checkPatterns(root: unknown, file: string | undefined): void {
  const open: { readonly value: unknown; readonly field: string }[] = [{ value: root, field: '' }]
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    if (typeof next.value !== 'object' || next.value === null) continue
    for (const [key, value] of Object.entries(next.value)) {
      const field = `${next.field}/${pointer(key)}`
      if (key !== 'Regex' || typeof value !== 'string') {
        open.push({ value, field })
        continue
      }
      if (value.length <= longestToken && nestedQuantifier(value) === undefined) continue
      throw new ModalignError({
        code: 'TOKENIZER_REGEX',
        file,
        field,
        got: value,
        expected: `a pattern of at most ${longestToken} characters without nested unbounded repetition`,
        hint: 'such a pattern can take exponential time',
      })
    }
  }
}

function parse<S extends z.ZodType>(schema: S, value: unknown, file: string | undefined, field: string): z.output<S> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const [issue] = result.error.issues
  throw invalid(
    file,
    field + (issue?.path ?? []).map((key) => `/${pointer(String(key))}`).join(''),
    issue?.message ?? 'bad value',
    'a tokenizer.json',
  )
}

function pointer(key: string): string {
  return key.replaceAll('~', '~0').replaceAll('/', '~1')
}

export function invalid(file: string | undefined, field: string, got: string, expected: string): ModalignError {
  return new ModalignError({ code: 'TOKENIZER_INVALID', file, field, got, expected })
}

export function unsupported(file: string | undefined, field: string, got: string, expected: string, hint?: string): ModalignError {
  return new ModalignError({ code: 'TOKENIZER_UNSUPPORTED', file, field, got, expected, hint })
}
