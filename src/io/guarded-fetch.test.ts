import { createServer, type RequestListener, type Server } from 'node:http'
import type { LookupFunction } from 'node:net'
import { afterAll, describe, expect, test } from 'vitest'
import { errorData } from '../errors.ts'
import { type GuardedFetchOptions, guardedFetch } from './guarded-fetch.ts'
import { isPublicAddress } from './public-address.ts'

const servers: Server[] = []
afterAll(() => {
  for (const server of servers) {
    server.closeAllConnections()
    server.close()
  }
})

async function serve(listener: RequestListener): Promise<{ readonly url: string; readonly host: string; readonly port: number }> {
  const server = createServer(listener)
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  const port = typeof address === 'object' && address !== null ? address.port : 0
  return { url: `http://127.0.0.1:${port}/`, host: `127.0.0.1:${port}`, port }
}

/** A name server of our own: what a stranger's may answer. */
const resolves =
  (...addresses: readonly string[]): LookupFunction =>
  (_, { all }, found) => {
    const list = addresses.map((address) => ({ address, family: address.includes(':') ? 6 : 4 }))
    if (all === true) found(null, list)
    else found(null, list[0]?.address ?? '', list[0]?.family)
  }

const options: GuardedFetchOptions = { hosts: ['*'], maxBytes: 1000, timeoutMs: 5_000 }
const failure = async (url: string, changes: Partial<GuardedFetchOptions> = {}) =>
  await guardedFetch(url, { ...options, ...changes }).then(
    (bytes) => ({ code: `${bytes.length} bytes` }),
    (error: unknown) => errorData(error),
  )

describe('addresses', () => {
  test.each([
    '127.0.0.1',
    '10.1.2.3',
    '100.64.0.1',
    '169.254.169.254',
    '172.31.255.255',
    '192.168.1.1',
    '198.18.0.1',
    '0.0.0.0',
    '224.0.0.1',
    '255.255.255.255',
    '::1',
    '::',
    'fe80::1%eth0',
    'fc00::1',
    'fd00:ec2::254',
    'ff02::1',
    '::ffff:127.0.0.1',
    '::ffff:7f00:1',
    '64:ff9b::7f00:1',
    '2002:7f00:1::',
    '2001::1',
    '2001:db8::1',
    'no address',
  ])('%s is not of the public internet', (address) => expect(isPublicAddress(address)).toBe(false))

  test.each(['93.184.216.34', '8.8.8.8', '172.32.0.1', '100.128.0.1', '2606:4700::1111', '2a00:1450:4001::8a'])('%s is', (address) =>
    expect(isPublicAddress(address)).toBe(true),
  )
})

describe('what is refused before anything is connected', () => {
  test.each([
    'http://127.0.0.1/',
    'http://169.254.169.254/latest/meta-data',
    'http://[::1]/',
    'http://0x7f.1/',
    'http://2130706433/',
    'http://0177.0.0.1/',
    'http://127.1/',
    'http://①②⑦.⓪.⓪.①/',
    'http://[::ffff:7f00:1]/',
    'http://[64:ff9b::7f00:1]/',
    'http://0/',
    'http://[fd00:ec2::254]/',
    'http://localhost/',
    'http://localhost./',
  ])('%s', async (url) => expect(await failure(url)).toMatchObject({ code: 'URL_PRIVATE' }))

  test.each([
    ['ftp://example.org/a.jpg', 'URL_NOT_ALLOWED'],
    ['javascript:alert(1)', 'URL_NOT_ALLOWED'],
    ['http://name:secret@example.org/', 'URL_NOT_ALLOWED'],
    ['http://example.org:8080/', 'URL_NOT_ALLOWED'],
    ['http://', 'URL_INVALID'],
  ])('%s', async (url, code) => {
    const error = await failure(url)
    expect(error).toMatchObject({ code })
    expect(JSON.stringify(error)).not.toContain('secret')
  })

  test.each([
    ['http://images.example.org/', ['images.example.org'], true],
    ['http://images.example.org./', ['images.example.org'], true],
    ['http://IMAGES.example.org/', ['*.example.org'], true],
    ['http://example.org/', ['*.example.org'], false],
    ['http://evil-example.org/', ['*.example.org'], false],
    ['http://example.org.evil.net/', ['example.org'], false],
    ['http://example.org:8080/', ['example.org:8080'], true],
    ['http://example.org/', ['example.org:8080'], false],
    ['http://example.org/', [], false],
  ] as const)('%s against %j: %s', async (url, hosts, allowed) => {
    const { code } = await failure(url, { hosts, lookup: resolves('10.0.0.1') })
    expect(code).toBe(allowed ? 'URL_PRIVATE' : 'URL_NOT_ALLOWED')
  })
})

