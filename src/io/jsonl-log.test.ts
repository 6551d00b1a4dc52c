import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { ModalignError } from '../errors.ts'
import { crashNth, failNth } from './fs-faults.ts'
import type { JsonValue } from './json.ts'
import { openJsonlLog, readJsonl } from './jsonl-log.ts'

let folder: string
let path: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-jsonl-'))
  path = join(folder, 'log.jsonl')
})
afterEach(() => rm(folder, { recursive: true }))

async function values(file = path): Promise<JsonValue[]> {
  const all: JsonValue[] = []
  for await (const { value } of readJsonl(file)) all.push(value)
  return all
}
const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )

describe('openJsonlLog', () => {
  test('appends across openings', async () => {
    {
      await using log = await openJsonlLog(path)
      await log.append([{ a: 1 }, 'line\nbreak'])
      await log.append([])
      expect(log.length).toBe((await readFile(path)).length)
    }
    await using log = await openJsonlLog(path)
    expect(log.tornBytes).toBe(0)
    await log.append([null])
    expect(await values()).toEqual([{ a: 1 }, 'line\nbreak', null])
  })

  test('a file cut at every length: whole lines stay, the torn one goes and is reported', async () => {
    const whole = '{"id":"ä"}\n{"id":2}\n\n[3]\n'
    const bytes = new TextEncoder().encode(whole)
    for (let length = 0; length <= bytes.length; length++) {
      await writeFile(path, bytes.subarray(0, length))
      await using log = await openJsonlLog(path)
      const kept = bytes.subarray(0, length).lastIndexOf(10) + 1
      expect(log.length).toBe(kept)
      expect(log.tornBytes).toBe(length - kept)
      await log.append([{ id: 'next' }])
      expect(await readFile(path, 'utf8')).toBe(`${new TextDecoder().decode(bytes.subarray(0, kept))}{"id":"next"}\n`)
    }
  })

  test('the torn line may be longer than a read', async () => {
    await writeFile(path, `1\n${'x'.repeat(3_000_000)}`)
    await using log = await openJsonlLog(path)
    expect(log.tornBytes).toBe(3_000_000)
    expect(await readFile(path, 'utf8')).toBe('1\n')
  })

  test.each(['ENOSPC', 'EIO'] as const)('%s at every operation: typed error, no torn line, the next opening goes on', async (errno) => {
    for (let n = 1; ; n++) {
      await rm(path, { force: true })
      const fs = failNth(n, errno)
      const error = await failure(
        (async () => {
          await using log = await openJsonlLog(path, { fs, syncIntervalMs: 0 })
          await log.append([{ id: 1 }])
          await log.append([{ id: 2 }])
        })(),
      )
      if (!fs.hit) break
      expect(error).toMatchObject({ code: errno === 'ENOSPC' ? 'DISK_FULL' : 'DISK_FAILED' })
      const left = (await readdir(folder)).length > 0 ? await readFile(path, 'utf8') : ''
      expect(left === '' || left.endsWith('\n')).toBe(true)
      await using again = await openJsonlLog(path)
      await again.append([{ id: 3 }])
      expect((await values()).at(-1)).toEqual({ id: 3 })
    }
  })

  test.each([0, 0.3, 0.9, 1])('a crash at every operation (%f of the write arrives): the lines before it are kept', async (torn) => {
    for (let n = 1; ; n++) {
      await rm(path, { force: true })
      const fs = crashNth(n, { torn })
      let acknowledged = 0
      await failure(
        (async () => {
          await using log = await openJsonlLog(path, { fs, syncIntervalMs: 0 })
          for (const id of [1, 2, 3]) {
            await log.append([{ id, text: 'some text' }])
            acknowledged = id
          }
        })(),
      )
      if (!fs.hit) break
      await using again = await openJsonlLog(path)
      const rows = await values()
      expect(rows.length).toBeGreaterThanOrEqual(acknowledged)
      expect(rows).toEqual([1, 2, 3].slice(0, rows.length).map((id) => ({ id, text: 'some text' })))
      expect(again.length).toBe((await readFile(path)).length)
    }
  })

  test('a folder in the file’s place is refused', async () => {
    await mkdir(path)
    expect(await failure(openJsonlLog(path))).toMatchObject({ code: 'FILE_NOT_REGULAR' })
    expect(await failure(openJsonlLog(join(folder, 'no', 'log')))).toMatchObject({ code: 'FILE_MISSING' })
  })
})

describe('readJsonl', () => {
  test('takes CRLF, blank lines, a byte order mark, U+2028 inside a string and a last line without newline', async () => {
    await writeFile(path, '\ufeff{"a":1}\r\n\r\n  \n"x\u2028y"\n3')
    const read = []
    for await (const { line, record, value, offset, byteLength } of readJsonl(path)) read.push({ line, record, value, offset, byteLength })
    expect(read).toEqual([
      { line: 1, record: 0, value: { a: 1 }, offset: 0, byteLength: 12 },
      { line: 4, record: 1, value: 'x\u2028y', offset: 17, byteLength: 8 },
      { line: 5, record: 2, value: 3, offset: 25, byteLength: 1 },
    ])
  })

  test.each([
    ['{"a":1},\n', 'JSONL_MALFORMED', undefined],
    ['{"a":NaN}', 'JSONL_MALFORMED', 'JSON has no NaN and no Infinity: write null'],
    [Buffer.from([0x22, 0xff, 0x22]), 'JSONL_UTF8', undefined],
    [Buffer.from('\ufeff[1]', 'utf16le'), 'JSONL_UTF8', undefined],
  ])('%j is %s and names its place', async (text, code, hint) => {
    await writeFile(path, Buffer.concat([Buffer.from('0\n\n'), Buffer.from(text)]))
    const error = await failure(values())
    expect(error).toMatchObject({ code, details: { file: path, line: 3, record: 1, ...(hint === undefined ? {} : { hint }) } })
  })

  test('bad lines can be reported and left out', async () => {
    await writeFile(path, '1\n{\n2\n')
    const bad: ModalignError[] = []
    const good = []
    for await (const { value } of readJsonl(path, { onBad: ({ error }) => bad.push(error) })) good.push(value)
    expect(good).toEqual([1, 2])
    expect(bad.map(({ details }) => details.line)).toEqual([2])
  })

  test('a line past the limit is one bad line; the next ones are read', async () => {
    await writeFile(path, '1\n')
    for (let mebibytes = 0; mebibytes < 65; mebibytes++) await appendFile(path, Buffer.alloc(2 ** 20, 0x61))
    await appendFile(path, '\n2\n')
    const bad: string[] = []
    const good = []
    for await (const { value } of readJsonl(path, { onBad: ({ error }) => bad.push(error.code) })) good.push(value)
    expect([good, bad]).toEqual([[1, 2], ['JSONL_LINE_TOO_LONG']])
    await truncate(path, 0)
  })

  test('what was appended comes back, whatever its size', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.oneof(
            fc.jsonValue(),
            fc.nat(3_000_000).map((n) => 'é'.repeat(n)),
          ),
          { maxLength: 8 },
        ),
        async (list) => {
          await rm(path, { force: true })
          const expected: JsonValue[] = JSON.parse(JSON.stringify(list))
          {
            await using log = await openJsonlLog(path)
            await log.append(expected)
          }
          expect(await values()).toEqual(expected)
        },
      ),
      { numRuns: 12 },
    )
  })
})
