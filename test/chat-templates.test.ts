/** Published chat templates against Transformers' apply_chat_template. Fixture: test/fixtures/text/make_chat.py. */
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import { createChatTemplate } from '../src/text/chat-template.ts'

const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`fixtures/text/${name}`, import.meta.url), 'utf8'))
const object = z.record(z.string(), z.json())
const templates = z.record(z.string(), z.object({ source: z.string(), template: z.string() })).parse(read('chat-templates.json'))
const { special, cases, results } = z
  .object({
    special: object,
    cases: z.record(
      z.string(),
      z.object({
        messages: z.array(z.intersection(object, z.object({ role: z.string() }))),
        tools: z.array(object).optional(),
        variables: object.optional(),
      }),
    ),
    /** Without the generation prompt; how much of it stands at the beginning of the text with it; the rest of that. Null: refused. */
    results: z.record(z.string(), z.record(z.string(), z.tuple([z.string(), z.int(), z.string()]).nullable())),
  })
  .parse(read('chat-cases.json'))
const now = new Date('2026-02-03T23:30:05Z')

test('every template has its place and its renderings', () => {
  expect(Object.keys(results)).toEqual(Object.keys(templates))
  for (const { source } of Object.values(templates)) expect(source).toMatch(/^[\w.-]+\/[\w.-]+@[0-9a-f]{12} \S+/)
})

describe.each(Object.keys(templates))('%s', (name) => {
  const template = createChatTemplate({ jinja: templates[name]?.template, config: special }, { now })

  test.each(Object.entries(results[name] ?? {}))('%s', (key, expected) => {
    const { messages = [], tools, variables } = cases[key] ?? {}
    const options = { ...(tools !== undefined && { tools }), ...(variables !== undefined && { variables }) }
    const rendered = (addGenerationPrompt: boolean) => template.render(messages, { ...options, addGenerationPrompt })
    if (expected === null) {
      expect(() => rendered(false)).toThrow(ModalignError)
      expect(() => rendered(true)).toThrow(ModalignError)
      return
    }
    const [plain, common, rest] = expected
    expect(rendered(false)).toBe(plain)
    expect(rendered(true)).toBe(plain.slice(0, common) + rest)
  })
})
