/** Fetching what a stranger's URL names: only from hosts that the caller lists, never from a private address, within bytes and time. */
import { lookup as systemLookup } from 'node:dns'
import { request as httpRequest, type IncomingHttpHeaders, type IncomingMessage, type RequestOptions } from 'node:http'
import { request as httpsRequest } from 'node:https'
import { isIP, type LookupFunction, Socket } from 'node:net'
import { ModalignError } from '../errors.ts'
import { isPublicAddress } from './public-address.ts'

export interface HttpAccess {
  /**
   * Where URLs may lead, redirects included: `'images.example.org'`, `'*.example.org'` (its subdomains), `'*'` (any public host); with `:port` where it is not
   * the scheme's own, `:*` for any.
   */
  readonly hosts: readonly string[]
  /** Addresses of this machine and of its network: refused (default), also behind a public name; or allowed, for collections on an intranet. */
  readonly privateAddresses?: 'refuse' | 'allow' | undefined
  /** Sent to the first host only, never along a redirect to another one. */
  readonly headers?: Readonly<Record<string, string>> | undefined
}

interface GuardedAccess extends HttpAccess {
  /** Finds a host's addresses. Default: the system's. */
  readonly lookup?: LookupFunction | undefined
}

export interface GuardedFetchOptions extends GuardedAccess {
  readonly maxBytes: number
  /** The code of the error for more. Default `HTTP_TOO_LARGE`. */
  readonly tooLargeCode?: string | undefined
  /** Wall clock for all of it, redirects included. */
  readonly timeoutMs: number
  readonly signal?: AbortSignal | undefined
}

export interface GuardedStreamOptions extends GuardedAccess {
  /** Longest wait for the answer, and then for each next piece of it. */
  readonly idleMs: number
  readonly signal?: AbortSignal | undefined
  /** Asks for the bytes from here to the end, through redirects too. Default 0. */
  readonly from?: number | undefined
}

/** An answer of any status whose body is still to be read; it must be, or be disposed. */
export interface GuardedStream extends Disposable {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  /** @throws ModalignError `HTTP_FAILED` (also where the connection is cut), `HTTP_TIMEOUT` */
  chunks(): AsyncGenerator<Uint8Array>
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
  const first = parsed(String(url))
  try {
    const { response, hop } = await followed(first, options, stop)
    return await body(response, hop, options)
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
    throw failed(error, first)
  }
}

/**
 * As {@link guardedFetch}, for what is too large to hold and for those who want to see the status: the answer itself, its body to be read piece by piece.
 *
 * @throws {ModalignError} `URL_*`, `HTTP_FAILED`, `HTTP_TIMEOUT`; the signal's reason.
 *
 * @example
 * using answer = await guardedStream('https://models.example.org/model.safetensors', { hosts: ['*'], idleMs: 30_000, from: 1_000_000 })
 * answer.status // 206 where the server can go on from there
 */
export async function guardedStream(url: string | URL, options: GuardedStreamOptions): Promise<GuardedStream> {
  const { idleMs, signal } = options
  signal?.throwIfAborted()
  const first = parsed(String(url))
  const idle = new AbortController()
  const stop = signal === undefined ? idle.signal : AbortSignal.any([idle.signal, signal])
  const wait = () => setTimeout(() => idle.abort(), idleMs)
  let clock = wait()
  const meaning = (error: unknown): unknown => {
    if (signal?.aborted === true) return signal.reason
    if (!idle.signal.aborted) return failed(error, first)
    const got = `nothing for ${idleMs} ms`
    return new ModalignError({ code: 'HTTP_TIMEOUT', file: shown(first), got, expected: 'an answer of the server', cause: error })
  }
  try {
    const { response } = await followed(first, options, stop)
    return {
      status: response.statusCode ?? 0,
      headers: response.headers,
      async *chunks() {
        try {
          for await (const chunk of response as AsyncIterable<Buffer>) {
            // Only the wait for the server counts, not what its reader does meanwhile.
            clearTimeout(clock)
            yield chunk
            clock = wait()
          }
        } catch (error) {
          throw meaning(error)
        } finally {
          clearTimeout(clock)
          response.destroy()
        }
      },
      [Symbol.dispose]() {
        clearTimeout(clock)
        response.destroy()
      },
    }
  } catch (error) {
    clearTimeout(clock)
    throw meaning(error)
  }
}

function failed(error: unknown, first: URL): ModalignError {
  if (error instanceof ModalignError) return error
  const why = error instanceof Error ? error.message : String(error)
  return new ModalignError({ code: 'HTTP_FAILED', file: shown(first), got: why, expected: 'an answer of the server', cause: error })
}

interface Access extends GuardedAccess {
  readonly from?: number | undefined
}

/** The answer at the end of the redirects, and where that is. */
async function followed(
  first: URL,
  options: Access,
  stop: AbortSignal,
): Promise<{ readonly response: IncomingMessage; readonly hop: URL }> {
  let hop = first
  for (let redirects = 0; ; redirects++) {
    checkUrl(hop, options)
    const response = await answer(hop, options, hop.origin === first.origin, stop)
    const { statusCode = 0, headers } = response
    if (![301, 302, 303, 307, 308].includes(statusCode) || headers.location === undefined) return { response, hop }
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
      const got = 'a redirect from https to http'
      throw new ModalignError({ code: 'URL_NOT_ALLOWED', file: shown(first), got, expected: 'https all the way' })
    }
    hop = next
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
  const [, host = '', wantedPort = ''] = /^(.*?)(?::(\d+|\*))?$/.exec(pattern.toLowerCase()) ?? []
  if (wantedPort !== '*' && wantedPort !== port) return false
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

function answer(url: URL, options: Access, sameOrigin: boolean, signal: AbortSignal): Promise<IncomingMessage> {
  const { headers, privateAddresses, lookup = systemLookup, from = 0 } = options
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
    headers: {
      ...(sameOrigin ? headers : undefined),
      ...(from > 0 && { range: `bytes=${from}-` }),
      accept: '*/*',
      'accept-encoding': 'identity',
      'user-agent': 'modalign',
    },
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
