/** The tokenizer that a GGUF file has in its metadata, as the files of a Hugging Face folder would say it: what llama.cpp reads, written for one tokenizer library. */
import { ModalignError } from '../errors.ts'
import type { JsonObject, JsonValue } from '../io/json.ts'
import { preTokenizers } from './ggml-pre-tokenizers.ts'
import type { TokenizerFiles } from './tokenizer-file.ts'

/** The keys `tokenizer.ggml.*` of a GGUF file, by their own names. */
export interface GgmlVocabulary {
  /** `gpt2`: byte-level BPE; `llama`: SentencePiece BPE, whose merges follow from scores; `t5`: Unigram. */
  readonly model: string
  /** How `gpt2` cuts text into words. */
  readonly pre?: string | undefined
  readonly tokens: readonly string[]
  /** 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. */
  readonly tokenTypes?: ArrayLike<number> | undefined
  readonly scores?: ArrayLike<number> | undefined
  /** "left right" */
  readonly merges?: readonly string[] | undefined
  readonly bosId?: number | undefined
  readonly eosId?: number | undefined
  /** End of a turn, where that is another token than the end of the text. */
  readonly eotId?: number | undefined
  readonly unknownId?: number | undefined
  readonly padId?: number | undefined
  readonly addBos?: boolean | undefined
  readonly addEos?: boolean | undefined
  readonly addSpacePrefix?: boolean | undefined
  readonly removeExtraWhitespaces?: boolean | undefined
  /** Control tokens swallow the white space on their right, as Phi-3's do, all but `<unk>`, `<s>` and `<|endoftext|>`. */
  readonly stripAfterControl?: boolean | undefined
  /** `tokenizer.chat_template` and, by their names, `tokenizer.chat_template.NAME`. */
  readonly chatTemplates?: ReadonlyMap<string, string> | undefined
  /** Named in errors. */
  readonly file?: string | undefined
}

const tokenType = { unknown: 2, control: 3, userDefined: 4, byte: 6 } as const
/** Of models whose control tokens swallow white space. */
const keepsSpaceAfter: ReadonlySet<string> = new Set(['<unk>', '<s>', '<|endoftext|>'])
/** Contents of control tokens that end a turn in the templates of well-known models, whether their files say so or not. */
const turnEnds: ReadonlySet<string> = new Set([
  '<|im_end|>',
  '<|eot_id|>',
  '<|eom_id|>',
  '<|end|>',
  '<end_of_turn>',
  '<|endoftext|>',
  '<|end_of_text|>',
  '<EOT>',
  '<|END_OF_TURN_TOKEN|>',
])

/**
 * What `createTokenizer` and `createChatTemplate` take.
 *
 * @throws ModalignError `TOKENIZER_UNSUPPORTED` for another model or an unknown way to cut words, `TOKENIZER_INVALID` where lists do not fit together
 * @example
 * const files = ggmlTokenizerFiles({ model: 'gpt2', pre: 'smollm', tokens, merges })
 * const tokenizer = await createTokenizer(files)
 */
export function ggmlTokenizerFiles(vocabulary: GgmlVocabulary): TokenizerFiles {
  const { tokens, file, tokenTypes, scores } = vocabulary
  const fault = (key: string, got: string, expected: string): ModalignError =>
    new ModalignError({ code: 'TOKENIZER_INVALID', file, field: `tokenizer.ggml.${key}`, got, expected })
  for (const [key, list] of [['token_type', tokenTypes] as const, ['scores', scores] as const]) {
    if (list !== undefined && list.length !== tokens.length)
      throw fault(key, `${list.length} values`, `${tokens.length}, one for each token`)
  }
  const models: Readonly<Record<string, (() => JsonObject) | undefined>> = {
    gpt2: () => byteLevel(vocabulary, fault),
    llama: () => sentencePiece(vocabulary, fault),
    t5: () => unigram(vocabulary, fault),
  }
  const build = Object.hasOwn(models, vocabulary.model) ? models[vocabulary.model] : undefined
  if (build === undefined) {
    const expected = Object.keys(models).join(', ')
    throw new ModalignError({ code: 'TOKENIZER_UNSUPPORTED', file, field: 'tokenizer.ggml.model', got: vocabulary.model, expected })
  }
  const tokenizer = { added_tokens: addedTokens(vocabulary), ...build(), post_processor: surroundings(vocabulary) }
  const named = (id: number | undefined): string | undefined => (id === undefined ? undefined : tokens[id])
  const templates = vocabulary.chatTemplates ?? new Map()
  const config = withoutUndefined({
    bos_token: named(vocabulary.bosId),
    eos_token: named(vocabulary.eosId),
    unk_token: named(vocabulary.unknownId),
    pad_token: named(vocabulary.padId),
    chat_template: templates.size === 0 ? undefined : [...templates].map(([name, template]) => ({ name, template })),
  })
  const ends = [
    vocabulary.eosId,
    vocabulary.eotId,
    ...tokens.flatMap((token, id) => (turnEnds.has(token) && typeOf(vocabulary, id) === tokenType.control ? [id] : [])),
  ]
  return { tokenizer, config, generationConfig: { eos_token_id: [...new Set(ends.filter((id) => id !== undefined))] }, file }
}

