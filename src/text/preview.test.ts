import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import type { Turn } from '../model/contracts.ts'
import { createChatTemplate } from './chat-template.ts'
import { labelSpans } from './label-spans.ts'
import { renderPreview } from './preview.ts'
import { createTokenizer } from './tokenizer.ts'

const tokenizer = await createTokenizer({
  tokenizer: JSON.parse(readFileSync(new URL('../../test/fixtures/text/digits.json', import.meta.url), 'utf8')),
})
const template = createChatTemplate({
  jinja: "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}",
})
const turns: readonly Turn[] = [
  {
    role: 'user',
    content: [
      { type: 'image', source: 'a.jpg' },
      { type: 'text', text: '\nWhat is this? ' },
      { type: 'video', source: 'b.mp4' },
    ],
  },
  { role: 'assistant', content: [{ type: 'text', text: 'A cat 🙂.' }] },
  { role: 'user', content: [{ type: 'text', text: '\u001b[31mred\u202e?' }] },
  { role: 'assistant', content: [{ type: 'text', text: 'Two\nlines.' }], weight: 0.5 },
]
const labelled = labelSpans({ id: 's', turns }, { tokenizer, template, mediaTokens: ({ type }) => (type === 'image' ? 49 : 8) })

test('marks what is learned and shows media, control tokens and control characters', () => {
  expect(renderPreview(labelled, { tokenizer })).toBe(
    [
      '<|im_start|>user',
      '⟨image 1: 49 tokens⟩',
      'What is this? ⟨video 2: 8 tokens⟩<|im_end|>',
      '<|im_start|>assistant',
      '⟦A cat 🙂.<|im_end|>⟧',
      '<|im_start|>user',
      '\\u001b[31mred\\u202e?<|im_end|>',
      '<|im_start|>assistant',
      '⟦0.5: Two',
      'lines.<|im_end|>⟧',
      '',
    ].join('\n'),
  )
})

test('uses colours on a terminal', () => {
  const coloured = renderPreview(labelled, { tokenizer, ansi: true })
  expect(coloured).toContain('\u001b[32mA cat 🙂.<|im_end|>\u001b[39m')
  expect(coloured).toContain('\u001b[36m⟨image 1: 49 tokens⟩\u001b[39m')
  expect(coloured.split('\u001b').length - 1).toBe(2 * 4)
})
