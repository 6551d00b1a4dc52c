import { createServer, type Server } from 'node:http'
import { afterEach, describe, expect, test } from 'vitest'
import { httpSource } from './http-source.ts'

const bytes = Uint8Array.from({ length: 3 * 2 ** 20 }, (_, i) => i % 251)

/** What a server may do; each test has one of its own. */
interface Habits {
  readonly ranges?: boolean
  readonly body?: Uint8Array
  readonly etag?: () => string
  readonly status?: number
  readonly cutOff?: boolean
}
const servers: Server[] = []
const requested: string[] = []

async function serve({ ranges = true, body = bytes, etag = () => '"1"', status, cutOff = false }: Habits): Promise<string> {
  const server = createServer((request, response) => {
    const asked = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
    requested.push(request.headers.range ?? 'all')
    response.setHeader('ETag', etag())
    if (status !== undefined) response.writeHead(status).end()
    else if (ranges && asked !== null && body.length === 0) response.writeHead(416).end()
    else if (ranges && asked !== null) {
      const [from, to] = [Number(asked[1]), Math.min(Number(asked[2]), body.length - 1)]
      response.writeHead(206, { 'Content-Range': `bytes ${from}-${to}/${body.length}`, 'Content-Length': to - from + 1 })
      if (cutOff && from > 0) response.write(body.subarray(from, from + 10), () => response.destroy())
      else response.end(body.subarray(from, to + 1))
    } else response.writeHead(200, { 'Content-Length': body.length }).end(body)
  })
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  return `http://127.0.0.1:${typeof address === 'object' && address !== null ? address.port : 0}/weights`
}

afterEach(() => {
  requested.length = 0
  for (const server of servers.splice(0)) {
    server.closeAllConnections()
    server.close()
  }
})

describe('a file on a server', () => {
  test('ranges are requested as they are read; what the first request brought is not requested again', async () => {
    const source = await httpSource(await serve({}))
    expect(source.size).toBe(bytes.length)
    expect(await source.read(0, 100)).toEqual(bytes.slice(0, 100))
    expect(await source.read(2_000_000, 5)).toEqual(bytes.slice(2_000_000, 2_000_005))
    expect(requested).toEqual(['bytes=0-1048575', 'bytes=2000000-2000004'])
  })

  test.each([
    ['a server without ranges', { ranges: false }],
    ['an empty file', { body: new Uint8Array() }],
    ['a file shorter than the first range', { body: bytes.slice(0, 1000) }],
  ] as const)('%s', async (_, habits: Habits) => {
    const body = habits.body ?? bytes
    const source = await httpSource(await serve(habits))
    expect(Buffer.from(await source.read(0, source.size)).equals(body)).toBe(true)
    expect(requested.length).toBeLessThanOrEqual(2)
  })

  test('a range outside of the file is refused before the server is asked', async () => {
    const source = await httpSource(await serve({}))
    await expect(source.read(bytes.length - 1, 2)).rejects.toMatchObject({ code: 'FILE_RANGE' })
    expect(requested).toHaveLength(1)
  })

  test('a file that changes between two reads is noticed', async () => {
    let version = 0
    const source = await httpSource(await serve({ etag: () => `"${version++}"` }))
    await expect(source.read(2_000_000, 5)).rejects.toMatchObject({ code: 'FILE_CHANGED' })
  })

  test('failures name the address', async () => {
    const missing = await serve({ status: 404 })
    await expect(httpSource(missing)).rejects.toMatchObject({ code: 'HTTP_STATUS', details: { file: missing, got: '404 Not Found' } })
    const source = await httpSource(await serve({ cutOff: true }))
    await expect(source.read(2_000_000, 50)).rejects.toMatchObject({ code: 'HTTP_FAILED' })
    await expect(httpSource('http://127.0.0.1:1/')).rejects.toMatchObject({ code: 'HTTP_FAILED' })
  })

  test('a signal ends it', async () => {
    await expect(httpSource(await serve({}), { signal: AbortSignal.abort() })).rejects.toMatchObject({ name: 'AbortError' })
  })
})
