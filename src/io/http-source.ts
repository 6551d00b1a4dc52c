import { ModalignError } from '../errors.ts'
import { type ByteSource, memorySource } from './memory-source.ts'

export interface HttpSourceOptions {
  readonly headers?: Readonly<Record<string, string>>
  /** Ends the requests under way, and with them the source. */
  readonly signal?: AbortSignal
}

/** Read at first, to learn the size: the headers of most weight files are shorter. */
const firstBytes = 2 ** 20

/**
 * A file on a server as a {@link ByteSource}: ranges are requested as they are read, and every answer must come from the file that the first one came from (its size,
 * and its ETag where the server sends one). Where the server does not do ranges, or hides them from other origins' pages, the whole file is fetched once.
 *
 * @throws ModalignError `HTTP_STATUS`, `HTTP_FAILED` (no connection, or a body cut off), `FILE_CHANGED`
 * @example
 * const weights = await readSafetensors(await httpSource('/models/projector.safetensors'))
 */
export async function httpSource(url: string | URL, options: HttpSourceOptions = {}): Promise<ByteSource> {
  const file = String(url)
  const first = await request(file, options, { offset: 0, length: firstBytes })
  const range = first.status === 206 ? contentRange(first) : undefined
  if (range === undefined) return whole(file, first.status === 200 ? first : await request(file, options))
  const start = await bodyOf(first, file, Math.min(firstBytes, range.size))
  const etag = first.headers.get('etag')
  return {
    size: range.size,
    async read(offset, length) {
      if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0 || offset + length > range.size)
        throw new ModalignError({
          code: 'FILE_RANGE',
          file,
          got: `${length} bytes from byte ${offset}`,
          expected: `a range within ${range.size} bytes`,
        })
      if (offset + length <= start.length) return start.slice(offset, offset + length)
      const response = await request(file, options, { offset, length })
      const answered = response.status === 206 ? contentRange(response) : undefined
      if (answered?.size !== range.size || answered.offset !== offset || response.headers.get('etag') !== etag) {
        await response.body?.cancel()
        throw new ModalignError({
          code: 'FILE_CHANGED',
          file,
          got: `status ${response.status}, ${response.headers.get('content-range') ?? 'no range'}`,
          expected: `bytes ${offset}-${offset + length - 1}/${range.size} of the file that was opened`,
        })
      }
      return bodyOf(response, file, length)
    },
  }
}

async function whole(file: string, response: Response): Promise<ByteSource> {
  return memorySource(await bodyOf(response, file))
}

async function request(
  file: string,
  { headers, signal }: HttpSourceOptions,
  range?: { readonly offset: number; readonly length: number },
): Promise<Response> {
  const response = await connected(file, () =>
    fetch(file, {
      headers: { ...headers, ...(range && { range: `bytes=${range.offset}-${range.offset + range.length - 1}` }) },
      ...(signal && { signal }),
    }),
  )
  // A range of an empty file cannot be satisfied: the caller asks for all of it then.
  if (response.ok || (range?.offset === 0 && response.status === 416)) return response
  await response.body?.cancel()
  throw new ModalignError({ code: 'HTTP_STATUS', file, got: `${response.status} ${response.statusText}`.trim(), expected: 'the file' })
}

async function bodyOf(response: Response, file: string, length?: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(await connected(file, () => response.arrayBuffer()))
  if (length === undefined || bytes.length === length) return bytes
  throw new ModalignError({ code: 'HTTP_FAILED', file, got: `${bytes.length} bytes`, expected: `${length}` })
}

/** `fetch` rejects with a bare TypeError for whatever goes wrong on the way. */
async function connected<T>(file: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof TypeError)) throw error
    const why = error.cause instanceof Error ? error.cause.message : error.message
    throw new ModalignError({ code: 'HTTP_FAILED', file, got: why, expected: 'an answer of the server', cause: error })
  }
}

function contentRange(response: Response): { readonly offset: number; readonly size: number } | undefined {
  const match = /^bytes (\d{1,15})-\d{1,15}\/(\d{1,15})$/.exec(response.headers.get('content-range') ?? '')
  return match === null ? undefined : { offset: Number(match[1]), size: Number(match[2]) }
}
