/** Training of a byte-level BPE tokenizer, as GPT-2's or over whole lines: what the tiny demonstration language model reads and writes. */
import { ModalignError } from '../../src/errors.ts'

export interface TrainingOptions {
  /** Tokens in all: special tokens, the 256 bytes and the learned ones. The vocabulary is smaller where the corpus has nothing left to merge. */
  readonly vocabularySize: number
  /** Tokens that text never becomes by merging. They take the first ids, in this order. */
  readonly specialTokens: readonly string[]
  /**
   * What a merge never crosses. `words` (the default): GPT-2's words. `lines`: line breaks alone, so that an expression that occurs often enough becomes one token,
   * spaces and all (superwords; Liu et al. 2025).
   */
  readonly within?: 'words' | 'lines'
}

interface AddedToken {
  readonly id: number
  readonly content: string
  readonly single_word: boolean
  readonly lstrip: boolean
  readonly rstrip: boolean
  readonly normalized: boolean
  readonly special: boolean
}

interface ByteLevel {
  readonly type: 'ByteLevel'
  readonly add_prefix_space: false
  readonly trim_offsets: true
  readonly use_regex: boolean
}

interface LineSplit {
  readonly type: 'Split'
  readonly pattern: { readonly String: '\n' }
  readonly behavior: 'Isolated'
  readonly invert: false
}

/** A Hugging Face `tokenizer.json` of a byte-level BPE. */
export interface ByteLevelBpe {
  readonly version: '1.0'
  readonly truncation: null
  readonly padding: null
  readonly added_tokens: readonly AddedToken[]
  readonly normalizer: null
  readonly pre_tokenizer: ByteLevel | { readonly type: 'Sequence'; readonly pretokenizers: readonly [LineSplit, ByteLevel] }
  readonly post_processor: null
  readonly decoder: { readonly type: 'ByteLevel'; readonly add_prefix_space: true; readonly trim_offsets: true; readonly use_regex: true }
  readonly model: {
    readonly type: 'BPE'
    readonly dropout: null
    readonly unk_token: null
    readonly continuing_subword_prefix: null
    readonly end_of_word_suffix: null
    readonly fuse_unk: false
    readonly byte_fallback: false
    readonly ignore_merges: false
    readonly vocab: Readonly<Record<string, number>>
    readonly merges: readonly (readonly [string, string])[]
  }
}

/** GPT-2's pre-tokenizer. `\s` of the original is Unicode white space, which JavaScript's `\s` is not (U+0085, U+FEFF). */
const gpt2Words =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu

const units = {
  words: (text: string): readonly string[] => text.match(gpt2Words) ?? [],
  lines: (text: string): readonly string[] => text.split(/(\n)/).filter((line) => line !== ''),
} as const

/** GPT-2's printable stand-ins: byte -> character. Printable Latin-1 bytes stand for themselves, the others for U+0100 and up. */
function byteCharacters(): readonly string[] {
  const printable = (byte: number) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
  let next = 0x100
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++))
}

/**
 * Learns a byte-level BPE (Sennrich et al. 2016 over bytes, as in GPT-2) and returns it as a `tokenizer.json` object that Hugging Face `tokenizers` loads.
 *
 * Deterministic: the pair merged next is the most frequent one; among equals the one whose left token has the lowest id, then the lowest right id. This is the
 * rule of Hugging Face's `BpeTrainer`, and ids are given in its order (special tokens, bytes by code point of their stand-in, merges as learned),
 * so that both learn the same file from the same corpus. The corpus is plain text: special tokens inside it count as the characters they are made of.
 *
 * @throws ModalignError `TOKENIZER_TRAINING_OPTIONS` when the vocabulary cannot hold the bytes and the special tokens, or text could become a special token by merging
 *
 * @example
 * const tokenizer = trainByteLevelBpe(['a cat', 'a cat and a hat'], { vocabularySize: 270, specialTokens: ['<|im_start|>', '<|im_end|>', '<|endoftext|>'] })
 * tokenizer.model.merges[0] // ['a', 't']
 */
