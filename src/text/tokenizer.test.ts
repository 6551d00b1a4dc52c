import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { createTokenizer, type Tokenizer } from './tokenizer.ts'

const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`../../test/fixtures/text/${name}`, import.meta.url), 'utf8'))
const ids = z.array(z.int())
const casesSchema = z.object({
  cases: z.array(
    z.object({ text: z.string(), ids, decoded: z.string(), decodedAll: z.string(), plain: ids.optional(), around: ids.optional() }),
  ),
})
const names = ['byte-level', 'digits', 'split', 'llama', 'llama-new', 'phi3', 'gemma', 'unigram', 'unigram-bytes']

function load(name: string, config?: z.core.util.JSONType): Promise<Tokenizer> {
  return createTokenizer({ tokenizer: z.json().parse(read(`${name}.json`)), config, file: `${name}.json` })
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
