import { describe, expect, test } from 'vitest'
import { ModalignError } from '../errors.ts'
import { type ChatTemplateOptions, createChatTemplate, type Message } from './chat-template.ts'

const user: readonly Message[] = [{ role: 'user', content: 'Hi' }]
const render = (jinja: string, options?: ChatTemplateOptions, messages = user) =>
  createChatTemplate({ jinja, file: 't.jinja' }, options).render(messages)

function failure(run: () => unknown): ModalignError['details'] {
  try {
    run()
  } catch (error) {
    if (error instanceof ModalignError) return error.details
    throw error
  }
  throw new Error('nothing was thrown')
}

describe('where a template comes from', () => {
  const list = [
    { name: 'default', template: 'default' },
    { name: 'tool_use', template: 'tools' },
  ]

  test.each<[string, unknown, string | undefined, ChatTemplateOptions, string]>([
    ['a string', 'one', undefined, {}, 'one'],
    ['a list', list, undefined, {}, 'default'],
    ['one of a list', list, undefined, { name: 'tool_use' }, 'tools'],
    ['a list of one', [{ name: 'other', template: 'only' }], undefined, {}, 'only'],
    ['an object', { default: 'default', tool_use: 'tools' }, undefined, { name: 'tool_use' }, 'tools'],
    ['the file wins', 'one', 'file', {}, 'file'],
    ['the file wins as default only', list, 'file', { name: 'tool_use' }, 'tools'],
  ])('%s', (_, chat_template, jinja, options, expected) => {
    const config = JSON.parse(JSON.stringify({ chat_template }))
    expect(createChatTemplate({ config, jinja }, options).render([])).toBe(expected)
  })

  test.each<[string, unknown, ChatTemplateOptions]>([
    ['none', undefined, {}],
    ['no configuration', null, {}],
    ['none of this name', list, { name: 'vision' }],
    ['several without a default', list.map(({ template }, i) => ({ name: `t${i}`, template })), {}],
  ])('%s: TEMPLATE_MISSING with a hint', (_, chat_template, options) => {
    const config = JSON.parse(JSON.stringify({ chat_template }))
    expect(failure(() => createChatTemplate({ config, file: 'c.json' }, options))).toMatchObject({
      code: 'TEMPLATE_MISSING',
      file: 'c.json',
      hint: expect.any(String),
    })
  })
})

test('the variables that Transformers gives: special tokens, and those of the caller', () => {
  const config = {
    bos_token: '<s>',
    eos_token: { content: '</s>' },
    chat_template: '{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ mood }}{{ pad_token }}',
  }
  expect(createChatTemplate({ config }, { variables: { mood: '!' } }).render(user)).toBe('<s>Hi</s>!')
})

test('the date is the one given, in English and in UTC', () => {
  const now = new Date('2026-02-03T23:30:05Z')
  expect(render('{{ strftime_now("%d %b %Y, %A %B %m %H:%M:%S %%") }}', { now })).toBe('03 Feb 2026, Tuesday February 02 23:30:05 %')
})

test("comparisons are Python's", () => {
  const cases = [
    "'' == false",
    "'' != false",
    "'1' == 1",
    '1 == true',
    'none == missing',
    'missing == missing',
    "'a' == 'a'",
    '[1, [2]] == [1, [2]]',
    '[1] == [2]',
    '0 != 0.0',
  ]
  expect(cases.map((expression) => render(`{{ 'yes' if ${expression} else 'no' }}`))).toEqual([
    'no',
    'yes',
    'no',
    'yes',
    'no',
    'yes',
    'yes',
    'yes',
    'no',
    'no',
  ])
})

test('generation tags are no part of the text', () => {
  expect(render('{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}')).toBe('Hi')
})

test('a refusal says what the template says', () => {
  expect(failure(() => render("{{ raise_exception('System role not supported') }}"))).toMatchObject({
    code: 'DATA_ROLE_ORDER',
    got: 'roles user',
    expected: expect.stringContaining('System role not supported'),
  })
})

