import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import suite from '../../test/fixtures/datasets/json-test-suite.json' with { type: 'json' }
import { longOnly, skipWithout } from '../../test/skip.ts'
import { type ErrorData, errorData } from '../errors.ts'
import { type JsonRecord, type JsonStreamOptions, jsonFileRecords, jsonRecords } from './json-stream.ts'
import { findJsonFault } from './json-syntax.ts'

type Bytes = string | Uint8Array

const toBytes = (source: Bytes): Buffer => Buffer.from(source)

function* cut(source: Bytes, size: number): Generator<Uint8Array> {
  const bytes = toBytes(source)
  for (let i = 0; i < bytes.length; i += size) yield bytes.subarray(i, i + size)
}

/** Records, the errors handed to onBad, and the error thrown. */
async function read(source: Bytes, options: JsonStreamOptions = {}, chunk = 1 << 16) {
  const records: JsonRecord[] = []
  const bad: ErrorData[] = []
  let thrown: ErrorData | undefined
  try {
    for await (const record of jsonRecords(cut(source, chunk), {
      file: 'data.json',
      onBad: (error) => bad.push(error.details),
      ...options,
    }))
      records.push(record)
  } catch (error) {
    thrown = errorData(error)
  }
  return { records, bad, thrown }
}

const values = async (source: Bytes, options?: JsonStreamOptions) => (await read(source, options)).records.map((record) => record.value)

/** Everything that was wrong, in order. */
const faults = async (source: Bytes, options?: JsonStreamOptions) => {
  const { bad, thrown } = await read(source, options)
  return thrown === undefined ? bad : [...bad, thrown]
}

describe('records and where they lie', () => {
  test('array elements of every kind', async () => {
    expect(await values(' [ {"a": [1, {}]}, [], "x]\\"", 12, true,null ,-0.5e1] \n')).toEqual([
      { a: [1, {}] },
      [],
      'x]"',
      12,
      true,
      null,
      -5,
    ])
  })

  test('offsets and lines point at the exact bytes, after a byte order mark and multi-byte text', async () => {
    const source = '\ufeff[\n  {"é": "😀"},\r\n\n  {"b":\n 2}\n, 3]'
    const { records } = await read(source)
    expect(records.map(({ record, line }) => [record, line])).toEqual([
      [0, 2],
      [1, 4],
      [2, 6],
    ])
    for (const { byteOffset, byteLength, text, value } of records) {
      expect(
        toBytes(source)
          .subarray(byteOffset, byteOffset + byteLength)
          .toString(),
      ).toBe(text)
      expect(JSON.parse(text)).toEqual(value)
    }
  })

  test('JSON Lines: blank lines, CRLF, no newline at the end, U+2028 inside a string', async () => {
    const { records, bad, thrown } = await read('{"a":1}\r\n\n  \r\n{"a":"x\u2028y"}\n{"a":3}')
    expect(bad).toEqual([])
    expect(thrown).toBeUndefined()
    expect(records.map(({ value, record, line }) => [value, record, line])).toEqual([
      [{ a: 1 }, 0, 1],
      [{ a: 'x\u2028y' }, 1, 4],
      [{ a: 3 }, 2, 5],
    ])
  })

  test.each(['', '  \n', '\ufeff', '[]', ' [ \n ] '])('no records in %j', async (source) => {
    const { records, bad, thrown } = await read(source)
    expect([records, bad, thrown]).toEqual([[], [], undefined])
  })

  test('__proto__ is an ordinary key', async () => {
    const [value] = await values('[{"__proto__": {"polluted": 1}}]')
    expect(Object.keys(value as object)).toEqual(['__proto__'])
    expect(({} as { polluted?: number }).polluted).toBeUndefined()
  })
})

