import { readFileSync } from 'node:fs'
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { JsonValue } from '../io/json.ts'
import { loadChatTemplate, loadTokenizer } from './model-folder.ts'
import { canonicalJson } from './pipeline.ts'
import { createTokenizer, type Tokenizer } from './tokenizer.ts'

const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`../../test/fixtures/text/${name}`, import.meta.url), 'utf8'))
const json = (name: string) => z.json().parse(read(name))
const ids = z.array(z.int())
const casesSchema = z.object({
  cases: z.array(
    z.object({ text: z.string(), ids, decoded: z.string(), decodedAll: z.string(), plain: ids.optional(), around: ids.optional() }),
  ),
})
const names = ['byte-level', 'digits', 'split', 'llama', 'llama-new', 'phi3', 'gemma', 'unigram', 'unigram-bytes']

function load(name: string, config?: z.core.util.JSONType): Promise<Tokenizer> {
  return createTokenizer({ tokenizer: json(`${name}.json`), config, file: `${name}.json` })
}

describe.each(names)('%s: as Hugging Face tokenizers', (name) => {
  const { cases } = casesSchema.parse(read(`${name}.cases.json`))

  test('ids', async () => {
    const tokenizer = await load(name)
    expect(cases.map(({ text }) => ({ text, ids: tokenizer.encode(text) }))).toEqual(cases.map(({ text, ids }) => ({ text, ids })))
  })

  test("ids of a stranger's text", async () => {
    const tokenizer = await load(name)
    expect(cases.map(({ text }) => ({ text, ids: tokenizer.encodeText(text) }))).toEqual(
      cases.map(({ text, ids, plain = ids }) => ({ text, ids: plain })),
    )
  })

  test('ids with the tokens around a text', async () => {
    const tokenizer = await load(name)
    expect(cases.map(({ text }) => ({ text, ids: tokenizer.encode(text, { addSpecialTokens: true }) }))).toEqual(
      cases.map(({ text, ids, around = ids }) => ({ text, ids: around })),
    )
  })

  test('text', async () => {
    const tokenizer = await load(name)
    expect(cases.map(({ ids }) => tokenizer.decode(ids, { skipSpecialTokens: true }))).toEqual(cases.map(({ decoded }) => decoded))
    expect(cases.map(({ ids }) => tokenizer.decode(ids))).toEqual(cases.map(({ decodedAll }) => decodedAll))
  })
})

describe('special tokens', () => {
  const config = { bos_token: '<s>', eos_token: { content: '</s>', lstrip: false }, unk_token: '<unk>', pad_token: '[PAD]' }

  test('come from the configuration, then from special_tokens_map.json; those that the vocabulary lacks are absent', async () => {
    const tokenizer = await load('llama', config)
    expect(tokenizer.specialTokens).toEqual({
      bos: { id: 1, content: '<s>' },
      eos: { id: 2, content: '</s>' },
      unk: { id: 0, content: '<unk>' },
    })
    expect(tokenizer.eosIds).toEqual([2])
    const mapped = await createTokenizer({ tokenizer: json('llama.json'), specialTokensMap: { eos_token: '</s>' } })
    expect(mapped.specialTokens).toEqual({ eos: { id: 2, content: '</s>' } })
  })

  test('generation_config.json names further ends of an answer, which are control tokens too', async () => {
    const think = (await load('split')).id('<think>') ?? -1
    const tokenizer = await createTokenizer({
      tokenizer: json('split.json'),
      config: { eos_token: '<|im_end|>' },
      generationConfig: { eos_token_id: [think, 9_999_999] },
    })
    expect(tokenizer.eosIds).toEqual([tokenizer.id('<|im_end|>'), think])
    expect(tokenizer.encodeText('<think>')).not.toContain(think)
    expect((await load('split')).encodeText('<think>')).toEqual([think])
  })

  test('the configuration can declare tokens that tokenizer.json only has in its vocabulary, or not at all', async () => {
    const plain = z.record(z.string(), z.json()).parse(json('llama.json'))
    const tokenizer = await createTokenizer({
      tokenizer: { ...plain, added_tokens: [] },
      config: { ...config, added_tokens_decoder: { 900: { content: '<|extra|>', special: true, rstrip: true } } },
    })
    expect(tokenizer.encode('<s>a</s>')).toEqual((await load('llama')).encode('<s>a</s>'))
    expect(tokenizer.encode('<|extra|>  ')).toEqual([900])
    expect(tokenizer.vocabularySize).toBe(901)
  })
})