export function trainByteLevelBpe(
  corpus: Iterable<string>,
  { vocabularySize, specialTokens, within = 'words' }: TrainingOptions,
): ByteLevelBpe {
  const smallest = 256 + specialTokens.length
  if (!Number.isInteger(vocabularySize) || vocabularySize < smallest || vocabularySize > 0xfffff) {
    throw new ModalignError({
      code: 'TOKENIZER_TRAINING_OPTIONS',
      field: '/vocabularySize',
      got: String(vocabularySize),
      expected: `an integer of at least ${smallest} (256 bytes and ${specialTokens.length} special tokens)`,
    })
  }
  const badToken = specialTokens.findIndex((token, i) => units.words(token).length < 2 || specialTokens.indexOf(token) !== i)
  if (badToken >= 0) {
    throw new ModalignError({
      code: 'TOKENIZER_TRAINING_OPTIONS',
      field: `/specialTokens/${badToken}`,
      got: JSON.stringify(specialTokens[badToken]),
      expected: 'a token that occurs once and that the pre-tokenizer splits, as it splits <|name|>, so that merging never makes it',
    })
  }

  const characters = byteCharacters()
  const tokens = [...specialTokens, ...characters.toSorted()]
  const idOf = new Map(tokens.map((token, id) => [token, id]))
  const merges: [string, string][] = []
  const pairs = new Pairs(countUnits(corpus, units[within], characters, idOf))
  while (tokens.length < vocabularySize) {
    const best = pairs.mostFrequent()
    if (best === undefined) break
    const left = tokens[best.left] ?? ''
    const right = tokens[best.right] ?? ''
    merges.push([left, right])
    const merged = left + right
    const known = idOf.get(merged)
    const id = known ?? tokens.length
    if (known === undefined) {
      tokens.push(merged)
      idOf.set(merged, id)
    }
    pairs.merge(best, id)
  }

  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true } as const
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specialTokens.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer:
      within === 'words'
        ? { ...byteLevel, use_regex: true }
        : {
            type: 'Sequence',
            pretokenizers: [
              { type: 'Split', pattern: { String: '\n' }, behavior: 'Isolated', invert: false },
              { ...byteLevel, use_regex: false },
            ],
          },
    post_processor: null,
    decoder: { ...byteLevel, add_prefix_space: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  }
}

interface Word {
  ids: number[]
  readonly count: number
}

/** The corpus as words or lines, each once with its count, in the order of first appearance. */
function countUnits(
  corpus: Iterable<string>,
  unitsOf: (text: string) => readonly string[],
  characters: readonly string[],
  idOf: ReadonlyMap<string, number>,
): readonly Word[] {
  const counts = new Map<string, number>()
  for (const text of corpus) {
    for (const word of unitsOf(text)) counts.set(word, (counts.get(word) ?? 0) + 1)
  }
  const idOfByte = characters.map((character) => idOf.get(character) ?? 0)
  const encoder = new TextEncoder()
  return Array.from(counts, ([word, count]) => ({ ids: Array.from(encoder.encode(word), (byte) => idOfByte[byte] ?? 0), count }))
}

interface Pair {
  readonly left: number
  readonly right: number
}

/** How often each pair of neighbouring tokens occurs, and in which words. A pair's key is `left * 2^20 + right`, so keys order as pairs do. */
class Pairs {
  readonly #words: readonly Word[]
  readonly #counts = new Map<number, number>()
  readonly #wordsWith = new Map<number, Set<number>>()

  constructor(words: readonly Word[]) {
    this.#words = words
    words.forEach(({ ids, count }, index) => {
      this.#add(ids, count, index)
    })
  }

  mostFrequent(): Pair | undefined {
    let bestKey = -1
    let bestCount = 0
    for (const [key, count] of this.#counts) {
      if (count > bestCount || (count === bestCount && count > 0 && key < bestKey)) {
        bestKey = key
        bestCount = count
      }
    }
    return bestCount > 0 ? { left: Math.floor(bestKey / 0x100000), right: bestKey % 0x100000 } : undefined
  }

  /** Replaces the pair by `id` in every word, from left to right, without overlap. */
  merge({ left, right }: Pair, id: number): void {
    const key = left * 0x100000 + right
    for (const index of this.#wordsWith.get(key) ?? []) {
      const word = this.#words[index]
      if (word === undefined) continue
      this.#add(word.ids, -word.count, index)
      const ids: number[] = []
      for (let i = 0; i < word.ids.length; i++) {
        if (word.ids[i] === left && word.ids[i + 1] === right) {
          ids.push(id)
          i++
        } else ids.push(word.ids[i] ?? 0)
      }
      word.ids = ids
      this.#add(ids, word.count, index)
    }
    this.#counts.delete(key)
    this.#wordsWith.delete(key)
  }

  #add(ids: readonly number[], count: number, index: number): void {
    for (let i = 0; i + 1 < ids.length; i++) {
      const key = (ids[i] ?? 0) * 0x100000 + (ids[i + 1] ?? 0)
      const total = (this.#counts.get(key) ?? 0) + count
      if (total > 0) this.#counts.set(key, total)
      else this.#counts.delete(key)
      if (count < 0) continue
      const words = this.#wordsWith.get(key)
      if (words === undefined) this.#wordsWith.set(key, new Set([index]))
      else words.add(index)
    }
  }
}