type Fault = (key: string, got: string, expected: string) => ModalignError

function typeOf({ tokenTypes }: GgmlVocabulary, id: number): number {
  return tokenTypes?.[id] ?? 1
}

/** Two tokens of one spelling cannot both be found by it: the first one is. */
function idsOf(tokens: readonly string[]): Map<string, number> {
  const ids = new Map<string, number>()
  for (const [id, token] of tokens.entries()) if (!ids.has(token)) ids.set(token, id)
  return ids
}

function addedTokens(vocabulary: GgmlVocabulary): JsonValue[] {
  const ids = idsOf(vocabulary.tokens)
  return vocabulary.tokens.flatMap((content, id) => {
    const type = typeOf(vocabulary, id)
    if (content === '' || ids.get(content) !== id) return []
    const special = type === tokenType.control || type === tokenType.unknown
    if (!special && type !== tokenType.userDefined) return []
    const rstrip = special && vocabulary.stripAfterControl === true && !keepsSpaceAfter.has(content)
    return [{ id, content, single_word: false, lstrip: false, rstrip, normalized: false, special }]
  })
}

function byteLevel({ pre = 'default', tokens, merges, file }: GgmlVocabulary, fault: Fault): JsonObject {
  const kind = preTokenizers.get(pre)
  if (kind === undefined) {
    throw new ModalignError({
      code: 'TOKENIZER_UNSUPPORTED',
      file,
      field: 'tokenizer.ggml.pre',
      got: pre,
      expected: [...preTokenizers.keys()].join(', '),
    })
  }
  if (merges === undefined) throw fault('merges', 'no merges', 'the merges of a byte-level BPE tokenizer')
  const ids = idsOf(tokens)
  // A merge into a token that the vocabulary lacks can never be made.
  const pairs = merges
    .map((merge, index) => splitMerge(merge, index, fault))
    .filter((pair) => pair.every((part) => ids.has(part)) && ids.has(pair.join('')))
  return {
    normalizer: kind.normalizer ?? null,
    pre_tokenizer: kind.preTokenizer,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { type: 'BPE', vocab: vocabularyObject(ids), merges: pairs, ignore_merges: kind.ignoreMerges === true },
  }
}

/** Tokens may begin with the space that parts the two, in files whose tokens are not spelt in bytes. */
function splitMerge(merge: string, index: number, fault: Fault): [string, string] {
  const at = merge.indexOf(' ', 1)
  if (at < 0 || at === merge.length - 1)
    throw fault('merges', `${JSON.stringify(merge)} as merge ${index}`, 'two tokens with a space between')
  return [merge.slice(0, at), merge.slice(at + 1)]
}

function sentencePiece(vocabulary: GgmlVocabulary, fault: Fault): JsonObject {
  const { tokens, scores, unknownId, addSpacePrefix = true } = vocabulary
  if (scores === undefined) throw fault('scores', 'no scores', 'the scores of a SentencePiece tokenizer')
  const ids = idsOf(tokens)
  const replace = { type: 'Replace', pattern: { String: ' ' }, content: '▁' }
  const decoders = [{ type: 'Replace', pattern: { String: '▁' }, content: ' ' }, { type: 'ByteFallback' }, { type: 'Fuse' }]
  return {
    normalizer: { type: 'Sequence', normalizers: addSpacePrefix ? [{ type: 'Prepend', prepend: '▁' }, replace] : [replace] },
    pre_tokenizer: null,
    decoder: { type: 'Sequence', decoders: addSpacePrefix ? [...decoders, { type: 'Strip', content: ' ', start: 1, stop: 0 }] : decoders },
    model: {
      type: 'BPE',
      vocab: vocabularyObject(ids),
      merges: mergesByScore(vocabulary, ids, scores),
      unk_token: (unknownId === undefined ? undefined : tokens[unknownId]) ?? '<unk>',
      byte_fallback: true,
      fuse_unk: true,
    },
  }
}