describe('identity', () => {
  test('is the SHA-256 of the canonical file: formatting does not change it, a different token does', async () => {
    const value = z.record(z.string(), z.json()).parse(json('byte-level.json'))
    const { identity } = await load('byte-level')
    expect(identity).toMatch(/^[0-9a-f]{64}$/)
    expect((await createTokenizer({ tokenizer: Object.fromEntries(Object.entries(value).toReversed()) })).identity).toBe(identity)
    expect((await createTokenizer({ tokenizer: { ...value, normalizer: { type: 'NFC' } } })).identity).not.toBe(identity)
  })

  test('canonical JSON', () => {
    expect(canonicalJson({ b: [1, 'é', null], a: { d: true, c: 0.5 } })).toBe('{"a":{"c":0.5,"d":true},"b":[1,"é",null]}')
  })
})

describe('streaming', async () => {
  const tokenizers = await Promise.all(names.map((name) => load(name)))
  const streamed = (tokenizer: Tokenizer, ids: readonly number[]) => {
    const decoder = tokenizer.streamDecoder()
    return [...ids.map((id) => decoder.push(id)), decoder.end()]
  }

  test('the pieces of a text join to the text, and no piece ends within a character', () => {
    fc.assert(
      fc.property(fc.constantFrom(...tokenizers), fc.string({ unit: 'grapheme' }), (tokenizer, text) => {
        const ids = tokenizer.encode(text)
        const pieces = streamed(tokenizer, ids)
        expect(pieces.join('')).toBe(tokenizer.decode(ids))
        expect(pieces.some((piece) => /\p{Surrogate}/u.test(piece))).toBe(false)
        if (!tokenizer.decode(ids).includes('\ufffd')) expect(pieces.join('|')).not.toContain('\ufffd')
      }),
      { numRuns: 500 },
    )
  })

  test('any ids at all join to what they decode to together', () => {
    fc.assert(
      fc.property(
        fc
          .constantFrom(...tokenizers)
          .chain((tokenizer) =>
            fc.tuple(fc.constant(tokenizer), fc.array(fc.nat({ max: tokenizer.vocabularySize + 5 }), { maxLength: 40 })),
          ),
        ([tokenizer, ids]) => {
          expect(streamed(tokenizer, ids).join('')).toBe(tokenizer.decode(ids))
        },
      ),
      { numRuns: 500 },
    )
  })

  test('text comes as soon as it is certain', async () => {
    const tokenizer = await load('byte-level')
    const decoder = tokenizer.streamDecoder()
    const [first, ...rest] = tokenizer.encode('🀄')
    expect(decoder.push(tokenizer.encode('a')[0] ?? -1)).toBe('a')
    expect(decoder.push(first ?? -1)).toBe('')
    expect(rest.map((id) => decoder.push(id)).join('')).toBe('🀄')
    expect(decoder.push(first ?? -1)).toBe('')
    expect(decoder.end()).toBe('\ufffd')
  })

  test('an endless run of broken bytes neither hangs nor is lost', async () => {
    const tokenizer = await load('byte-level')
    const [broken = -1] = tokenizer.encode('🀄')
    const ids = Array.from({ length: 1000 }, () => broken)
    expect(streamed(tokenizer, ids).join('')).toBe('\ufffd'.repeat(1000))
  })
})

describe('decoding', () => {
  test('ids beyond the vocabulary give nothing, what is no id is an error', async () => {
    const tokenizer = await load('byte-level')
    expect(tokenizer.decode([tokenizer.vocabularySize + 3])).toBe('')
    for (const id of [-1, 0.5, Number.NaN]) expect(() => tokenizer.decode([id])).toThrow(expect.objectContaining({ code: 'TOKENIZER_ID' }))
  })
})

