/** Fetching what a stranger's URL names: only from hosts that the caller lists, never from a private address, within bytes and time. */
import { lookup as systemLookup } from 'node:dns'
import { request as httpRequest, type IncomingMessage, type RequestOptions } from 'node:http'
import { request as httpsRequest } from 'node:https'
import { isIP, type LookupFunction, Socket } from 'node:net'
import { ModalignError } from '../errors.ts'
import { isPublicAddress } from './public-address.ts'

export interface HttpAccess {
  /**
   * Where URLs may lead, redirects included: `'images.example.org'`, `'*.example.org'` (its subdomains), `'*'` (any public host); with `:port` where it is not
   * the scheme's own.
   */
  readonly hosts: readonly string[]
  /** Addresses of this machine and of its network: refused (default), also behind a public name; or allowed, for collections on an intranet. */
  readonly privateAddresses?: 'refuse' | 'allow' | undefined
  /** Sent to the first host only, never along a redirect to another one. */
  readonly headers?: Readonly<Record<string, string>> | undefined
}

export interface GuardedFetchOptions extends HttpAccess {
  readonly maxBytes: number
  /** The code of the error for more. Default `HTTP_TOO_LARGE`. */
  readonly tooLargeCode?: string | undefined
  /** Wall clock for all of it, redirects included. */
  readonly timeoutMs: number
  readonly signal?: AbortSignal | undefined
  /** Finds a host's addresses. Default: the system's. */
  readonly lookup?: LookupFunction | undefined
}

const mostRedirects = 3

/**
 * The body behind an http(s) URL. The address that was checked is the one that is connected to, so a name that resolves differently a moment later changes nothing;
 * if any address of a host is private, the host is refused. Each redirect (three at most, never from https to http) is checked like the first URL. Nothing is
 * decompressed.
 *
 * @throws {ModalignError} `URL_INVALID`, `URL_NOT_ALLOWED` (scheme, host, port or credentials), `URL_PRIVATE`, `URL_REDIRECTS`, `HTTP_STATUS`, `HTTP_FAILED`,
 * `HTTP_TIMEOUT`, `tooLargeCode`; the signal's reason.
 *
 * @example
 * const bytes = await guardedFetch('https://images.example.org/cat.jpg', { hosts: ['images.example.org'], maxBytes: 2 ** 26, timeoutMs: 30_000 })
 */
export async function guardedFetch(url: string | URL, options: GuardedFetchOptions): Promise<Uint8Array> {
  const { timeoutMs, signal } = options
  signal?.throwIfAborted()
  const clock = AbortSignal.timeout(timeoutMs)
  const stop = signal === undefined ? clock : AbortSignal.any([clock, signal])
  let hop = parsed(String(url))
  const first = hop
  try {
    for (let redirects = 0; ; redirects++) {
      checkUrl(hop, options)
      const response = await answer(hop, options, hop.origin === first.origin, stop)
      const { statusCode = 0, headers } = response
      if (![301, 302, 303, 307, 308].includes(statusCode) || headers.location === undefined) return await body(response, hop, options)
      response.destroy()
      if (redirects === mostRedirects) {
        throw new ModalignError({
          code: 'URL_REDIRECTS',
          file: shown(first),
          got: `more than ${mostRedirects} redirects`,
          expected: 'the file',
        })
      }
      const next = parsed(headers.location, hop)
      if (hop.protocol === 'https:' && next.protocol === 'http:') {
        throw new ModalignError({
          code: 'URL_NOT_ALLOWED',
          file: shown(first),
          got: 'a redirect from https to http',
          expected: 'https all the way',
        })
      }
      hop = next
    }
  } catch (error) {
    if (signal?.aborted === true) throw signal.reason
    if (clock.aborted) {
      throw new ModalignError({
        code: 'HTTP_TIMEOUT',
        file: shown(first),
        got: `no whole file after ${timeoutMs} ms`,
        expected: 'the file',
        cause: error,
      })
    }
    if (error instanceof ModalignError) throw error
    const why = error instanceof Error ? error.message : String(error)
    throw new ModalignError({ code: 'HTTP_FAILED', file: shown(first), got: why, expected: 'an answer of the server', cause: error })
  }
}

function parsed(url: string, base?: URL): URL {
  if (!URL.canParse(url, base?.href)) throw new ModalignError({ code: 'URL_INVALID', got: url, expected: 'an http or https URL' })
  return new URL(url, base)
}

/** The URL as errors may show it: without credentials and without its query, which may hold a key. */
function shown(url: URL): string {
  return `${url.protocol}//${url.host}${url.pathname}`
}

const bare = (hostname: string): string => hostname.replace(/^\[|\]$/g, '')

