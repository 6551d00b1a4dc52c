import { execFileSync } from 'node:child_process'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { memorySource } from '../io/memory-source.ts'
import { completeRecords, csvRecord, readCsv } from './csv.ts'

async function parsed(text: string | Uint8Array): Promise<(readonly string[])[]> {
  const records = []
  for await (const { fields } of readCsv(memorySource(typeof text === 'string' ? new TextEncoder().encode(text) : text)))
    records.push(fields)
  return records
}

test('the examples of RFC 4180', async () => {
  expect(await parsed('aaa,bbb,ccc\r\nzzz,yyy,xxx\r\n')).toEqual([
    ['aaa', 'bbb', 'ccc'],
    ['zzz', 'yyy', 'xxx'],
  ])
  expect(await parsed('"aaa","b\r\nbb","ccc"\r\n"a","b""bb",""\r\n')).toEqual([
    ['aaa', 'b\r\nbb', 'ccc'],
    ['a', 'b"bb', ''],
  ])
  expect(csvRecord(['a', 'b"bb', 'c,c', 'd\nd', '', ' e'])).toBe('a,"b""bb","c,c","d\nd",," e"\r\n')
})

const texts = fc.array(
  fc.array(fc.oneof(fc.string({ unit: 'grapheme' }), fc.string({ unit: fc.constantFrom('"', ',', '\r', '\n', 'a', ' ', '\ufeff', '=') })), {
    minLength: 2,
    maxLength: 4,
  }),
  { maxLength: 6 },
)

test('what is written is read, and a file cut anywhere gives the records that end before the cut', async () => {
  await fc.assert(
    fc.asyncProperty(texts, async (records) => {
      const encoded = records.map((fields) => new TextEncoder().encode(csvRecord(fields)))
      const bytes = new Uint8Array(Buffer.concat(encoded))
      expect(await parsed(bytes)).toEqual(records)
      for (let length = 0; length < bytes.length; length++) {
        let end = 0
        for (const record of encoded) {
          if (end + record.length > length) break
          end += record.length
        }
        expect(await completeRecords(memorySource(bytes.subarray(0, length)))).toBe(end)
      }
    }),
    { numRuns: 60 },
  )
})

test('records longer than a read, and their places', async () => {
  const text = csvRecord(['x'.repeat(1_500_000), 'a\nb']) + csvRecord(['y', '"'])
  const records = []
  for await (const { line, offset, byteLength } of readCsv(memorySource(new TextEncoder().encode(text))))
    records.push({ line, offset, byteLength })
  expect(records).toEqual([
    { line: 1, offset: 0, byteLength: 1_500_008 },
    { line: 3, offset: 1_500_008, byteLength: 8 },
  ])
})

const python = (() => {
  try {
    execFileSync('python3', ['-c', ''])
    return true
  } catch {
    return false
  }
})()

test.skipIf(!python)("Python's csv module reads the same fields (skipped where there is no python3)", () => {
  const records = [
    ['a', 'say "hi", twice', 'line\r\nbreak', ''],
    ['=1+1', ' padded ', "it's", '\t'],
  ]
  const code = 'import csv, json, sys, io; print(json.dumps(list(csv.reader(io.StringIO(sys.stdin.buffer.read().decode(), newline="")))))'
  const read: unknown = JSON.parse(execFileSync('python3', ['-c', code], { input: records.map(csvRecord).join(''), encoding: 'utf8' }))
  expect(read).toEqual(records)
})