/**
 * SentencePiece's BPE joins the two neighbours whose union has the best score; the library's joins the pair that comes first. So every way to cut a token into two others
 * is a merge, the best score first, and among equals the one whose parts have the lower ids: the order in which Transformers writes them.
 */
function mergesByScore(vocabulary: GgmlVocabulary, ids: ReadonlyMap<string, number>, scores: ArrayLike<number>): JsonValue[] {
  const found: { readonly left: string; readonly right: string; readonly score: number; readonly id: number; readonly leftId: number }[] =
    []
  for (const [token, id] of ids) {
    if (typeOf(vocabulary, id) === tokenType.control || typeOf(vocabulary, id) === tokenType.byte) continue
    for (let at = 1; at < token.length; at++) {
      // Not within a character that takes two units.
      const unit = token.charCodeAt(at)
      if (unit >= 0xdc00 && unit <= 0xdfff) continue
      const [left, right] = [token.slice(0, at), token.slice(at)]
      const leftId = ids.get(left)
      if (leftId !== undefined && ids.has(right)) found.push({ left, right, score: scores[id] ?? 0, id, leftId })
    }
  }
  found.sort((a, b) => b.score - a.score || a.id - b.id || a.leftId - b.leftId)
  return found.map(({ left, right }) => [left, right])
}

function unigram(
  { tokens, scores, unknownId, addSpacePrefix = true, removeExtraWhitespaces = true }: GgmlVocabulary,
  fault: Fault,
): JsonObject {
  if (scores === undefined) throw fault('scores', 'no scores', 'the scores of a Unigram tokenizer')
  const metaspace = { type: 'Metaspace', replacement: '▁', prepend_scheme: addSpacePrefix ? 'always' : 'never', split: true }
  const spaces = { type: 'Replace', pattern: { Regex: ' {2,}' }, content: ' ' }
  return {
    normalizer: {
      type: 'Sequence',
      normalizers: [{ type: 'NFKC' }, ...(removeExtraWhitespaces ? [{ type: 'Strip', strip_left: false, strip_right: true }, spaces] : [])],
    },
    pre_tokenizer: metaspace,
    decoder: metaspace,
    model: { type: 'Unigram', unk_id: unknownId ?? 2, vocab: tokens.map((token, id) => [token, scores[id] ?? 0]), byte_fallback: false },
  }
}

/** The tokens around a text, as the file says. */
function surroundings({ tokens, bosId, eosId, addBos, addEos, model }: GgmlVocabulary): JsonValue {
  const bos = (addBos ?? model === 'llama') ? bosId : undefined
  const eos = (addEos ?? model === 't5') ? eosId : undefined
  const special = [bos, eos].filter((id) => id !== undefined)
  const text = { Sequence: { id: 'A', type_id: 0 } }
  const token = (id: number | undefined): JsonValue[] => (id === undefined ? [] : [{ SpecialToken: { id: tokens[id] ?? '', type_id: 0 } }])
  if (special.length === 0) return null
  return {
    type: 'TemplateProcessing',
    single: [...token(bos), text, ...token(eos)],
    pair: [...token(bos), text, ...token(bos), { Sequence: { id: 'B', type_id: 1 } }, ...token(eos)],
    special_tokens: Object.fromEntries(
      special.map((id) => [tokens[id] ?? '', { id: tokens[id] ?? '', ids: [id], tokens: [tokens[id] ?? ''] }]),
    ),
  }
}

/** Without a prototype: tokens are named like anything. */
function vocabularyObject(ids: ReadonlyMap<string, number>): JsonObject {
  const vocabulary: Record<string, JsonValue> = Object.create(null)
  for (const [token, id] of ids) vocabulary[token] = id
  return vocabulary
}

function withoutUndefined(value: Readonly<Record<string, JsonValue | undefined>>): JsonObject {
  return Object.fromEntries(Object.entries(value).flatMap(([key, item]) => (item === undefined ? [] : [[key, item]])))
}
