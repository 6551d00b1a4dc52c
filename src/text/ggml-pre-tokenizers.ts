/** How byte-level BPE tokenizers of GGUF files cut text into words, by `tokenizer.ggml.pre`: the pre-tokenizers of the models that these names stand for. */
import type { JsonObject } from '../io/json.ts'

export interface PreTokenizer {
  readonly preTokenizer: JsonObject
  readonly normalizer?: JsonObject
  /** A word that is a token is that token, whatever the merges would make of it. */
  readonly ignoreMerges?: boolean
}

const bytes: JsonObject = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false }
/** ByteLevel with the words of GPT-2. */
const gpt2: JsonObject = { ...bytes, use_regex: true }
const sequence = (...pretokenizers: readonly JsonObject[]): JsonObject => ({ type: 'Sequence', pretokenizers: [...pretokenizers] })
const isolated = (regex: string): JsonObject => ({ type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false })
const words = (regex: string): JsonObject => sequence(isolated(regex), bytes)

const contraction = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
/** Words, then punctuation with its line ends, then white space; `digits` says how many digits are a word. */
const modern = (digits: string): string =>
  `${contraction}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`
/** Words end where small letters end. */
const cased = (ending: string, digits: string): string =>
  `[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+${ending}|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*${ending}|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`
const deepseek3 = sequence(
  isolated('\\p{N}{1,3}'),
  isolated('[一-龥぀-ゟ゠-ヿ]+'),
  isolated(
    '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
  ),
  bytes,
)
/** One kind of word after another is cut out of what is left. */
const deepseekCoder = sequence(...['[\\r\\n]', '\\s?\\p{L}+', '\\s?\\p{P}+', '[一-龥ࠀ-一가-퟿]+', '\\p{N}'].map(isolated), bytes)

const nfc = { type: 'NFC' }
const plain: PreTokenizer = { preTokenizer: gpt2 }
const digitByDigit: PreTokenizer = { preTokenizer: sequence({ type: 'Digits', individual_digits: true }, gpt2) }
const llama3: PreTokenizer = { preTokenizer: words(modern('\\p{N}{1,3}')), ignoreMerges: true }
const dbrx: PreTokenizer = { preTokenizer: words(modern('\\p{N}{1,3}')) }
const qwen2: PreTokenizer = { preTokenizer: words(modern('\\p{N}')), normalizer: nfc }
const bloom: PreTokenizer = { preTokenizer: words(' ?[^(\\s|.,!?…。，、।۔،)]+') }

export const preTokenizers: ReadonlyMap<string, PreTokenizer> = new Map<string, PreTokenizer>([
  ['default', plain],
  ['gpt-2', plain],
  ['phi-2', plain],
  ['mpt', plain],
  ['jais', plain],
  ['trillion', plain],
  ['olmo', { ...plain, normalizer: nfc }],
  ['gpt-neox', { ...plain, normalizer: nfc }],
  ['smollm', digitByDigit],
  ['starcoder', digitByDigit],
  ['refact', digitByDigit],
  ['codeshell', digitByDigit],
  ['exaone', digitByDigit],
  ['minerva-7b', digitByDigit],
  ['command-r', { ...digitByDigit, normalizer: nfc }],
  ['llama-bpe', llama3],
  ['llama3', llama3],
  ['llama-v3', llama3],
  ['falcon3', llama3],
  ['pixtral', llama3],
  ['lfm2', llama3],
  ['dbrx', dbrx],
  ['smaug-bpe', dbrx],
  ['chatglm-bpe', dbrx],
  ['glm4', dbrx],
  ['qwen2', qwen2],
  ['deepseek-r1-qwen', qwen2],
  ['megrez', qwen2],
  ['stablelm2', { preTokenizer: words(modern('\\p{N}')), normalizer: nfc }],
  ['hunyuan', qwen2],
  ['deepseek-coder', { preTokenizer: deepseekCoder }],
  ['deepseek-v3', { preTokenizer: deepseek3 }],
  ['tekken', { preTokenizer: words(cased('', '\\p{N}')), ignoreMerges: true }],
  ['gpt-4o', { preTokenizer: words(cased(`${contraction}?`, '\\p{N}{1,3}')), ignoreMerges: true }],
  ['llama4', { preTokenizer: words(cased(`${contraction}?`, '\\p{N}{1,3}')), ignoreMerges: true }],
  ['bloom', bloom],
  ['poro-chat', bloom],
  ['gpt3-finnish', bloom],
  ['viking', { preTokenizer: sequence(isolated(' ?[^(\\s|.,!?…。，、।۔،)]+'), { type: 'Digits', individual_digits: true }, bytes) }],
])