describe('names', () => {
  test('a public name with a private address is refused, also where another of its addresses is public', async () => {
    const lookup = resolves('93.184.216.34', '127.0.0.1')
    expect(await failure('http://rebind.example.org/', { lookup })).toMatchObject({
      code: 'URL_PRIVATE',
      got: expect.stringContaining('127.0.0.1'),
    })
    expect(await failure('http://rebind.example.org/', { lookup: resolves('::ffff:127.0.0.1') })).toMatchObject({ code: 'URL_PRIVATE' })
  })

  test('a name is asked once for each connection: what it answers a moment later changes nothing', async () => {
    let questions = 0
    const { port, url } = await serve((_, response) => void response.end('inside'))
    const changing: LookupFunction = (name, how, found) => {
      questions++
      resolves(questions === 1 ? '127.0.0.1' : '10.0.0.1')(name, how, found)
    }
    const bytes = await guardedFetch(`http://changing.example.org:${port}/`, {
      ...options,
      hosts: [`changing.example.org:${port}`],
      privateAddresses: 'allow',
      lookup: changing,
    })
    expect([Buffer.from(bytes).toString(), questions]).toEqual(['inside', 1])
    expect(await failure(url, { hosts: ['127.0.0.1'] })).toMatchObject({ code: 'URL_NOT_ALLOWED' })
  })
})

describe('answers', () => {
  const inside = (host: string): Partial<GuardedFetchOptions> => ({ hosts: [host], privateAddresses: 'allow' })

  test('the body, asked for uncompressed and without what others need not know', async () => {
    let headers: unknown
    const { url, host } = await serve((request, response) => {
      headers = request.headers
      response.end('body')
    })
    const bytes = await guardedFetch(url, { ...options, ...inside(host), headers: { authorization: 'Bearer x' } })
    expect(Buffer.from(bytes).toString()).toBe('body')
    expect(headers).toMatchObject({ 'accept-encoding': 'identity', authorization: 'Bearer x' })
  })

  test('redirects are followed three times, each checked, headers left behind', async () => {
    const seen: (string | undefined)[] = []
    const target = await serve((request, response) => {
      seen.push(request.headers.authorization)
      response.end('there')
    })
    const from = (location: string) => serve((_, response) => void response.writeHead(302, { location }).end())
    const good = await from(target.url)
    const both = { ...options, hosts: [good.host, target.host], privateAddresses: 'allow', headers: { authorization: 'x' } } as const
    expect(Buffer.from(await guardedFetch(good.url, both)).toString()).toBe('there')
    expect(seen).toEqual([undefined])
    expect(await failure(good.url, inside(good.host))).toMatchObject({ code: 'URL_NOT_ALLOWED', file: target.url })
    expect(await failure((await from('/again')).url, { hosts: ['*'], ...{ privateAddresses: 'allow' } })).toMatchObject({
      code: 'URL_NOT_ALLOWED',
    })
    const circle = await serve((_, response) => void response.writeHead(307, { location: '/again' }).end())
    expect(await failure(circle.url, inside(circle.host))).toMatchObject({ code: 'URL_REDIRECTS' })
    const odd = await from('file:///etc/passwd')
    expect(await failure(odd.url, inside(odd.host))).toMatchObject({ code: 'URL_NOT_ALLOWED' })
  })

  test('too much, declared or not', async () => {
    const declared = await serve((_, response) => void response.writeHead(200, { 'content-length': 5000 }).write('x'))
    expect(await failure(declared.url, inside(declared.host))).toMatchObject({ code: 'HTTP_TOO_LARGE', got: '5000 bytes' })
    const endless = await serve((_, response) => {
      const timer = setInterval(() => response.write('x'.repeat(300)), 1)
      response.once('close', () => clearInterval(timer))
    })
    expect(await failure(endless.url, { ...inside(endless.host), tooLargeCode: 'IMAGE_TOO_LARGE' })).toMatchObject({
      code: 'IMAGE_TOO_LARGE',
      got: 'more than 1000 bytes',
    })
  })

  test('too slow, a byte at a time or nothing at all', async () => {
    const slow = await serve((_, response) => {
      const timer = setInterval(() => response.write('x'), 20)
      response.once('close', () => clearInterval(timer))
    })
    expect(await failure(slow.url, { ...inside(slow.host), timeoutMs: 200 })).toMatchObject({ code: 'HTTP_TIMEOUT' })
    const silent = await serve(() => undefined)
    expect(await failure(silent.url, { ...inside(silent.host), timeoutMs: 100 })).toMatchObject({ code: 'HTTP_TIMEOUT' })
    await expect(
      guardedFetch(silent.url, { ...options, hosts: [silent.host], privateAddresses: 'allow', signal: AbortSignal.timeout(50) }),
    ).rejects.toMatchObject({ name: 'TimeoutError' })
  })

  test('a status, a compressed body, a cut body, no server', async () => {
    const missing = await serve((_, response) => void response.writeHead(404).end())
    expect(await failure(`${missing.url}a?key=secret`, inside(missing.host))).toEqual({
      code: 'HTTP_STATUS',
      file: `${missing.url}a`,
      got: '404 Not Found',
      expected: '200 and the file',
    })
    const packed = await serve((_, response) => void response.writeHead(200, { 'content-encoding': 'gzip' }).end('x'))
    expect(await failure(packed.url, inside(packed.host))).toMatchObject({ code: 'HTTP_FAILED', got: 'a body encoded as gzip' })
    const cut = await serve((_, response) => {
      response.writeHead(200, { 'content-length': 100 }).write('x', () => response.destroy())
    })
    expect(await failure(cut.url, inside(cut.host))).toMatchObject({ code: 'HTTP_FAILED' })
    expect(await failure('http://127.0.0.1:1/', inside('127.0.0.1:1'))).toMatchObject({
      code: 'HTTP_FAILED',
      got: expect.stringContaining('ECONNREFUSED'),
    })
  })
})