describe('hostile templates', () => {
  const quick = 5000

  test.each([
    ['an endless range', '{% for i in range(10**12) %}x{% endfor %}'],
    ['a backward range', '{% for i in range(0, -1000000000000, -1) %}x{% endfor %}'],
    ['loops in loops', '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}'],
    ['loops in loops that say something', '{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}'],
    ['a text that doubles', `{% set s = 'xxxxxxxx' %}${'{% set s = s ~ s %}'.repeat(60)}{{ s }}`],
    ['a list that doubles', `{% set s = [1, 2, 3] %}${'{% set s = s + s %}'.repeat(60)}{{ s | length }}`],
    [
      'output without end',
      "{% for i in range(90000) %}{{ 'x' * 1 if false else messages[0].content ~ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}",
    ],
    ['a macro that calls itself', '{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}'],
    [
      'a text repeated by replacement',
      `{% set s = ${JSON.stringify('a'.repeat(4000))} %}{{ s | replace('a', s) | replace('a', s) | replace('a', s) }}`,
    ],
  ])('%s is stopped', { timeout: quick }, (_, jinja) => {
    expect(failure(() => render(jinja))).toMatchObject({ code: 'TEMPLATE_LIMIT', file: 't.jinja' })
  })

  test.each([
    ['constructors', "{{ ''.constructor.constructor('return process')() }}"],
    ['prototypes', '{{ messages.__proto__.polluted }}{{ messages[0].__proto__ }}{{ ({}).toString.constructor }}'],
    ['getters', "{{ messages.__defineGetter__('x', 1) }}"],
    ['Python internals', "{{ ''.__class__.__mro__[1].__subclasses__() }}"],
    ['globals of JavaScript', '{{ process }}{{ globalThis }}{{ require("fs") }}'],
    ['include', '{% include "/etc/passwd" %}'],
    ['import', '{% import "/etc/passwd" as x %}'],
    ['extends', '{% extends "/etc/passwd" %}'],
    ['functions of values', '{{ raise_exception.constructor("return process")() }}'],
  ])('%s give nothing or an error', (_, jinja) => {
    let out = ''
    try {
      out = render(jinja)
    } catch (error) {
      expect(error).toBeInstanceOf(ModalignError)
    }
    expect(out).not.toMatch(/root:|native code|\[object|function/)
    expect(Object.hasOwn(Object.prototype, 'x')).toBe(false)
  })

  test.each([
    ['a tag that is not closed', '{% for m in messages %}'],
    ['an unknown tag', '{% explode %}'],
    ['an unclosed expression', '{{ messages'],
    ['half a megabyte', 'x'.repeat(500_000)],
    ['white space without end', `{{ 1 }}${' '.repeat(50_000)}`],
    ['parentheses without end', `{{ ${'('.repeat(50_000)}1${')'.repeat(50_000)} }}`],
  ])('%s is invalid', { timeout: quick }, (_, jinja) => {
    expect(failure(() => render(jinja))).toMatchObject({ code: 'TEMPLATE_INVALID', file: 't.jinja' })
  })

  test('a mistake in a template is a failure of the template', () => {
    expect(failure(() => render('{{ messages + 1 }}'))).toMatchObject({ code: 'TEMPLATE_FAILED', file: 't.jinja' })
    expect(failure(() => render('{{ messages | nonsense }}'))).toMatchObject({ code: 'TEMPLATE_FAILED' })
  })

  test('leaving loops early costs nothing', () => {
    const jinja = '{% for i in range(3000) %}{% if i % 2 %}{% continue %}{% endif %}{% if i > 2000 %}{% break %}{% endif %}x{% endfor %}'
    expect(render(jinja)).toBe('x'.repeat(1001))
  })

  test('a long conversation is within the limits', () => {
    const messages = Array.from(
      { length: 2000 },
      (_, i): Message => ({ role: i % 2 === 0 ? 'user' : 'assistant', content: 'word '.repeat(200) }),
    )
    const jinja =
      "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] | trim }}{% else %}{{ '<|assistant|>' + m['content'] + eos }}{% endif %}{% endfor %}"
    expect(render(jinja, { variables: { eos: '</s>' } }, messages)).toHaveLength(2000 * 1000 - 1000 + 1000 * (8 + 13 + 4))
  })
})