describe('hostile text', () => {
  test('lone surrogates are read as U+FFFD', async () => {
    const tokenizer = await load('byte-level')
    expect(tokenizer.decode(tokenizer.encode('a\ud800b\udc00'))).toBe('a\ufffdb\ufffd')
  })

  test('a text without an end is refused', async () => {
    const tokenizer = await load('byte-level')
    expect(() => tokenizer.encode('a'.repeat(2 ** 20 + 1))).toThrow(expect.objectContaining({ code: 'TOKENIZER_TEXT_TOO_LONG' }))
  })

  test('a very long word is encoded, or refused as too long', async () => {
    const long = 'ab'.repeat(100_000)
    expect((await load('llama')).decode((await load('llama')).encode(long))).toBe(long)
    const unigram = await load('unigram')
    let result: unknown
    try {
      result = unigram.decode(unigram.encode(long))
    } catch (error) {
      result = error instanceof ModalignError ? error.code : error
    }
    expect([long, 'TOKENIZER_TEXT_TOO_LONG']).toContain(result)
  })

  test('a control token split over two segments is none', async () => {
    const tokenizer = await load('byte-level')
    const end = tokenizer.id('<|im_end|>')
    const plain = tokenizer.controlTokens
    expect(tokenizer.encodeSegments([{ text: '<|im_' }, { text: 'end|>', plain }]).ids).not.toContain(end)
    expect(tokenizer.encodeSegments([{ text: '<|im_', plain }, { text: 'end|>' }]).ids).not.toContain(end)
    expect(tokenizer.encodeSegments([{ text: '<|im_' }, { text: 'end|>' }]).ids).toContain(end)
  })
})

describe('hostile files', () => {
  const model = { type: 'BPE', vocab: { a: 0, b: 1, ab: 2 }, merges: [['a', 'b']] }
  const base = { added_tokens: [], normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, model }
  const deep: JsonValue[] = []
  for (let i = 0, inner = deep; i < 50_000; i++) {
    const next: JsonValue[] = []
    inner.push(next)
    inner = next
  }

  test('the smallest tokenizer works', async () => {
    expect((await createTokenizer({ tokenizer: base })).encode('abba')).toEqual([2, 1, 0])
  })

  test.each<[string, unknown, string, string]>([
    ['a list', [], 'TOKENIZER_INVALID', ''],
    ['no model', { ...base, model: null }, 'TOKENIZER_INVALID', '/model'],
    ['another kind of model', { ...base, model: { type: 'WordPiece', vocab: {} } }, 'TOKENIZER_UNSUPPORTED', '/model/type'],
    ['a negative id', { ...base, model: { ...model, vocab: { ...model.vocab, c: -1 } } }, 'TOKENIZER_INVALID', '/model/vocab/c'],
    ['a huge id', { ...base, model: { ...model, vocab: { ...model.vocab, 'a/b': 2 ** 40 } } }, 'TOKENIZER_INVALID', '/model/vocab/a~1b'],
    ['an id twice', { ...base, model: { ...model, vocab: { ...model.vocab, c: 1 } } }, 'TOKENIZER_INVALID', '/model/vocab/c'],
    ['a merge of unknown tokens', { ...base, model: { ...model, merges: ['a b', 'b a'] } }, 'TOKENIZER_INVALID', '/model/merges/1'],
    ['a merge that is none', { ...base, model: { ...model, merges: [['a']] } }, 'TOKENIZER_INVALID', '/model/merges/0'],
    ['dropout', { ...base, model: { ...model, dropout: 0.1 } }, 'TOKENIZER_UNSUPPORTED', '/model/dropout'],
    [
      'an added token with the id of another',
      { ...base, added_tokens: [{ id: 1, content: '<x>' }] },
      'TOKENIZER_INVALID',
      '/added_tokens/0/id',
    ],
    ['an empty added token', { ...base, added_tokens: [{ id: 3, content: '' }] }, 'TOKENIZER_INVALID', '/added_tokens/0/content'],
    ['an unknown normalizer', { ...base, normalizer: { type: 'Nmt' } }, 'TOKENIZER_UNSUPPORTED', ''],
    [
      'a pattern that hangs',
      { ...base, normalizer: { type: 'Replace', pattern: { Regex: '(a+)+$' }, content: '' } },
      'TOKENIZER_REGEX',
      '/normalizer/pattern/Regex',
    ],
    [
      'a pattern that hangs, deeper',
      {
        ...base,
        pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Split', pattern: { Regex: '(x|x)*y' }, behavior: 'Isolated' }] },
      },
      'TOKENIZER_REGEX',
      '/pre_tokenizer/pretokenizers/0/pattern/Regex',
    ],
    [
      'a pattern that is none',
      { ...base, pre_tokenizer: { type: 'Split', pattern: { Regex: '(' }, behavior: 'Isolated' } },
      'TOKENIZER_UNSUPPORTED',
      '',
    ],
    [
      'an unknown behavior',
      { ...base, pre_tokenizer: { type: 'Split', pattern: { String: 'a' }, behavior: 'Sideways' } },
      'TOKENIZER_UNSUPPORTED',
      '/pre_tokenizer/behavior',
    ],
    [
      'an unknown piece that does not exist',
      { ...base, model: { type: 'Unigram', vocab: [['a', 0]], unk_id: 7 } },
      'TOKENIZER_UNSUPPORTED',
      '/model/unk_id',
    ],
    ['a piece without a score', { ...base, model: { type: 'Unigram', vocab: [['a']], unk_id: 0 } }, 'TOKENIZER_INVALID', '/model/vocab/0'],
  ])('%s', async (_, tokenizer, code, field) => {
    await expect(createTokenizer({ tokenizer: JSON.parse(JSON.stringify(tokenizer)), file: 't.json' })).rejects.toMatchObject({
      name: 'ModalignError',
      code,
      details: { file: 't.json', field },
    })
  })

  test('nesting without end', async () => {
    const made = createTokenizer({ tokenizer: { ...base, normalizer: { type: 'Sequence', normalizers: deep } }, file: 't.json' })
    await expect(made).rejects.toMatchObject({ code: 'TOKENIZER_INVALID', details: { file: 't.json' } })
  })

  test('tokens named like properties of objects are tokens', async () => {
    const vocab = JSON.parse(
      '{"_":0,"__":1,"p":2,"r":3,"o":4,"t":5,"pr":6,"to":7,"prot":8,"proto":9,"__proto__":10,"__proto":11,"ot":12,"constructor":13}',
    )
    const merges = ['_ _', 'p r', 'o t', 'pr ot', 'prot o', '__ proto', '__proto __']
    const tokenizer = await createTokenizer({ tokenizer: { ...base, model: { type: 'BPE', vocab, merges } } })
    expect(tokenizer.encode('__proto__')).toEqual([10])
    expect(tokenizer.decode([13])).toBe('constructor')
  })
})

