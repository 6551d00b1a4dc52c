/** Where media come from: paths, file and data URLs, bytes, streams, and servers where the caller says so. */
import { fileURLToPath } from 'node:url'
import { ModalignError } from '../errors.ts'
import type { FileSource } from '../io/byte-source.ts'
import { guardedFetch, type HttpAccess } from '../io/guarded-fetch.ts'
import { type ByteSource, memorySource } from '../io/memory-source.ts'
import type { MediaSource } from '../model/contracts.ts'
import { decodeDataUrl } from './data-url.ts'
import { openMediaFile, type ReadMediaOptions, readMediaAtOnce, readMediaFile } from './file.ts'

/**
 * What can be decoded: a path; a `file:`, `data:` or `http(s):` URL, as text or as a URL; a file's bytes; a stream of them (Node's, the web's, any async iterable).
 * Where a root is given, text is a path below it, or an `http(s):` URL if {@link SourceOptions.http} allows its host; nothing else.
 */
export type MediaInput = MediaSource | URL | AsyncIterable<Uint8Array> | ReadableStream<Uint8Array>

export interface SourceOptions extends ReadMediaOptions {
  /** Which servers may be asked. Without it none is: an `http(s):` URL is `URL_NOT_ALLOWED`. */
  readonly http?: HttpAccess | undefined
  /** For servers and streams. */
  readonly timeoutMs: number
  readonly signal?: AbortSignal | undefined
}

