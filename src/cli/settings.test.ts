import { resolve } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import type { ErrorData } from '../errors.ts'
import { pathSchema } from './catalogues.ts'
import { ConfigurationError } from './configuration-error.ts'
import { flagsOf } from './flags.ts'
import { decimalNumber } from './numbers.ts'
import { parseRunFile } from './run-file.ts'
import { resolveSettings } from './settings.ts'
import { suggestion } from './suggestion.ts'

const schema = z.strictObject({
  learningRate: z.number().positive().max(10).optional(),
  batchSize: z.int().min(1).optional(),
  schedule: z.enum(['cosine', 'linear']).optional(),
  resume: z.boolean().optional(),
  data: z.strictObject({ path: pathSchema, root: pathSchema.optional() }),
  images: z.array(pathSchema).optional(),
  optimizer: z
    .discriminatedUnion('name', [z.strictObject({ name: z.literal('adamw'), weightDecay: z.number().min(0).optional() })])
    .optional(),
})
const flags = flagsOf(schema)

/** Flags as a command line gives them: `--name text`, once each time. */
function settle(given: Readonly<Record<string, readonly (string | boolean)[]>>, yaml?: string): unknown {
  return resolveSettings({
    schema,
    runFile: yaml === undefined ? undefined : parseRunFile(yaml, '/runs/run.yaml'),
    given: flags.flatMap((flag) => {
      const texts = given[flag.name]
      return texts === undefined ? [] : [{ flag, texts }]
    }),
    nameOf: (path) => {
      const flag = flags.find((one) => one.path.join('.') === path.join('.'))
      return flag && `--${flag.name}`
    },
  })
}

function problems(given: Parameters<typeof settle>[0], yaml?: string): readonly ErrorData[] {
  try {
    settle(given, yaml)
  } catch (error) {
    if (error instanceof ConfigurationError) return error.problems
    throw error
  }
  return []
}

describe('numbers', () => {
  test.each(['', ' 5', '5 ', '0x10', '0b1', '1_000', '1,5', '.5', '5.', '+5', 'Infinity', 'NaN', '1e', '1e999', '٣', '--5', '1e-4.0'])(
    '%j is none',
    (text) => {
      expect(decimalNumber(text)).toBeUndefined()
    },
  )

  test('every finite double that JSON writes is one', () => {
    fc.assert(
      fc.property(fc.double({ noNaN: true, noDefaultInfinity: true }), (value) =>
        Object.is(decimalNumber(JSON.stringify(value)) ?? Number.NaN, value + 0 === 0 ? 0 : value),
      ),
    )
  })
})

test.each([
  ['lerning_rate', 'learningRate'],
  ['learning-rate', 'learningRate'],
  ['bathcSize', 'batchSize'],
  ['xyzzy', undefined],
])('did you mean: %s -> %s', (given, meant) => {
  expect(suggestion(given, ['learningRate', 'batchSize', 'epochs'])).toBe(meant)
})

test('flags follow from the schema', () => {
  expect(flags.map(({ name, kind, list }) => [name, kind, list])).toEqual([
    ['learning-rate', 'number', false],
    ['batch-size', 'number', false],
    ['schedule', 'text', false],
    ['resume', 'boolean', false],
    ['data-path', 'path', false],
    ['data-root', 'path', false],
    ['images', 'path', true],
    ['optimizer', 'structured', false],
  ])
})

test('flags win over the run file; paths are relative to where they are written', () => {
  const yaml = 'learningRate: 1e-3\nbatchSize: 4\ndata: { path: a.json, root: ../media }\n'
  const given = {
    'learning-rate': ['2e-3'],
    'data-path': ['b.json'],
    resume: [true],
    images: ['x.png', '/y.png'],
    optimizer: ['{name: adamw, weightDecay: 0.1}'],
  }
  expect(settle(given, yaml)).toEqual({
    learningRate: 2e-3,
    batchSize: 4,
    data: { path: resolve('b.json'), root: '/media' },
    resume: true,
    images: [resolve('x.png'), '/y.png'],
    optimizer: { name: 'adamw', weightDecay: 0.1 },
  })
})