function checkUrl(url: URL, { hosts, privateAddresses }: HttpAccess): void {
  const refuse = (got: string, expected: string, hint?: string): ModalignError =>
    new ModalignError({ code: 'URL_NOT_ALLOWED', file: shown(url), got, expected, hint })
  if (url.protocol !== 'http:' && url.protocol !== 'https:') throw refuse(`the scheme ${url.protocol}`, 'http or https')
  if (url.username !== '' || url.password !== '') throw refuse('a URL with credentials', 'a URL without a name and password')
  if (!hosts.some((pattern) => matches(pattern, url))) {
    throw refuse(`the host ${url.host}`, 'a host of the list of allowed hosts', 'add it to http.hosts, or download the file first')
  }
  // Names are checked when they are resolved; an address, and the name that always means this machine, need no resolving.
  const host = bare(url.hostname)
  const isLocal = isIP(host) === 0 ? /(^|\.)localhost\.?$/.test(host) : !isPublicAddress(host)
  if (isLocal && privateAddresses !== 'allow') throw privateError(url, host)
}

function matches(pattern: string, { hostname, port }: URL): boolean {
  const [, host = '', wantedPort = ''] = /^(.*?)(?::(\d+))?$/.exec(pattern.toLowerCase()) ?? []
  if (wantedPort !== port) return false
  const name = hostname.replace(/\.$/, '')
  return host === '*' || host === name || (host.startsWith('*.') && name.endsWith(host.slice(1)) && name.length > host.length - 1)
}

function privateError(url: URL, address: string): ModalignError {
  return new ModalignError({
    code: 'URL_PRIVATE',
    file: shown(url),
    got: `the address ${address}`,
    expected: 'an address of the public internet',
    hint: "a collection on your own network needs privateAddresses: 'allow'",
  })
}

function answer(url: URL, options: GuardedFetchOptions, sameOrigin: boolean, signal: AbortSignal): Promise<IncomingMessage> {
  const { headers, privateAddresses, lookup = systemLookup } = options
  const guarded: LookupFunction = (hostname, { all, ...rest }, found) => {
    lookup(hostname, { ...rest, all: true }, (error, addresses) => {
      if (error !== null) return found(error, [])
      const list = typeof addresses === 'string' ? [{ address: addresses, family: isIP(addresses) }] : addresses
      const inside = privateAddresses === 'allow' ? undefined : list.find(({ address }) => !isPublicAddress(address))
      const [first] = list
      if (inside !== undefined) found(privateError(url, `${inside.address} (${hostname})`), [])
      else if (all === true) found(null, list)
      else if (first === undefined) found(new Error(`${hostname} has no address`), [])
      else found(null, first.address, first.family)
    })
  }
  const request: RequestOptions = {
    method: 'GET',
    // A connection of its own: a pooled one, or a proxy's, would go to an address that nobody checked.
    agent: false,
    lookup: guarded,
    signal,
    headers: { ...(sameOrigin ? headers : undefined), accept: '*/*', 'accept-encoding': 'identity', 'user-agent': 'modalign' },
  }
  return new Promise((resolve, reject) => {
    const sent = (url.protocol === 'https:' ? httpsRequest : httpRequest)(url, request, resolve)
    sent.on('socket', (socket) => {
      // Twice is safer: whatever resolved the name, this is where the connection went.
      socket.once('connect', () => {
        const to = socket instanceof Socket ? socket.remoteAddress : undefined
        if (privateAddresses !== 'allow' && to !== undefined && !isPublicAddress(to)) sent.destroy(privateError(url, to))
      })
    })
    sent.once('error', reject)
    sent.end()
  })
}

async function body(
  response: IncomingMessage,
  url: URL,
  { maxBytes, tooLargeCode = 'HTTP_TOO_LARGE' }: GuardedFetchOptions,
): Promise<Uint8Array> {
  const { statusCode, statusMessage = '', headers } = response
  const file = shown(url)
  const tooLarge = (got: string): ModalignError =>
    new ModalignError({ code: tooLargeCode, file, got, expected: `at most ${maxBytes} bytes` })
  try {
    if (statusCode !== 200)
      throw new ModalignError({ code: 'HTTP_STATUS', file, got: `${statusCode} ${statusMessage}`.trim(), expected: '200 and the file' })
    const encoding = headers['content-encoding'] ?? 'identity'
    if (encoding !== 'identity')
      throw new ModalignError({ code: 'HTTP_FAILED', file, got: `a body encoded as ${encoding}`, expected: 'the file as it is' })
    const declared = Number(headers['content-length'] ?? 0)
    if (declared > maxBytes) throw tooLarge(`${declared} bytes`)
    const chunks: Buffer[] = []
    let received = 0
    for await (const chunk of response as AsyncIterable<Buffer>) {
      received += chunk.length
      if (received > maxBytes) throw tooLarge(`more than ${maxBytes} bytes`)
      chunks.push(chunk)
    }
    const whole = Buffer.concat(chunks)
    return new Uint8Array(whole.buffer, whole.byteOffset, whole.length)
  } finally {
    response.destroy()
  }
}
