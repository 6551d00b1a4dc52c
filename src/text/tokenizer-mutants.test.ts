import { readFileSync } from 'node:fs'
import { expect, test, vi } from 'vitest'
import { mutantCount, mutantOf, pickFrom } from '../../test/mutants.ts'
import { ModalignError } from '../errors.ts'
import { createTokenizer } from './tokenizer.ts'

/** Small files of each kind: byte-level BPE, SentencePiece BPE with byte fallback, Unigram. */
const seeds = [
  {
    added_tokens: [{ id: 6, content: '<|end|>', special: true, normalized: false }],
    normalizer: { type: 'NFC' },
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: ' ?\\p{L}+|\\s+' }, behavior: 'Isolated' },
        { type: 'ByteLevel', add_prefix_space: false, use_regex: false },
      ],
    },
    post_processor: null,
    decoder: { type: 'ByteLevel' },
    model: {
      type: 'BPE',
      vocab: { a: 0, b: 1, ab: 2, Ġ: 3, Ġa: 4, c: 5 },
      merges: [
        ['a', 'b'],
        ['Ġ', 'a'],
      ],
    },
  },
  {
    added_tokens: [
      { id: 0, content: '<unk>', special: true },
      { id: 1, content: '<s>', special: true },
    ],
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
    },
    decoder: {
      type: 'Sequence',
      decoders: [{ type: 'Replace', pattern: { String: '▁' }, content: ' ' }, { type: 'ByteFallback' }, { type: 'Fuse' }],
    },
    model: {
      type: 'BPE',
      vocab: { '<unk>': 0, '<s>': 1, '<0x41>': 2, '▁': 3, a: 4, '▁a': 5 },
      merges: ['▁ a'],
      byte_fallback: true,
      unk_token: '<unk>',
      fuse_unk: true,
    },
  },
  {
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
    post_processor: null,
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' },
    model: {
      type: 'Unigram',
      unk_id: 0,
      vocab: [
        ['<unk>', 0],
        ['▁', -2],
        ['a', -3],
        ['▁a', -2.5],
        ['b', -4],
      ],
    },
  },
].map((file) => Uint8Array.from(Buffer.from(JSON.stringify(file))))
const tokens = [
  '"',
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  'null',
  'true',
  '-1',
  '1e400',
  '""',
  '9007199254740993',
  '"__proto__"',
  '(a+)+',
  '\\\\p{L}*',
  '"type"',
  '"Regex"',
  '\\ud800',
  '"Split"',
  '"ByteLevel"',
  '"Unigram"',
]

test(`${mutantCount} mutants of tokenizer.json: a typed error, or a tokenizer that works`, async () => {
  // The library speaks up about patterns that it does not know.
  const warned = vi.spyOn(console, 'warn').mockReturnValue(undefined)
  const pick = pickFrom(20_262)
  const prototypeKeys = Object.getOwnPropertyNames(Object.prototype).join()
  const text = readFileSync(new URL(import.meta.url), 'utf8').slice(0, 60)
  let [parsed, accepted] = [0, 0]
  for (let index = 0; index < mutantCount; index++) {
    const json = Buffer.from(mutantOf(seeds, pick, tokens)).toString('utf8')
    const value = jsonOf(json)
    if (value === undefined) continue
    parsed++
    const started = performance.now()
    try {
      const tokenizer = await createTokenizer({ tokenizer: value })
      accepted++
      for (const word of ['a b ab', text, '<s>\ud800', '']) tokenizer.decode(tokenizer.encode(word))
    } catch (error) {
      if (!(error instanceof ModalignError)) throw new Error(`mutant ${index}: ${json}`, { cause: error })
      expect(error.code).toMatch(/^TOKENIZER_/)
    }
    expect(performance.now() - started).toBeLessThan(2000)
  }
  warned.mockRestore()
  expect(Object.getOwnPropertyNames(Object.prototype).join()).toBe(prototypeKeys)
  expect(parsed).toBeGreaterThan(mutantCount / 20)
  expect(accepted).toBeGreaterThan(mutantCount / 100)
  expect(accepted).toBeLessThan(parsed)
})

/** What is no JSON never reaches the tokenizer. */
function jsonOf(text: string) {
  try {
    return JSON.parse(text)
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}
