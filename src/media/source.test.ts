import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Readable } from 'node:stream'
import { pathToFileURL } from 'node:url'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { errorData } from '../errors.ts'
import { decodeDataUrl } from './data-url.ts'
import { type MediaInput, openMedia, readMedia, type SourceOptions, sourceName } from './source.ts'

const bytes = Uint8Array.from({ length: 300 }, (_, i) => i % 256)
const options: SourceOptions = { maxBytes: 1000, timeoutMs: 5_000 }
let folder: string
let file: string
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'modalign-source-'))
  file = path.join(folder, 'a b%20.bin')
  await writeFile(file, bytes)
})
afterAll(() => rm(folder, { recursive: true, force: true }))

const failure = async (input: MediaInput, changes: Partial<SourceOptions> = {}) =>
  await readMedia(input, { ...options, ...changes }).then(
    (read) => ({ code: `${read.length} bytes` }),
    (error: unknown) => errorData(error),
  )

describe('every source gives the bytes', () => {
  test.each<[string, () => MediaInput]>([
    ['a path', () => file],
    ['a file URL as text', () => pathToFileURL(file).href],
    ['a file URL', () => pathToFileURL(file)],
    ['bytes', () => bytes],
    ['a Buffer', () => Buffer.from(bytes)],
    ['a data URL', () => `data:image/png;base64,${Buffer.from(bytes).toString('base64')}`],
    ['a data URL as a URL', () => new URL(`data:;base64,${Buffer.from(bytes).toString('base64')}`)],
    ['a Node stream', () => Readable.from([bytes.subarray(0, 100), bytes.subarray(100)])],
    ['a web stream', () => new Blob([bytes]).stream()],
    [
      'a generator',
      async function* () {
        yield bytes
      },
    ],
  ])('%s', async (_, input) => {
    expect(Buffer.compare(await readMedia(input(), options), bytes)).toBe(0)
    const opened = await openMedia(input(), options)
    expect(Buffer.compare(await opened.bytes.read(10, 20), bytes.subarray(10, 30))).toBe(0)
    expect(opened.bytes.size).toBe(300)
  })

  test('a server, where it is allowed', async () => {
    const server = createServer((_, response) => void response.end(bytes))
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const address = server.address()
    const host = `127.0.0.1:${typeof address === 'object' && address !== null ? address.port : 0}`
    const url = `http://${host}/a.png?key=secret`
    try {
      expect(await failure(url, { http: { hosts: [host], privateAddresses: 'allow' }, root: folder })).toEqual({ code: '300 bytes' })
      expect(await failure(url, { http: { hosts: [host] } })).toMatchObject({ code: 'URL_PRIVATE' })
      expect(await failure(url, { http: { hosts: [] } })).toMatchObject({ code: 'URL_NOT_ALLOWED' })
      const refused = await failure(url)
      expect(refused).toMatchObject({ code: 'URL_NOT_ALLOWED', file: `http://${host}/a.png`, hint: expect.stringContaining('http') })
      expect(JSON.stringify(refused)).not.toContain('secret')
    } finally {
      server.closeAllConnections()
      server.close()
    }
  })
})