describe('bad input', () => {
  const record = '{"id": "0"}'
  const table: readonly (readonly [name: string, source: Bytes, code: string, details: Partial<ErrorData>])[] = [
    ['NaN', `[${record}, {"a": [1, NaN]}]`, 'JSON_NAN', { record: 1, line: 1, field: '/a/1', got: 'NaN at byte 24' }],
    ['-Infinity', '[{"a": -Infinity}]', 'JSON_NAN', { record: 0, field: '/a', got: '-Infinity at byte 7' }],
    ['1e400', '[{"a": 1e400}]', 'JSON_NUMBER_OVERFLOW', { field: '/a', got: '1e400 at byte 7' }],
    ['duplicate key', '[{"a": 1,\n "b": {"c/d": 1, "c\\/d": 2}}]', 'JSON_DUPLICATE_KEY', { field: '/b/c~1d', line: 2 }],
    ['duplicate key, last of two wins nothing', '{"a":1,"a":1}', 'JSON_DUPLICATE_KEY', { field: '/a', line: 1 }],
    ['lone surrogate in a value', '["\\ud83d"]', 'JSON_SURROGATE', { field: '' }],
    ['lone surrogate in a key', '[{"\\udc00": 1}]', 'JSON_SURROGATE', {}],
    ['trailing comma in an object', '[{"a": 1,}]', 'JSON_TRAILING_COMMA', { record: 0 }],
    ['trailing comma in an array', '[{"a": [1,]}]', 'JSON_TRAILING_COMMA', { field: '/a' }],
    ['trailing comma after the last record', `[${record},]`, 'JSON_TRAILING_COMMA', { record: 1 }],
    ['trailing comma after a line', `${record}\n${record},\n`, 'JSON_TRAILING_COMMA', { record: 1, line: 2 }],
    ['two commas', `[${record},,${record}]`, 'JSON_SYNTAX', { record: 1 }],
    ['missing comma between records', `[${record} ${record}]`, 'JSON_SYNTAX', { record: 1, hint: 'a comma is missing' }],
    ['missing comma inside a record', '[{"a": 1 "b": 2}]', 'JSON_SYNTAX', { got: '" at byte 9', expected: ', or }' }],
    ['single quotes', "[{'a': 1}]", 'JSON_SYNTAX', { expected: 'a key in double quotes' }],
    ["Python's True", '[{"a": True}]', 'JSON_SYNTAX', { field: '/a' }],
    ['leading zero', '[{"a": 01}]', 'JSON_SYNTAX', { got: '01 at byte 7' }],
    ['brackets that do not match', `[{"a": [1}, ${record}]`, 'JSON_SYNTAX', { got: '} at byte 9', expected: ', or ]' }],
    ['raw newline in a string', '[\n{"a": "x\ny"}]', 'JSON_CONTROL_CHARACTER', { line: 2, field: '/a' }],
    ['raw NUL in a string', '["a\0b"]', 'JSON_CONTROL_CHARACTER', {}],
    ['unknown escape', '[{"path": "C:\\data"}]', 'JSON_ESCAPE', { got: '\\d at byte 13' }],
    [
      'invalid UTF-8',
      Buffer.concat([Buffer.from('[{"a": "é'), Buffer.from([0xe9, 0x41]), Buffer.from('"}]')]),
      'JSON_UTF8',
      { got: 'byte 0xe9 at byte 10' },
    ],
    [
      'a surrogate in UTF-8',
      Buffer.concat([Buffer.from('["'), Buffer.from([0xed, 0xa0, 0x80]), Buffer.from('"]')]),
      'JSON_UTF8',
      { got: 'byte 0xed at byte 2' },
    ],
    ['UTF-16 LE', Buffer.from('\ufeff[{"a": 1}]', 'utf16le'), 'JSON_ENCODING', { got: 'UTF-16' }],
    ['UTF-16 LE without a mark', Buffer.from('[{"a": 1}]', 'utf16le'), 'JSON_ENCODING', { got: 'UTF-16' }],
    ['UTF-16 BE', Buffer.from('\ufeff[{"a": 1}]', 'utf16le').swap16(), 'JSON_ENCODING', { got: 'UTF-16' }],
    ['UTF-32', Buffer.from([0xff, 0xfe, 0, 0, 0x5b, 0, 0, 0]), 'JSON_ENCODING', { got: 'UTF-32' }],
    ['gzip', Buffer.from([0x1f, 0x8b, 8, 0]), 'JSON_ENCODING', { got: 'a gzip file' }],
    ['Parquet', 'PAR1....', 'JSON_ENCODING', { got: 'a Parquet file' }],
    ['HTML', '<!DOCTYPE html><html></html>', 'JSON_ROOT', { line: 1 }],
    ['CSV', 'id,image\n1,a.jpg\n', 'JSON_ROOT', {}],
    ['one object over several lines', '{\n "data": []\n}', 'JSON_ROOT', { got: 'an object over several lines' }],
    ['something after the array', `[${record}]\n[${record}]`, 'JSON_TRAILING_DATA', { line: 2 }],
    ['a brace where a record should be', `[${record}, }`, 'JSON_SYNTAX', {}],
    [
      'cut in the second record',
      `[${record}, {"a": "b`,
      'JSON_TRUNCATED',
      { record: 1, hint: 'the last complete record is 0, which ends at byte 12; copy or download the file again' },
    ],
    ['cut after a comma', `[${record},`, 'JSON_TRUNCATED', { record: 1 }],
    ['cut before any record is complete', '[{"a"', 'JSON_TRUNCATED', { hint: 'no record is complete; copy or download the file again' }],
    ['cut line', `${record}\n{"a": "b`, 'JSON_TRUNCATED', { record: 1, line: 2 }],
    [
      'lone carriage returns',
      `${record}\r${record}`,
      'JSON_SYNTAX',
      { hint: 'lines end with a lone carriage return: convert them to newlines' },
    ],
  ]

  test.each(table)('%s', async (_name, source, code, details) => {
    const [first] = await faults(source)
    expect(first).toMatchObject({ code, file: 'data.json', ...details })
    const throwing = async () => {
      for await (const _ of jsonRecords(cut(source, 3), { file: 'data.json' }));
    }
    await expect(throwing(), 'without onBad the first fault throws').rejects.toMatchObject({ code, details: first })
  })

  test('an unclosed quote near the start is named, not the end of the file', async () => {
    const [fault] = await faults(`[{"a": "x, "b": 1},\n${Array.from({ length: 50 }, (_, i) => `{"id": "${i}"}`).join(',\n')}]`)
    expect(fault).toMatchObject({ code: 'JSON_SYNTAX', record: 0, line: 1, got: 'b at byte 12' })
  })

  test('bad records are left out and the rest is read', async () => {
    const source = '[{"a": 1}, {"a": NaN}, {"a": 1, "a": 2}, [1,], {"a": "\\x"}, {"a": "\n"}, {"a": 3}]'
    const { records, bad, thrown } = await read(source)
    expect(thrown).toBeUndefined()
    expect(bad.map(({ code, record }) => [code, record])).toEqual([
      ['JSON_NAN', 1],
      ['JSON_DUPLICATE_KEY', 2],
      ['JSON_TRAILING_COMMA', 3],
      ['JSON_ESCAPE', 4],
      ['JSON_CONTROL_CHARACTER', 5],
    ])
    expect(records.map(({ value, record, line }) => [value, record, line])).toEqual([
      [{ a: 1 }, 0, 1],
      [{ a: 3 }, 6, 2],
    ])
  })

  test('bad lines are left out, whatever is wrong with them', async () => {
    const { records, bad } = await read('{"a": 1}\n{"a": [}\n{"a": "\n{"a": 4}\n')
    expect(bad.map(({ code, line }) => [code, line])).toEqual([
      ['JSON_SYNTAX', 2],
      ['JSON_SYNTAX', 3],
    ])
    expect(records.map(({ record, line }) => [record, line])).toEqual([
      [0, 1],
      [3, 4],
    ])
  })

  test('a truncated file keeps its complete records', async () => {
    const { records, bad, thrown } = await read('[{"a": 1}, {"a": 2}, {"a"')
    expect(records).toHaveLength(2)
    expect(bad.map(({ code }) => code)).toEqual(['JSON_TRUNCATED'])
    expect(thrown).toBeUndefined()
  })

  test('depth is capped at 64 inside a record, at any length', async () => {
    const nested = (depth: number) => `[1,${'['.repeat(depth)}${']'.repeat(depth)},2]`
    expect((await read(nested(64))).records).toHaveLength(3)
    const deep = await read(nested(65))
    expect(deep.bad).toMatchObject([{ code: 'JSON_DEPTH', record: 1 }])
    expect(deep.records.map((record) => record.value)).toEqual([1, 2])
    expect((await read(nested(200_000))).bad).toMatchObject([{ code: 'JSON_DEPTH', record: 1 }])
  })

  test.each([1, 7, 4096])('a record above the size limit is reported once and dropped (chunks of %i)', async (chunk) => {
    const long = `{"a": "${'x'.repeat(500)}\\""}`
    for (const source of [`[{"b": 1},\n${long},\n{"b": 2}]`, `{"b": 1}\n${long}\n{"b": 2}\n`]) {
      const { records, bad, thrown } = await read(source, { maxRecordBytes: 100 }, chunk)
      expect(bad).toMatchObject([{ code: 'JSON_RECORD_SIZE', record: 1, line: 2 }])
      expect(records.map(({ value, record, line }) => [value, record, line])).toEqual([
        [{ b: 1 }, 0, 1],
        [{ b: 2 }, 2, 3],
      ])
      expect(thrown).toBeUndefined()
    }
  })

  test('an aborted signal stops the reading', async () => {
    const controller = new AbortController()
    controller.abort()
    expect((await read('[1]', { signal: controller.signal })).thrown?.code).toBe('ABORTED')
  })
})

