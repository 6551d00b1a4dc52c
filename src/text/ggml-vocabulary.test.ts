import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { type GgmlVocabulary, ggmlTokenizerFiles } from './ggml-vocabulary.ts'
import { createTokenizer } from './tokenizer.ts'

const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`../../test/fixtures/text/${name}`, import.meta.url), 'utf8'))
const bpe = z.object({ type: z.literal('BPE'), vocab: z.record(z.string(), z.int()), merges: z.array(z.tuple([z.string(), z.string()])) })
const unigram = z.object({ type: z.literal('Unigram'), vocab: z.array(z.tuple([z.string(), z.number()])) })
const tokenizerJson = z.object({
  model: z.discriminatedUnion('type', [bpe, unigram]),
  added_tokens: z.array(z.object({ id: z.int(), content: z.string(), special: z.boolean() })),
})
const casesJson = z.object({ cases: z.array(z.object({ text: z.string(), ids: z.array(z.int()), around: z.array(z.int()).optional() })) })

/** llama.cpp's numbers. */
const type = { normal: 1, unknown: 2, control: 3, userDefined: 4, byte: 6 } as const

/** A trained tokenizer as llama.cpp's converter writes it: the lists of `tokenizer.ggml.*`. */
function listsOf(name: string): Pick<GgmlVocabulary, 'tokens' | 'tokenTypes' | 'scores' | 'merges'> {
  const { model, added_tokens: added } = tokenizerJson.parse(read(`${name}.json`))
  const ids = new Map<string, number>(model.type === 'BPE' ? Object.entries(model.vocab) : model.vocab.map(([token], id) => [token, id]))
  for (const { id, content } of added) ids.set(content, id)
  const tokens: string[] = []
  for (const [token, id] of ids) tokens[id] = token
  const kinds = new Map(added.map(({ content, special }) => [content, special ? type.control : type.userDefined]))
  const tokenTypes = tokens.map((token) =>
    token === '<unk>' ? type.unknown : (kinds.get(token) ?? (/^<0x[0-9A-F]{2}>$/.test(token) ? type.byte : type.normal)),
  )
  if (model.type === 'Unigram') return { tokens, tokenTypes, scores: model.vocab.map(([, score]) => score) }
  // SentencePiece's score of a token is the rank of the merge that first makes it.
  const ranks = new Map<string, number>()
  for (const [rank, pair] of model.merges.entries()) if (!ranks.has(pair.join(''))) ranks.set(pair.join(''), rank)
  return {
    tokens,
    tokenTypes,
    scores: tokens.map((token) => -(ranks.get(token) ?? model.merges.length)),
    merges: model.merges.map((pair) => pair.join(' ')),
  }
}

interface Kind {
  readonly name: string
  readonly vocabulary: (lists: ReturnType<typeof listsOf>) => GgmlVocabulary
  /** Texts on which the two are to agree; default: all. */
  readonly agrees?: (text: string) => boolean
}
const kinds: readonly Kind[] = [
  { name: 'byte-level', vocabulary: (lists) => ({ ...lists, model: 'gpt2', pre: 'gpt-2' }) },
  { name: 'digits', vocabulary: (lists) => ({ ...lists, model: 'gpt2', pre: 'smollm' }) },
  {
    name: 'split',
    vocabulary: (lists) => ({ ...lists, model: 'gpt2', pre: 'llama-bpe', bosId: 700, addBos: true }),
    // The trained one composes characters, Llama 3's does not.
    agrees: (text) => text.normalize('NFC') === text,
  },
  { name: 'llama', vocabulary: (lists) => ({ ...lists, model: 'llama', bosId: 1, eosId: 2, unknownId: 0 }) },
  {
    name: 'phi3',
    vocabulary: (lists) => ({ ...lists, model: 'llama', bosId: 1, eosId: 2, unknownId: 0, stripAfterControl: true }),
    // GGUF has no way to say what is special about the first two; the trained </s> keeps white space, Phi-3's own does not.
    agrees: (text) => !/<\|(word|left)\|>|<\/s>\s/.test(text),
  },
  {
    name: 'gemma',
    // The converter writes spaces into the tokens that users defined.
    vocabulary: ({ tokens, tokenTypes, ...lists }) => ({
      ...lists,
      tokens: tokens.map((token, id) => (tokenTypes?.[id] === type.userDefined ? token.replaceAll('▁', ' ') : token)),
      tokenTypes,
      model: 'llama',
      unknownId: 3,
      addBos: false,
      addSpacePrefix: false,
    }),
    // There they are found in the text, in the trained one only where it has marks itself.
    agrees: (text) => !/ {2}|▁▁/.test(text),
  },
  {
    name: 'unigram',
    vocabulary: (lists) => ({ ...lists, model: 't5', eosId: 1, unknownId: 2, addEos: true, removeExtraWhitespaces: true }),
    // SentencePiece removes spaces at the end, before a token of its own too; the trained one keeps one.
    agrees: (text) => !/\s(<|$)/.test(text),
  },
]

describe.each(kinds)('the lists of a GGUF file: $name', ({ name, vocabulary, agrees = () => true }) => {
  const { cases } = casesJson.parse(read(`${name}.cases.json`))
  const compared = cases.filter(({ text }) => agrees(text))

  test('ids are those of the tokenizer that they were made from, with and without the tokens around a text', async () => {
    expect(compared.length).toBeGreaterThan(0.5 * cases.length)
    const tokenizer = await createTokenizer(ggmlTokenizerFiles(vocabulary(listsOf(name))))
    expect(compared.map(({ text }) => ({ text, ids: tokenizer.encode(text) }))).toEqual(compared.map(({ text, ids }) => ({ text, ids })))
    expect(compared.map(({ text }) => ({ text, ids: tokenizer.encode(text, { addSpecialTokens: true }) }))).toEqual(
      compared.map(({ text, ids, around = ids }) => ({ text, ids: around })),
    )
  })
})

describe('what cannot be read', () => {
  const lists = listsOf('digits')
  test.each([
    [{ ...lists, model: 'bert' }, 'TOKENIZER_UNSUPPORTED', 'tokenizer.ggml.model'],
    [{ ...lists, model: 'gpt2', pre: 'of-tomorrow' }, 'TOKENIZER_UNSUPPORTED', 'tokenizer.ggml.pre'],
    [{ ...lists, model: 'gpt2', merges: undefined }, 'TOKENIZER_INVALID', 'tokenizer.ggml.merges'],
    [{ ...lists, model: 'gpt2', merges: ['a'] }, 'TOKENIZER_INVALID', 'tokenizer.ggml.merges'],
    [{ ...lists, model: 'llama', scores: undefined }, 'TOKENIZER_INVALID', 'tokenizer.ggml.scores'],
    [{ ...lists, model: 'llama', scores: [1] }, 'TOKENIZER_INVALID', 'tokenizer.ggml.scores'],
    [{ ...lists, model: 't5', tokenTypes: [1] }, 'TOKENIZER_INVALID', 'tokenizer.ggml.token_type'],
  ])('is named: case %#', (vocabulary, code, field) => {
    expect(() => ggmlTokenizerFiles(vocabulary)).toThrow(expect.objectContaining({ code, details: expect.objectContaining({ field }) }))
  })
})
