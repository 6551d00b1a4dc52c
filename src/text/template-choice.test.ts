import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { createChatTemplate, type Message } from './chat-template.ts'
import { chosenTemplate, type namedTemplates } from './template-choice.ts'

const config = { bos_token: '<s>', eos_token: '</s>' }
const messages: readonly Message[] = [
  { role: 'user', content: 'What is this?' },
  { role: 'assistant', content: 'A cat.' },
  { role: 'user', content: 'And this?' },
]
const system: Message = { role: 'system', content: 'Be brief.' }
const render = async (choice: Parameters<typeof chosenTemplate>[0], given = messages, addGenerationPrompt = true) =>
  createChatTemplate({ config, ...(await chosenTemplate(choice)) }).render(given, { addGenerationPrompt })

test.each<[keyof typeof namedTemplates, string, string]>([
  ['plain', '<s>What is this?\nA cat.</s>And this?\n', '<s>Be brief.\nWhat is this?\nA cat.</s>And this?\n'],
  [
    'pure',
    '<s>In: What is this?\nOut: A cat.</s>In: And this?\nOut: ',
    '<s>Be brief.\nIn: What is this?\nOut: A cat.</s>In: And this?\nOut: ',
  ],
  [
    'vicuna',
    "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. USER: What is this? ASSISTANT: A cat.</s>USER: And this? ASSISTANT:",
    '<s>Be brief. USER: What is this? ASSISTANT: A cat.</s>USER: And this? ASSISTANT:',
  ],
  [
    'chatml',
    '<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nAnd this?<|im_end|>\n<|im_start|>assistant\n',
    '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nAnd this?<|im_end|>\n<|im_start|>assistant\n',
  ],
])('%s', async (name, expected, withSystem) => {
  expect(await render(name)).toBe(expected)
  expect(await render(name, [system, ...messages])).toBe(withSystem)
})

test('a file, the template itself, or the model’s own', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'modalign-template-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  writeFileSync(join(folder, 'own.jinja'), '{{ messages | length }} turns')
  expect(await render(join(folder, 'own.jinja'))).toBe('3 turns')
  expect(await render({ jinja: '{{ messages[0].content }}' })).toBe('What is this?')
  expect(await chosenTemplate(undefined)).toEqual({})
  await expect(chosenTemplate('vicunna')).rejects.toMatchObject({
    details: { code: 'TEMPLATE_CHOICE', got: 'vicunna', expected: expect.stringContaining('vicuna') },
  })
})

test('tool turns have no place in two voices', async () => {
  await expect(render('plain', [...messages, { role: 'tool', content: '42' }])).rejects.toMatchObject({
    details: { code: 'DATA_ROLE_ORDER' },
  })
})