describe('size', () => {
  skipWithout(process.env.MODALIGN_LONG === '1' ? undefined : longOnly).test(
    'an array beyond the longest string of the engine, in little memory',
    async () => {
      const record = Buffer.from(`{"id": "0", "conversations": [{"from": "human", "value": "${'What is this? '.repeat(60)}"}]},\n`)
      const chunk = Buffer.concat(Array.from({ length: 1000 }, () => record))
      const chunks = 640
      function* array(): Generator<Uint8Array> {
        yield Buffer.from('[')
        for (let i = 0; i < chunks; i++) yield chunk
        yield Buffer.from('{}]')
      }
      expect(chunks * chunk.length).toBeGreaterThan(0x1fffffe8)
      let count = 0
      let peak = 0
      const before = process.memoryUsage.rss()
      for await (const { byteOffset, record: index } of jsonRecords(array())) {
        if (count % 10_000 === 0) peak = Math.max(peak, process.memoryUsage.rss())
        if (index === chunks * 1000) expect(byteOffset).toBe(1 + chunks * chunk.length)
        count++
      }
      expect(count).toBe(chunks * 1000 + 1)
      // The whole is 536 MB.
      expect(peak - before).toBeLessThan(250e6)
    },
  )
})

describe('laws', () => {
  const json = fc.jsonValue({ maxDepth: 4 })

  test('an array of values comes back, whatever the chunks', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(json, { maxLength: 6 }),
        fc.constantFrom(0, 1, 3),
        fc.integer({ min: 1, max: 9 }),
        async (array, indent, chunk) => {
          const source = JSON.stringify(array, null, indent)
          const { records, bad, thrown } = await read(source, { format: 'array' }, chunk)
          expect([bad, thrown]).toEqual([[], undefined])
          expect(records.map((record) => record.value)).toEqual(JSON.parse(source))
          for (const { byteOffset, byteLength, text } of records)
            expect(toBytes(source).toString('utf8', byteOffset, byteOffset + byteLength)).toBe(text)
        },
      ),
    )
  })

  const mutated = fc
    .tuple(
      fc.array(json, { minLength: 1, maxLength: 4 }),
      fc.boolean(),
      fc.array(
        fc.tuple(
          fc.integer({ min: 0, max: 9999 }),
          fc.constantFrom('', '"', '\\', '{', '}', '[', ']', ',', ':', '\n', 'NaN', '0', '-', ' ', '\\u12', 'é', '\r'),
          fc.boolean(),
        ),
        { maxLength: 3 },
      ),
    )
    .map(([array, lines, edits]) => {
      let source = lines ? array.map((value) => JSON.stringify({ value })).join('\n') : JSON.stringify(array)
      for (const [place, text, replaces] of edits) {
        const at = Math.floor((place / 10_000) * source.length)
        source = source.slice(0, at) + text + source.slice(at + (replaces ? 1 : 0))
      }
      return source
    })

  test('records and errors of damaged files do not depend on the chunks', async () => {
    await fc.assert(
      fc.asyncProperty(mutated, fc.integer({ min: 2, max: 11 }), fc.constantFrom(8, 30, 1000), async (source, chunk, maxRecordBytes) => {
        const whole = await read(source, { maxRecordBytes })
        expect(await read(source, { maxRecordBytes }, 1)).toEqual(whole)
        expect(await read(source, { maxRecordBytes }, chunk)).toEqual(whole)
      }),
      { numRuns: 1000 },
    )
  })

  test('the strict reader refuses what JSON.parse refuses, and beyond that only what it says', () => {
    const beyond = new Set(['JSON_DUPLICATE_KEY', 'JSON_SURROGATE', 'JSON_NUMBER_OVERFLOW', 'JSON_DEPTH'])
    fc.assert(
      fc.property(mutated, (source) => {
        const fault = findJsonFault(source)
        let accepted = true
        try {
          JSON.parse(source)
        } catch {
          accepted = false
        }
        if (!accepted) expect(fault).toBeDefined()
        else if (fault !== undefined) expect(beyond).toContain(fault.code)
      }),
      { numRuns: 1000 },
    )
  })
})