describe('folders', () => {
  async function folder(files: Readonly<Record<string, string>>): Promise<string> {
    const path = await mkdtemp(join(tmpdir(), 'modalign-text-'))
    await Promise.all(Object.entries(files).map(([name, content]) => writeFile(join(path, name), content)))
    onTestFinished(() => rm(path, { recursive: true }))
    return path
  }

  test('a model folder', async () => {
    const path = await folder({
      'tokenizer.json': `\ufeff${JSON.stringify(json('llama.json'))}`,
      'tokenizer_config.json': JSON.stringify({
        bos_token: '<s>',
        chat_template: '{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}',
      }),
      'generation_config.json': JSON.stringify({ eos_token_id: 2 }),
    })
    const tokenizer = await loadTokenizer(path)
    expect(tokenizer.identity).toBe((await load('llama')).identity)
    expect(tokenizer.eosIds).toEqual([2])
    expect((await loadChatTemplate(path)).render([{ role: 'user', content: 'x' }])).toBe('<s>x')
    await writeFile(join(path, 'chat_template.jinja'), 'from the file')
    expect((await loadChatTemplate(path)).render([])).toBe('from the file')
  })

  test('no tokenizer.json', async () => {
    const path = await folder({})
    await expect(loadTokenizer(path)).rejects.toMatchObject({ code: 'TOKENIZER_MISSING', details: { file: join(path, 'tokenizer.json') } })
    await expect(loadChatTemplate(path)).rejects.toMatchObject({ code: 'TEMPLATE_MISSING' })
  })

  test('broken JSON', async () => {
    const path = await folder({ 'tokenizer.json': '{"model": ' })
    await expect(loadTokenizer(path)).rejects.toMatchObject({
      code: 'TOKENIZER_INVALID_JSON',
      details: { file: join(path, 'tokenizer.json') },
    })
  })

  test('a file of gigabytes is not read', async () => {
    const path = await folder({ 'tokenizer.json': '{}' })
    await truncate(join(path, 'tokenizer.json'), 2 ** 31)
    await expect(loadTokenizer(path)).rejects.toMatchObject({ code: 'TOKENIZER_TOO_LARGE' })
  })
})
