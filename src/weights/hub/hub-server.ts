/** The Hub's server: what a revision is, which files it has, and their bytes. `@huggingface/hub` knows the addresses; every byte comes through `guardedStream`. */
import { z } from 'zod'
import { errorData, ModalignError } from '../../errors.ts'
import { type GuardedStream, guardedStream } from '../../io/guarded-fetch.ts'
import type { Arriving } from '../../io/resumable-file.ts'
import { commitPattern, type HubSettings, type ModelName, modelNameText } from './model-name.ts'

export interface HubFile {
  readonly path: string
  readonly bytes: number
  /** As the cache names the file's bytes. */
  readonly etag: string
  readonly digest: { readonly algorithm: 'sha1' | 'sha256'; readonly hex: string; readonly prefix?: string }
}

export interface HubServer {
  /** The commit that a revision stands for now. */
  commit(): Promise<string>
  files(commit: string): Promise<readonly HubFile[]>
  read(commit: string, file: HubFile, from: number): Promise<Arriving>
}

/** Loads the package; a parameter so that its absence can be tried. */
export type HubLibrary = () => Promise<Pick<typeof import('@huggingface/hub'), 'listFiles' | 'modelInfo'>>

export interface HubTimes {
  /** Longest silence of the server. Default 30 s. */
  readonly idleMs?: number | undefined
  /** First pause before what failed is tried again; it doubles. Default 500. */
  readonly retryMs?: number | undefined
}

const largestAnswerBytes = 16 * 2 ** 20
const mostFiles = 20_000
const mostAnswers = 100

const entrySchema = z.looseObject({
  type: z.string(),
  path: z.string().max(1024),
  size: z.int().min(0),
  oid: z.string().regex(commitPattern),
  lfs: z.looseObject({ oid: z.string().regex(/^[0-9a-f]{64}$/), size: z.int().min(0) }).optional(),
})

/** Whether the same request may succeed a little later. */
export function isPassing(error: unknown): boolean {
  return ['HTTP_FAILED', 'HTTP_TIMEOUT', 'HUB_UNAVAILABLE'].includes(errorData(error).code)
}

/** @throws ModalignError `DEPENDENCY_MISSING` */
export async function hubLibrary(): ReturnType<HubLibrary> {
  try {
    return await import('@huggingface/hub')
  } catch (cause) {
    throw new ModalignError({
      code: 'DEPENDENCY_MISSING',
      got: 'no package @huggingface/hub',
      expected: 'the optional package that downloads models',
      hint: 'npm install @huggingface/hub, or download the model by other means and name its folder',
      cause,
    })
  }
}