describe('what is refused', () => {
  test.each([
    ['ftp://example.org/a.png', 'URL_NOT_ALLOWED'],
    ['gopher://example.org/', 'URL_NOT_ALLOWED'],
    ['file://server/share/a.png', 'URL_INVALID'],
    ['file:///a%FF.png', 'URL_INVALID'],
    ['concat:a|b', 'FILE_MISSING'],
    ['subfile,,start,0,end,9,,:/etc/passwd', 'FILE_MISSING'],
    ['pipe:0', 'FILE_MISSING'],
    ['a;rm -rf', 'FILE_MISSING'],
    ['-y', 'FILE_MISSING'],
    ['', 'FILE_NOT_REGULAR'],
  ])('%s', async (input, code) => expect(await failure(input)).toMatchObject({ code }))

  test.each(['file:///etc/passwd', 'data:;base64,AAAA', 'http://169.254.169.254/'])('below a root: %s', async (input) => {
    expect(await failure(input, { root: folder })).toMatchObject({ code: 'PATH_URL' })
    expect(await failure(new URL(input), { root: folder })).toMatchObject({ code: 'URL_NOT_ALLOWED' })
  })

  test('too much of anything', async () => {
    const small = { maxBytes: 299, tooLargeCode: 'SOUND_TOO_LARGE' }
    const endless = async function* () {
      for (;;) yield bytes
    }
    for (const input of [file, bytes, Readable.from([bytes]), new Blob([bytes]).stream(), endless(), `data:;base64,${'A'.repeat(400)}`])
      expect(await failure(input, small)).toMatchObject({ code: 'SOUND_TOO_LARGE' })
  })

  test('a stream that stalls, fails, is aborted or is none of bytes', async () => {
    const stalls = new Readable({ read: () => undefined })
    expect(await failure(stalls, { timeoutMs: 50 })).toMatchObject({ code: 'SOURCE_TIMEOUT' })
    expect(stalls.destroyed).toBe(true)
    const stalled = new Readable({ read: () => undefined })
    await expect(readMedia(stalled, { ...options, signal: AbortSignal.timeout(30) })).rejects.toMatchObject({ name: 'TimeoutError' })
    const fails = async function* () {
      yield bytes
      throw new Error('the line broke')
    }
    expect(await failure(fails())).toMatchObject({ got: 'the line broke' })
    expect(await failure(Readable.from(['text']))).toMatchObject({ code: 'SOURCE_INVALID' })
  })

  test('names in errors keep secrets and long data out', () => {
    expect(sourceName('http://user:pass@example.org/a?token=1#x')).toBe('http://example.org/a')
    expect(sourceName(`data:image/png;base64,${'A'.repeat(1000)}`)).toBe('data:image/png;base64,... (1022 characters)')
    expect([sourceName(bytes), sourceName('a.png')]).toEqual([undefined, 'a.png'])
  })
})

describe('I33: data URLs', () => {
  const fault = (url: string, maxBytes = 100) => {
    try {
      return { code: `${decodeDataUrl(url, { maxBytes }).length} bytes` }
    } catch (error) {
      return errorData(error)
    }
  }

  test.each([
    ['data:image/png;base64,AA\nAA', 'white space'],
    ['data:image/png;base64, AAAA', 'white space'],
    ['data:image/png;base64,AA-_', '"-"'],
    ['data:image/png;base64,AAA', '3 characters'],
    ['data:image/png;base64,AA=A', '"=" inside'],
    ['data:image/png;base64,AAAA=', '5 characters'],
    ['data:image/png;base64', 'no comma'],
    ['data:,100%', '"%"'],
    ['data:,ä', '"ä"'],
    ['http://x', 'http://x'],
  ])('%j is refused', (url, got) => {
    const error = fault(url)
    expect(error.code).toBe('DATA_URL_INVALID')
    expect('got' in error && error.got).toContain(got)
  })

  test('a long one is refused by its length, its content unread', () => {
    expect(fault(`data:;base64,${'!'.repeat(1000)}`)).toMatchObject({ code: 'DATA_URL_TOO_LARGE', got: 'a data URL of 1013 characters' })
    expect(fault(`data:,${'%'.repeat(301)}`)).toMatchObject({ code: 'DATA_URL_TOO_LARGE' })
  })

  test('any bytes come back, in both forms', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), (data) => {
        const base64 = Buffer.from(data).toString('base64')
        expect(decodeDataUrl(`data:;base64,${base64}`, { maxBytes: 60 })).toEqual(data)
        const percent = [...data].map((byte) => `%${byte.toString(16).padStart(2, '0')}`).join('')
        expect(decodeDataUrl(`data:application/octet-stream,${percent}`, { maxBytes: 60 })).toEqual(data)
      }),
    )
  })
})
