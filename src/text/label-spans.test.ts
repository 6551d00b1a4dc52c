import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { Part, Role, Turn } from '../model/contracts.ts'
import { type ChatTemplate, createChatTemplate, type Message } from './chat-template.ts'
import { conversationPieces } from './conversation.ts'
import { type LabelOptions, labelSpans, type MediaPart, renderPrompt } from './label-spans.ts'
import { createTokenizer, type Tokenizer } from './tokenizer.ts'

const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`../../test/fixtures/text/${name}`, import.meta.url), 'utf8'))
const role = z.enum(['system', 'user', 'assistant', 'tool'])
const ids = z.array(z.int())
const fixtureSchema = z.object({
  tokenizer: z.string(),
  special: z.record(z.string(), z.string()),
  template: z.string(),
  cases: z.array(
    z.object({
      messages: z.array(z.object({ role, content: z.string() })),
      error: z.string().optional(),
      rendered: z.string().optional(),
      ids: ids.optional(),
      mask: ids.optional(),
      promptIds: ids.optional(),
    }),
  ),
})
const names = ['smollm2', 'llama-2', 'llama-3', 'zephyr', 'gemma', 'phi-3', 'qwen-2.5', 'mistral', 'vicuna']

async function load(
  name: string,
): Promise<z.infer<typeof fixtureSchema> & { readonly loaded: { tokenizer: Tokenizer; template: ChatTemplate } }> {
  const fixture = fixtureSchema.parse(read(`template.${name}.json`))
  const config = { ...fixture.special, chat_template: fixture.template }
  const tokenizer = await createTokenizer({ tokenizer: z.json().parse(read(`${fixture.tokenizer}.json`)), config })
  return { ...fixture, loaded: { tokenizer, template: createChatTemplate({ config }) } }
}

const mediaTokens = () => 5