describe('JSONTestSuite (Nicolas Seriot)', () => {
  /** Accepted: the case, as the only element of an array, is read as one record without a fault. */
  const accepts = async (encoded: string) => {
    const { records, bad, thrown } = await read(Buffer.concat([Buffer.from('['), Buffer.from(encoded, 'base64'), Buffer.from(']')]))
    return records.length === 1 && bad.length === 0 && thrown === undefined
  }
  const cases = suite.map(([name = '', encoded = '']) => ({ name, encoded }))

  test('every text that must be accepted is, except duplicate keys', async () => {
    const refused = []
    for (const { name, encoded } of cases) if (name.startsWith('y_') && !(await accepts(encoded))) refused.push(name)
    expect(refused).toEqual(['y_object_duplicated_key', 'y_object_duplicated_key_and_value'])
  })

  test('every text that must be refused is', async () => {
    const accepted = []
    for (const { name, encoded } of cases) if (name.startsWith('n_') && (await accepts(encoded))) accepted.push(name)
    expect(accepted).toEqual([])
  })

  test('where the suite leaves the choice, only numbers that lose digits are accepted', async () => {
    const accepted = []
    for (const { name, encoded } of cases) if (name.startsWith('i_') && (await accepts(encoded))) accepted.push(name)
    expect(accepted).toEqual([
      'i_number_double_huge_neg_exp',
      'i_number_real_underflow',
      'i_number_too_big_neg_int',
      'i_number_too_big_pos_int',
      'i_number_very_big_negative_int',
    ])
  })
})

describe('files', () => {
  test('a file is read; a missing one and a directory are typed errors', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'modalign-json-'))
    try {
      const path = join(folder, 'records.json')
      await writeFile(path, '[{"a": 1}, {"a": 2}]')
      const found = []
      for await (const { value } of jsonFileRecords(path)) found.push(value)
      expect(found).toEqual([{ a: 1 }, { a: 2 }])
      await expect(jsonFileRecords(join(folder, 'absent.json')).next()).rejects.toMatchObject({ code: 'FILE_MISSING' })
      await expect(jsonFileRecords(folder).next()).rejects.toMatchObject({ code: 'FILE_NOT_REGULAR' })
    } finally {
      await rm(folder, { recursive: true })
    }
  })
})