test('every problem is told at once, each with where it was written', () => {
  const found = problems(
    { 'batch-size': ['0x10'], schedule: ['cosin'], 'learning-rate': ['1', '2'], resume: [true] },
    'data:\n  pth: a.json\nimages: [1]\noptimizer: { name: adamw, weightDecay: -1 }\n',
  )
  expect(found).toEqual([
    { code: 'CONFIG_VALUE', field: '--learning-rate', got: '1 and 2', expected: 'one value', hint: 'the flag is given more than once' },
    { code: 'CONFIG_VALUE', field: '--batch-size', got: '0x10', expected: 'a decimal number, such as 16 or 2e-3' },
    { code: 'CONFIG_VALUE', field: '--schedule', got: '"cosin"', expected: 'one of cosine, linear' },
    {
      code: 'CONFIG_MISSING',
      file: '/runs/run.yaml',
      field: '/data/path',
      got: 'nothing',
      expected: 'text',
      hint: 'give --data-path, or "data.path" in the run file',
    },
    {
      code: 'CONFIG_UNKNOWN_KEY',
      file: '/runs/run.yaml',
      line: 2,
      field: '/data/pth',
      got: 'pth',
      expected: 'the name of a setting',
      hint: 'did you mean path?',
    },
    { code: 'CONFIG_VALUE', file: '/runs/run.yaml', line: 3, field: '/images/0', got: '1', expected: 'text' },
    { code: 'CONFIG_VALUE', file: '/runs/run.yaml', line: 4, field: '/optimizer/weightDecay', got: '-1', expected: 'at least 0' },
  ])
})

test('where names and values belong, a value alone is told how they look', () => {
  const hint = 'such as data: { path: ... }'
  const found = problems({}, 'data: a.json\n').filter(({ field }) => field === '/data')
  expect(found).toEqual([
    { code: 'CONFIG_VALUE', file: '/runs/run.yaml', line: 1, field: '/data', got: '"a.json"', expected: 'names and values', hint },
  ])
})

describe('run files', () => {
  const refused = (yaml: string): readonly (string | number | undefined)[] => {
    try {
      parseRunFile(yaml, '/runs/run.yaml')
    } catch (error) {
      if (error instanceof ConfigurationError) return error.problems.flatMap(({ code, line }) => [code, line])
      if (error instanceof Error && 'code' in error) return [String(error.code)]
      throw error
    }
    return []
  }
  test('the core schema of YAML 1.2: `no` is a word, 012 is twelve, JSON is YAML', () => {
    expect(parseRunFile('a: no\nb: 012\nc: 1e-4\nd: "5"\n', '/r.yaml').data).toEqual({ a: 'no', b: 12, c: 1e-4, d: '5' })
    expect(parseRunFile('{"a": [1, 2]}', '/r.json').data).toEqual({ a: [1, 2] })
    expect(parseRunFile('# nothing\n', '/r.yaml').data).toEqual({})
  })
  test.each([
    ['a key twice', 'a: 1\na: 2\n', ['CONFIG_SYNTAX', 2]],
    ['a tab', 'a:\n\tb: 1\n', ['CONFIG_SYNTAX', 2]],
    ['a tag', 'a: !!js/function "x"\n', ['CONFIG_SYNTAX', 1]],
    ['a hexadecimal number', 'a: 1\nb: 0x10\n', ['CONFIG_VALUE', 2]],
    ['infinity', 'b: .inf\n', ['CONFIG_VALUE', 1]],
    ['__proto__', '__proto__: { a: 1 }\n', ['CONFIG_SYNTAX', 1]],
    ['a key that is no name', '? [a]\n: 1\n', ['CONFIG_SYNTAX', 1]],
    ['a list', '- a\n', ['CONFIG_ROOT']],
    ['two documents', 'a: 1\n---\nb: 2\n', ['CONFIG_SYNTAX', 2]],
    ['a trailing comma in braces', '{"a": 1,, }', ['CONFIG_SYNTAX', 1]],
  ])('%s', (_, yaml, expected) => {
    expect(refused(yaml).slice(0, 2)).toEqual(expected)
  })
  test('aliases that multiply', () => {
    const lines = [
      'a: &a [x,x,x,x,x,x,x,x,x,x]',
      ...'bcdefg'.split('').map((name, i) => `${name}: &${name} [${Array(10).fill(`*${'abcdefg'[i]}`).join()}]`),
    ]
    expect(refused(lines.join('\n'))).toEqual(['CONFIG_SYNTAX'])
  })
})
