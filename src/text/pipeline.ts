/** What is built from a checked `tokenizer.json`: its special tokens and the library's pipeline. */
import { AddedToken as LibraryAddedToken, Tokenizer as LibraryTokenizer } from '@huggingface/tokenizers'
import type { JsonObject, JsonValue } from '../io/json.ts'
import { portableDecoder, portableNormalizer, portablePreTokenizer } from './portable-components.ts'
import {
  type AddedToken,
  type BpeModel,
  isObject,
  type TokenizerDescription,
  type TokenizerFiles,
  type UnigramModel,
  unsupported,
} from './tokenizer-file.ts'

const namedTokens = ['bos_token', 'eos_token', 'pad_token', 'unk_token', 'sep_token', 'cls_token', 'mask_token']

/** JSON without white space and with sorted keys, so that formatting does not change an identity. */
export function canonicalJson(value: JsonValue): string {
  // Vocabularies and merges are long: what holds no object has no keys to sort.
  if (!holdsObject(value)) return JSON.stringify(value)
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`
  if (!isObject(value)) return JSON.stringify(value)
  // In the order of UTF-16 code units, as `<` compares. A list of names makes JSON.stringify keep their order.
  const keys = Object.keys(value).sort()
  if (keys.every((key) => typeof value[key] !== 'object' || value[key] === null)) return JSON.stringify(value, keys)
  return `{${keys.map((key) => `${JSON.stringify(key)}:${canonicalJson(value[key] ?? null)}`).join(',')}}`
}

function holdsObject(value: JsonValue): boolean {
  return Array.isArray(value) ? value.some(holdsObject) : isObject(value)
}

/** `config` names tokens as strings or as objects with `content`. */
function tokenContent(value: JsonValue | undefined): string | undefined {
  const content = isObject(value) ? value.content : value
  return typeof content === 'string' && content !== '' ? content : undefined
}

/** name -> content, of `tokenizer_config.json` and, where that is silent, `special_tokens_map.json`. Additional tokens are named by their number. */
export function declaredTokens({
  config,
  specialTokensMap,
}: Pick<TokenizerFiles, 'config' | 'specialTokensMap'>): ReadonlyMap<string, string> {
  const declared = new Map<string, string>()
  for (const source of [specialTokensMap, config]) {
    if (!isObject(source)) continue
    for (const name of namedTokens) {
      const content = tokenContent(source[name])
      if (content !== undefined) declared.set(name, content)
    }
    for (const key of ['additional_special_tokens', 'extra_special_tokens']) {
      const list = source[key]
      const tokens = Array.isArray(list) ? list : isObject(list) ? Object.values(list) : []
      tokens.forEach((token: JsonValue, i) => {
        const content = tokenContent(token)
        if (content !== undefined) declared.set(`${key}/${i}`, content)
      })
    }
  }
  return declared
}

/** The tokens of `tokenizer.json`, those that only `added_tokens_decoder` of the configuration has, and those that the configuration makes special. */
export function withDeclared(
  tokens: readonly AddedToken[],
  declared: ReadonlyMap<string, string>,
  vocabulary: ReadonlyMap<string, number>,
  { config }: TokenizerFiles,
): readonly AddedToken[] {
  const all = [...tokens]
  const known = new Set(tokens.map((token) => token.content))
  const add = (token: AddedToken) => {
    if (known.has(token.content)) return
    known.add(token.content)
    all.push(token)
  }
  const decoder: JsonObject = isObject(config) && isObject(config.added_tokens_decoder) ? config.added_tokens_decoder : {}
  for (const [key, value] of Object.entries(decoder)) {
    const content = tokenContent(value)
    const id = Number(key)
    if (content === undefined || !isObject(value) || !Number.isInteger(id) || id < 0 || id > 2 ** 22) continue
    if ((vocabulary.get(content) ?? id) !== id || tokens.some((token) => token.id === id)) continue
    const flag = (name: string) => value[name] === true
    add({
      id,
      content,
      singleWord: flag('single_word'),
      lstrip: flag('lstrip'),
      rstrip: flag('rstrip'),
      normalized: flag('normalized'),
      special: flag('special'),
    })
  }
  for (const content of declared.values()) {
    const id = vocabulary.get(content)
    if (id !== undefined) add({ id, content, singleWord: false, lstrip: false, rstrip: false, normalized: false, special: true })
  }
  return all
}

/** The library's pipeline. Its model does not know the control tokens, so that no text can become one; its added tokens are found by us. */
export function buildPipeline(description: TokenizerDescription, control: ReadonlySet<string>, file: string | undefined): LibraryTokenizer {
  const { model, normalizer, preTokenizer, postProcessor, decoder } = description
  const json = {
    added_tokens: [],
    normalizer: normalizer && portableNormalizer(normalizer),
    pre_tokenizer: preTokenizer && portablePreTokenizer(preTokenizer, file),
    post_processor: postProcessor,
    decoder: decoder && portableDecoder(decoder),
    model: model.type === 'BPE' ? bpeWithout(model, control) : unigramWithout(model, control),
  }
  try {
    const library = new LibraryTokenizer(json, {})
    if (library.decoder !== null) {
      library.decoder.added_tokens = description.addedTokens.map(
        ({ singleWord, ...token }) => new LibraryAddedToken({ ...token, single_word: singleWord }),
      )
    }
    return library
  } catch (error) {
    throw unsupported(file, '', error instanceof Error ? error.message : String(error), 'components that @huggingface/tokenizers has')
  }
}

function bpeWithout(model: BpeModel, control: ReadonlySet<string>): object {
  const hidden = [...control].filter((token) => model.vocabulary.has(token))
  const vocab = Object.fromEntries(model.vocabulary)
  for (const token of hidden) delete vocab[token]
  const lengths = new Set(hidden.map(({ length }) => length))
  const isShown = ([left, right]: readonly [string, string]) => !lengths.has(left.length + right.length) || !control.has(left + right)
  return {
    type: 'BPE',
    vocab,
    merges: hidden.length > 0 ? model.merges.filter(isShown) : model.merges,
    unk_token: model.unknown,
    byte_fallback: model.byteFallback,
    fuse_unk: model.fuseUnknown,
    ignore_merges: model.ignoreMerges,
  }
}

/** A hidden piece keeps its place and score and gets a spelling that no text has. */
function unigramWithout(model: UnigramModel, control: ReadonlySet<string>): object {
  return { type: 'Unigram', unk_id: model.unknownId, vocab: model.pieces.map(([piece, score]) => [control.has(piece) ? '' : piece, score]) }
}