/** @throws ModalignError `HUB_UNKNOWN`, `HUB_ACCESS`, `HUB_UNAVAILABLE`, `HUB_LISTING`, `HTTP_*`, `URL_*`; all methods */
export function hubServer(
  library: Awaited<ReturnType<HubLibrary>>,
  settings: HubSettings,
  name: ModelName,
  { idleMs = 30_000, signal }: HubTimes & { readonly signal?: AbortSignal | undefined },
): HubServer {
  const { endpoint, token, ownServer } = settings
  const home = new URL(endpoint)
  const safe = home.protocol === 'https:' || /^(?:localhost|127\..*|\[::1\])$/.test(home.hostname)
  const headers = token !== undefined && safe ? { authorization: `Bearer ${token}` } : {}
  let answers = 0

  async function ask(url: string, from = 0): Promise<GuardedStream> {
    const answer = await guardedStream(url, {
      // Large files lie on other hosts, whose names nobody promises.
      hosts: ownServer ? ['*:*'] : ['*'],
      privateAddresses: ownServer ? 'allow' : 'refuse',
      headers,
      idleMs,
      from,
      signal,
    })
    if (answer.status === 200 || answer.status === 206) return answer
    answer[Symbol.dispose]()
    throw refusal(answer.status, name, settings)
  }

  /** For the library: one answer in memory. The next page's address is the server's word, so it is checked. */
  const fetch = async (input: string | URL | Request): Promise<Response> => {
    const url = new URL(input instanceof Request ? input.url : input)
    if (url.origin !== home.origin || ++answers > mostAnswers) {
      const got = url.origin === home.origin ? `more than ${mostAnswers} pages` : `a page on ${url.host}`
      throw listing(name, got, `a list of files on ${home.host}`)
    }
    using answer = await ask(url.href)
    const parts: Uint8Array<ArrayBuffer>[] = []
    let bytes = 0
    for await (const chunk of answer.chunks()) {
      bytes += chunk.length
      if (bytes > largestAnswerBytes) throw listing(name, `more than ${largestAnswerBytes} bytes`, 'a list of files')
      parts.push(new Uint8Array(chunk))
    }
    const { link } = answer.headers
    return new Response(new Blob(parts), {
      status: 200,
      headers: { 'content-type': 'application/json', ...(typeof link === 'string' && { link }) },
    })
  }
  const place = { hubUrl: endpoint, fetch }

  return {
    async commit() {
      if (commitPattern.test(name.revision)) return name.revision
      const { sha } = await library
        .modelInfo({ ...place, name: name.repo, revision: name.revision, additionalFields: ['sha'] })
        .catch((error: unknown) => Promise.reject(unreadable(error, name)))
      if (typeof sha === 'string' && commitPattern.test(sha)) return sha
      throw listing(name, `the commit ${String(sha)}`, '40 hexadecimal digits')
    },
    async files(commit) {
      const found: HubFile[] = []
      try {
        for await (const entry of library.listFiles({ ...place, repo: name.repo, revision: commit, recursive: true })) {
          if (entry.type !== 'file') continue
          if (found.length === mostFiles) throw listing(name, `more than ${mostFiles} files`, 'the files of a model')
          const { path, size, oid, lfs } = entrySchema.parse(entry)
          found.push(
            lfs === undefined
              ? { path, bytes: size, etag: oid, digest: { algorithm: 'sha1', hex: oid, prefix: `blob ${size}\0` } }
              : { path, bytes: lfs.size, etag: lfs.oid, digest: { algorithm: 'sha256', hex: lfs.oid } },
          )
        }
      } catch (error) {
        throw unreadable(error, name)
      }
      return found
    },
    async read(commit, { path }, from) {
      const answer = await ask(`${endpoint}/${name.repo}/resolve/${commit}/${path.split('/').map(encodeURIComponent).join('/')}`, from)
      return { from: startOf(answer, from), chunks: answer.chunks() }
    },
  }
}

/** A server that cannot go on from a place sends all of it. */
function startOf({ status, headers }: GuardedStream, from: number): number {
  if (status === 200) return 0
  const start = /^bytes (\d+)-/.exec(headers['content-range'] ?? '')?.[1]
  if (start !== undefined && Number(start) === from) return from
  throw new ModalignError({
    code: 'HTTP_FAILED',
    got: `the range ${headers['content-range'] ?? 'of no name'}`,
    expected: `bytes from ${from} on`,
  })
}

function refusal(status: number, name: ModelName, { endpoint, token }: HubSettings): ModalignError {
  const file = modelNameText(name)
  if (status === 401 || status === 403) {
    return new ModalignError({
      code: 'HUB_ACCESS',
      file,
      got: `status ${status} of ${endpoint}`,
      expected: 'a model that may be downloaded',
      hint:
        token === undefined
          ? 'no such model, or a private or gated one: check the name, or set HF_TOKEN'
          : 'HF_TOKEN does not give access: accept the terms on its page',
    })
  }
  if (status === 404) {
    const hint = 'check the name and the revision'
    return new ModalignError({
      code: 'HUB_UNKNOWN',
      file,
      got: `status 404 of ${endpoint}`,
      expected: 'a model and revision of the Hub',
      hint,
    })
  }
  return new ModalignError({
    code: 'HUB_UNAVAILABLE',
    file,
    got: `status ${status} of ${endpoint}`,
    expected: 'an answer',
    hint: 'run it again later: what has arrived is kept',
  })
}

function listing(name: ModelName, got: string, expected: string): ModalignError {
  return new ModalignError({ code: 'HUB_LISTING', file: modelNameText(name), got, expected, hint: 'is HF_ENDPOINT a Hugging Face server?' })
}

function unreadable(error: unknown, name: ModelName): unknown {
  if (error instanceof ModalignError || (error instanceof Error && error.name === 'AbortError')) return error
  return listing(name, error instanceof Error ? error.message : String(error), "the Hub's JSON")
}