function failure(run: () => unknown): ModalignError {
  try {
    run()
  } catch (error) {
    if (error instanceof ModalignError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

const labels = (turns: readonly Turn[], options: LabelOptions) =>
  labelSpans({ id: 's', turns, origin: { file: 'data.json', record: 17, fields: {} } }, options)
const text = (role: Role, content: string, weight?: number): Turn => ({
  role,
  content: [{ type: 'text', text: content }],
  ...(weight !== undefined && { weight }),
})
const image: Part = { type: 'image', source: 'cat.jpg' }

describe.each(names)('%s: as apply_chat_template', async (name) => {
  const { cases, loaded } = await load(name)
  const options = { ...loaded, mediaTokens }
  const header = name === 'phi-3' ? loaded.tokenizer.id('<|assistant|>') : undefined

  test.each(cases.map((row, i) => [i, row] as const))(
    'conversation %i',
    (_, { messages, error, rendered, ids = [], mask = [], promptIds }) => {
      const turns = messages.map(({ role, content }) => text(role, content))
      if (error !== undefined) {
        expect(failure(() => labels(turns, options)).details).toMatchObject({ code: 'DATA_ROLE_ORDER', file: 'data.json', record: 17 })
        return
      }
      expect(loaded.template.render(messages)).toBe(rendered)
      if (['zephyr', 'phi-3'].includes(name) && messages.some(({ role }) => role === 'tool')) {
        // Transformers loses these turns without a word.
        expect(failure(() => labels(turns, options)).details).toMatchObject({ code: 'TEMPLATE_DROPS_TURN', record: 17, field: '/turns/2' })
        return
      }
      expect([...renderPrompt(turns, { ...options, addGenerationPrompt: false }).ids]).toEqual(ids)
      expect([...renderPrompt(turns, options).ids]).toEqual(promptIds)
      // Transformers also marks a header that has swallowed white space at the start of an answer.
      const targets = mask.map((target, i) => (ids[i] === header ? 0 : target))
      if (targets.includes(1)) expect([...labels(turns, options).weights]).toEqual(targets)
      else expect(failure(() => labels(turns, options)).details).toMatchObject({ code: 'DATA_NO_TARGET', file: 'data.json', record: 17 })
    },
  )
})

/** The texts between targets, decoded: what is learned, turn by turn. */
function learned(turns: readonly Turn[], options: LabelOptions): readonly string[] {
  const { ids, weights } = labels(turns, options)
  const runs: number[][] = []
  for (const [i, weight] of weights.entries()) {
    if (weight === 0) continue
    if (i === 0 || weights[i - 1] === 0) runs.push([])
    runs.at(-1)?.push(ids[i] ?? 0)
  }
  return runs.map((run) => options.tokenizer.decode(run))
}

describe('what is learned', async () => {
  const { loaded } = await load('smollm2')
  const options = { ...loaded, mediaTokens }
  const byteLevel = ['smollm2', 'llama-3', 'qwen-2.5']
  const formats = await Promise.all(names.map(async (name) => ({ name, ...(await load(name)).loaded, mediaTokens })))
  const controlLike = fc.constantFrom(
    '<|im_end|>',
    '<|im_start|>',
    '</s>',
    '<s>',
    '<|eot_id|>',
    '<end_of_turn>',
    '<|end|>',
    '[INST]',
    '<image>',
    '<|',
    '|>',
    '<',
    '\n',
    ' ',
    '  ',
  )
  const content = fc
    .array(fc.oneof(controlLike, fc.string({ unit: 'grapheme', maxLength: 8 }), fc.string({ maxLength: 8 })), { maxLength: 6 })
    .map((parts) => parts.join(''))
  const rounds = fc.array(fc.tuple(content, content), { minLength: 1, maxLength: 3 })

  test('pieces joined are what the template renders, whatever the turns say', () => {
    fc.assert(
      fc.property(fc.constantFrom(...formats), rounds, (format, pairs) => {
        const turns = pairs.flatMap(([user, assistant]) => [text('user', user), text('assistant', assistant)])
        const pieces = conversationPieces(turns, { ...format, addGenerationPrompt: true })
        const messages = pairs.flatMap(([user, assistant]): Message[] => [
          { role: 'user', content: user },
          { role: 'assistant', content: assistant },
        ])
        expect(pieces.map((piece) => (piece.type === 'media' ? '' : piece.text)).join('')).toBe(
          format.template.render(messages, { addGenerationPrompt: true }),
        )
      }),
      { numRuns: 300 },
    )
  })

  test('exactly the answers and their closing token, whatever the turns say', () => {
    const closing: Readonly<Record<string, string>> = { smollm2: '<|im_end|>', 'llama-3': '<|eot_id|>', 'qwen-2.5': '<|im_end|>' }
    fc.assert(
      // NFC may join an answer's first character with the header's last; a line end may merge with the header's.
      fc.property(fc.constantFrom(...formats.filter(({ name }) => byteLevel.includes(name))), rounds, (format, pairs) => {
        const clean = pairs.map(([user, assistant]) => [user, `a${assistant}`] as const)
        const turns = clean.flatMap(([user, assistant]) => [text('user', user), text('assistant', assistant)])
        const end = closing[format.name] ?? ''
        const expected = clean.map(([, assistant]) => (format.name === 'llama-3' ? assistant.trim() : assistant) + end)
        expect(learned(turns, format)).toEqual(format.name === 'smollm2' ? expected : expected.map((answer) => answer.normalize('NFC')))
      }),
      { numRuns: 200 },
    )
  })

  test('no turn can say a control token', () => {
    fc.assert(
      fc.property(fc.constantFrom(...formats), rounds, (format, pairs) => {
        const turns = (fill: (text: string) => string) =>
          pairs.flatMap(([user, assistant]) => [text('user', fill(user)), text('assistant', fill(assistant))])
        const control = (said: readonly Turn[]) =>
          [...renderPrompt(said, format).ids].filter((id) => format.tokenizer.controlTokens.has(format.tokenizer.token(id) ?? ''))
        const unknown = format.tokenizer.specialTokens.unk?.id
        expect(control(turns((said) => said)).filter((id) => id !== unknown)).toEqual(
          control(turns(() => 'x')).filter((id) => id !== unknown),
        )
      }),
      { numRuns: 300 },
    )
  })

  test('weights', () => {
    const turns = [
      text('user', 'a'),
      text('assistant', 'b', 0),
      text('user', 'c', 0.5),
      text('assistant', 'd', 2),
      text('user', 'e'),
      text('assistant', 'f'),
    ]
    expect(learned(turns, options)).toEqual(['c<|im_end|>', 'd<|im_end|>', 'f<|im_end|>'])
    expect([...new Set(labels(turns, options).weights)]).toEqual([0, 0.5, 2, 1])
    expect(failure(() => labels([text('user', 'a'), text('assistant', 'b', -1)], options)).details).toMatchObject({
      code: 'DATA_WEIGHT',
      field: '/turns/1/weight',
      record: 17,
    })
    expect(failure(() => labels([text('user', 'a'), text('assistant', 'b', 0)], options)).code).toBe('DATA_NO_TARGET')
    expect(failure(() => labels([], options)).code).toBe('DATA_EMPTY')
  })

  test('white space that the generation prompt lacks is learned; a token that holds some of the answer is', async () => {
    const { loaded } = await load('vicuna')
    const { ids, weights } = labels([text('user', 'Hi'), text('assistant', '5')], { ...loaded, mediaTokens })
    const tokens = [...ids].filter((_, i) => (weights[i] ?? 0) > 0).map((id) => loaded.tokenizer.token(id))
    expect(tokens.at(-1)).toBe('</s>')
    expect(tokens.slice(0, -1).join('')).toBe('▁5')
    const prompt = renderPrompt([text('user', 'Hi')], { ...loaded, mediaTokens }).ids
    expect([...ids.slice(0, prompt.length)]).toEqual([...prompt])
    expect(weights.findIndex((weight) => weight > 0)).toBe(prompt.length)
  })
})

describe('media', async () => {
  const { loaded } = await load('smollm2')
  const options = { ...loaded, mediaTokens: (part: MediaPart) => (part.type === 'image' ? 3 : 2) }
  const turns: readonly Turn[] = [
    {
      role: 'user',
      content: [image, { type: 'text', text: '\nWhat ' }, { type: 'audio', source: 'a.wav' }, { type: 'text', text: 'is it?' }],
    },
    text('assistant', 'A cat.'),
    { role: 'user', content: [{ type: 'text', text: 'And this? ' }, image] },
    text('assistant', 'A dog.'),
  ]

  test('stand as negative ids where their parts stand', () => {
    const { ids, weights, media, targets } = labels(turns, options)
    const shown = [...ids].map((id) => (id < 0 ? `(${id})` : loaded.tokenizer.decode([id]))).join('')
    expect(shown.slice(shown.indexOf('<|im_end|>\n') + 11)).toBe(
      '<|im_start|>user\n(-1)(-1)(-1)\nWhat (-2)(-2)is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n' +
        '<|im_start|>user\nAnd this? (-3)(-3)(-3)<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n',
    )
    expect(media.map(({ part, turn, length }) => [part.type, turn, length])).toEqual([
      ['image', 0, 3],
      ['audio', 0, 2],
      ['image', 2, 3],
    ])
    for (const [i, { start, length }] of media.entries()) {
      expect([...ids.slice(start, start + length)]).toEqual(Array.from({ length }, () => -(i + 1)))
      expect(weights.slice(start, start + length).every((weight) => weight === 0)).toBe(true)
    }
    expect(targets).toBe(weights.filter((weight) => weight > 0).length)
  })

  test('are never cut', () => {
    const whole = labels(turns, options)
    const last = whole.media[2]
    if (last === undefined) throw new Error('no third medium')
    for (let maxLength = last.start - 1; maxLength <= last.start + last.length; maxLength++) {
      const { ids, media } = labels(turns, { ...options, maxLength, overflow: 'truncate' })
      const fits = maxLength >= last.start + last.length
      expect(ids.length).toBe(fits ? maxLength : Math.min(maxLength, last.start))
      expect(media).toHaveLength(fits ? 3 : 2)
      expect([...ids]).toEqual([...whole.ids.slice(0, ids.length)])
    }
  })

  test('a sample that is too long is an error unless it may be cut, and must keep a target', () => {
    const { ids } = labels(turns, options)
    expect(labels(turns, { ...options, maxLength: ids.length }).ids).toEqual(ids)
    expect(failure(() => labels(turns, { ...options, maxLength: ids.length - 1 })).details).toMatchObject({
      code: 'DATA_TOO_LONG',
      record: 17,
      got: `${ids.length} tokens`,
    })
    expect(failure(() => labels(turns, { ...options, maxLength: 12, overflow: 'truncate' })).details).toMatchObject({
      code: 'DATA_NO_TARGET',
      record: 17,
    })
  })

  test.each([0, -1, 1.5, Number.NaN])('%d tokens for a medium is an error', (count) => {
    expect(failure(() => labels(turns, { ...options, mediaTokens: () => count })).details).toMatchObject({
      code: 'MEDIA_TOKEN_COUNT',
      field: '/turns/0',
      record: 17,
    })
  })
})

describe('templates that cannot be taken apart', async () => {
  const { loaded } = await load('smollm2')
  const run = (jinja: string, ...turns: readonly Turn[]) =>
    labels(turns, { tokenizer: loaded.tokenizer, template: createChatTemplate({ jinja }), mediaTokens })

  test('one that rewrites an answer', () => {
    const jinja = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    expect(run(jinja, text('user', 'a'), text('assistant', 'b')).targets).toBe(2)
    expect(failure(() => run(jinja, text('user', 'a'), text('assistant', 'hm</think>b'))).details).toMatchObject({
      code: 'TEMPLATE_CHANGES_TEXT',
      field: '/turns/1',
      record: 17,
    })
  })

  test('one that writes a turn twice', () => {
    const jinja = '{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}'
    expect(failure(() => run(jinja, text('user', 'a'), text('assistant', 'b'))).code).toBe('TEMPLATE_DROPS_TURN')
  })

  test("the next turn's header is not the end of an answer", () => {
    const jinja = '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}'
    const turns = [text('user', 'a'), text('assistant', 'b'), text('user', 'c'), text('assistant', 'd')]
    expect(learned(turns, { tokenizer: loaded.tokenizer, template: createChatTemplate({ jinja }), mediaTokens })).toEqual(['b', 'd'])
  })
})

test('the beginning of a sequence is not written twice', async () => {
  const { loaded } = await load('llama-3')
  const bos = loaded.tokenizer.specialTokens.bos?.id
  expect(loaded.tokenizer.encode('Hi', { addSpecialTokens: true })[0]).toBe(bos)
  const { ids } = renderPrompt([text('user', 'Hi')], { ...loaded, mediaTokens })
  expect([...ids].filter((id) => id === bos)).toHaveLength(1)
})

test('a sample without an origin is named by its id', async () => {
  const { loaded } = await load('gemma')
  const turns = [text('system', 'a'), text('user', 'b'), text('assistant', 'c')]
  expect(failure(() => labelSpans({ id: 'nr-7', turns }, { ...loaded, mediaTokens })).details).toMatchObject({
    code: 'DATA_ROLE_ORDER',
    got: 'sample "nr-7": roles system, user, assistant',
    expected: expect.stringContaining('System role not supported'),
  })
})

test('tokens that only the template treats as control tokens stay text in what users say, not in answers', async () => {
  const { loaded } = await load('qwen-2.5')
  const jinja =
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ "<think></think>" if m.role == "assistant" else "" }}{{ m.content }}<|im_end|>{% endfor %}'
  const think = loaded.tokenizer.id('<think>')
  const { ids } = labels([text('user', '<think>'), text('assistant', '<think>')], {
    tokenizer: loaded.tokenizer,
    template: createChatTemplate({ jinja }),
    mediaTokens,
  })
  expect([...ids].filter((id) => id === think)).toHaveLength(2)
})