/** How errors call it; bytes and streams have no name. */
export function sourceName(input: MediaInput): string | undefined {
  if (input instanceof URL) return sourceName(input.href)
  if (typeof input !== 'string') return undefined
  if (input.length > 100 && /^data:/i.test(input))
    return `${input.slice(0, Math.min(40, input.indexOf(',') + 1))}... (${input.length} characters)`
  // A query may hold a key.
  return isHttp(input) ? input.replace(/[?#].*$/s, '').replace(/\/\/[^/@]*@/, '//') : input
}

/**
 * The bytes of a medium, wherever it is.
 *
 * @throws {ModalignError} what `readMediaFile`, `guardedFetch` and `decodeDataUrl` throw; `URL_NOT_ALLOWED`, `URL_INVALID`, `SOURCE_TIMEOUT` (a stream that stalls),
 * `SOURCE_INVALID`, `tooLargeCode`.
 *
 * @example
 * const bytes = await readMedia(request, { maxBytes: 2 ** 26, timeoutMs: 30_000 }) // a Node request is a stream of bytes
 */
export async function readMedia(input: MediaInput, options: SourceOptions): Promise<Uint8Array> {
  const place = locate(input, options)
  return place.type === 'path' ? await readMediaFile(place.path, options) : await bytesOf(place, options)
}

/** A medium opened for reading parts; `file` where it is one, so that a program can be given its path. */
export interface OpenedMedia {
  readonly bytes: ByteSource
  readonly file: FileSource | undefined
  /** All of them, where they are in memory: reading copies. */
  readonly whole?: Uint8Array
}

/**
 * As {@link readMedia}, but a file is opened only, not read.
 *
 * @param readAtOnce of a user's own files (without a root): those of at most so many bytes are read all the same, which is cheaper than opening them twice; `file` is undefined then
 */
export async function openMedia(input: MediaInput, options: SourceOptions, readAtOnce?: number): Promise<OpenedMedia> {
  const place = locate(input, options)
  if (place.type === 'path' && readAtOnce !== undefined && options.root === undefined) {
    const { bytes } = await readMediaAtOnce(place.path, Math.min(readAtOnce, options.maxBytes))
    if (bytes !== undefined) return inMemory(bytes)
  }
  if (place.type !== 'path') return inMemory(await bytesOf(place, options))
  const file = await openMediaFile(place.path, options)
  return { bytes: file, file }
}

function inMemory(whole: Uint8Array): OpenedMedia {
  return { bytes: memorySource(whole), file: undefined, whole }
}

type Place =
  | { readonly type: 'path'; readonly path: string }
  | { readonly type: 'data'; readonly url: string }
  | { readonly type: 'http'; readonly url: string; readonly http: HttpAccess }
  | { readonly type: 'bytes'; readonly bytes: Uint8Array }
  | { readonly type: 'stream'; readonly stream: AsyncIterable<Uint8Array> | ReadableStream<Uint8Array> }

const isHttp = (text: string): boolean => /^https?:/i.test(text)

/** Whether this process has to read it before another one can decode it: what lies on a server or in a stream. */
export function isRemote(input: MediaInput): input is Exclude<MediaInput, Uint8Array> {
  return !(input instanceof Uint8Array) && (typeof input !== 'string' || isHttp(input))
}

function locate(input: MediaInput, { root, http }: SourceOptions): Place {
  if (input instanceof Uint8Array) return { type: 'bytes', bytes: input }
  const text = input instanceof URL ? input.href : input
  if (typeof text !== 'string') {
    if (typeof text === 'object' && text !== null && ('getReader' in text || Symbol.asyncIterator in text))
      return { type: 'stream', stream: text }
    throw new ModalignError({
      code: 'SOURCE_INVALID',
      got: text === null ? 'null' : typeof text,
      expected: 'a path, a URL, bytes or a stream',
    })
  }
  if (isHttp(text)) {
    if (http !== undefined) return { type: 'http', url: text, http }
    if (root === undefined || input instanceof URL) throw notAllowed(text)
  }
  if (input instanceof URL && root !== undefined) throw notAllowed(text)
  // Below a root, text is a path, and what looks like a URL is refused as one.
  if (root !== undefined) return { type: 'path', path: text }
  if (/^data:/i.test(text)) return { type: 'data', url: text }
  if (/^file:/i.test(text)) return { type: 'path', path: pathOf(text) }
  if (/^[a-z][a-z0-9+.-]+:\/\//i.test(text)) throw notAllowed(text)
  return { type: 'path', path: text }
}

function notAllowed(url: string): ModalignError {
  const isServer = isHttp(url)
  return new ModalignError({
    code: 'URL_NOT_ALLOWED',
    file: sourceName(url),
    got: isServer ? 'the URL of a server' : `the scheme ${url.slice(0, url.indexOf(':') + 1)}`,
    expected: isServer ? 'a file, unless servers are allowed' : 'a path, or a file:, data:, http: or https: URL',
    hint: isServer ? 'name the host in the option http, or download the file first' : undefined,
  })
}

function pathOf(url: string): string {
  try {
    return fileURLToPath(url)
  } catch (error) {
    throw new ModalignError({
      code: 'URL_INVALID',
      got: error instanceof Error ? error.message : String(error),
      expected: 'a file URL of this machine in UTF-8',
      cause: error,
    })
  }
}

async function bytesOf(place: Exclude<Place, { type: 'path' }>, options: SourceOptions): Promise<Uint8Array> {
  if (place.type === 'data') return decodeDataUrl(place.url, options)
  if (place.type === 'http') return await guardedFetch(place.url, { ...place.http, ...options })
  if (place.type === 'stream') return await collected(place.stream, options)
  if (place.bytes.length > options.maxBytes) throw tooLarge(`${place.bytes.length} bytes`, options)
  return place.bytes
}

function tooLarge(got: string, { maxBytes, tooLargeCode = 'FILE_TOO_LARGE' }: SourceOptions): ModalignError {
  return new ModalignError({ code: tooLargeCode, got, expected: `at most ${maxBytes} bytes` })
}

async function collected(stream: AsyncIterable<Uint8Array> | ReadableStream<Uint8Array>, options: SourceOptions): Promise<Uint8Array> {
  const { maxBytes, timeoutMs, signal } = options
  signal?.throwIfAborted()
  const reader = 'getReader' in stream ? readerOf(stream) : stream[Symbol.asyncIterator]()
  let timer: NodeJS.Timeout | undefined
  let abort = (): void => {}
  const stopped = new Promise<never>((_, reject) => {
    abort = () => reject(signal?.reason)
    signal?.addEventListener('abort', abort, { once: true })
    timer = setTimeout(
      () =>
        reject(
          new ModalignError({ code: 'SOURCE_TIMEOUT', got: `no end of the stream after ${timeoutMs} ms`, expected: 'a stream that ends' }),
        ),
      timeoutMs,
    )
  })
  try {
    const chunks: Uint8Array[] = []
    let received = 0
    for (;;) {
      const { done, value } = await Promise.race([reader.next(), stopped])
      if (done === true) break
      if (!(value instanceof Uint8Array))
        throw new ModalignError({ code: 'SOURCE_INVALID', got: `a stream of ${typeof value}`, expected: 'a stream of bytes (Uint8Array)' })
      received += value.length
      if (received > maxBytes) throw tooLarge(`more than ${maxBytes} bytes`, options)
      chunks.push(value)
    }
    const whole = Buffer.concat(chunks)
    return new Uint8Array(whole.buffer, whole.byteOffset, whole.length)
  } catch (error) {
    // The stream is not needed any more; how it takes that is not the caller's error. A stalled iterator's return waits for its next: a Node stream is ended itself.
    if ('destroy' in stream && typeof stream.destroy === 'function') stream.destroy()
    void Promise.resolve(reader.return?.()).catch(() => undefined)
    throw error
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', abort)
  }
}

function readerOf(stream: ReadableStream<Uint8Array>): AsyncIterator<Uint8Array> {
  const reader = stream.getReader()
  return {
    async next() {
      const { done, value } = await reader.read()
      return done || value === undefined ? { done: true, value: undefined } : { done: false, value }
    },
    async return() {
      await reader.cancel()
      return { done: true, value: undefined }
    },
  }
}
