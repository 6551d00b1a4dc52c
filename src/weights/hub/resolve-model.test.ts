/** Models by name, against a Hub of our own on the loopback interface. */
import { createHash } from 'node:crypto'
import { mkdtemp, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { errorData } from '../../errors.ts'
import { hubSettings } from './hub-settings.ts'
import { parseModelName } from './model-name.ts'
import { type DownloadProgress, type ResolveOptions, resolveModel } from './resolve-model.ts'

const commit = 'c'.repeat(40)
const repo = 'acme/tiny'
const sha = (algorithm: string, ...parts: readonly (string | Uint8Array)[]): string =>
  parts.reduce((hash, part) => hash.update(part), createHash(algorithm)).digest('hex')
const gitOid = (bytes: Uint8Array): string => sha('sha1', `blob ${bytes.length}\0`, bytes)

const weights = Uint8Array.from({ length: 300_000 }, (_, index) => (index * 7919) >> 5)
const published: Readonly<Record<string, Uint8Array>> = {
  'config.json': Buffer.from('{"model_type":"llama"}'),
  'tokenizer.json': Buffer.from('{}'),
  'model.safetensors': weights,
  'pytorch_model.bin': Buffer.from('pickle'),
  'README.md': Buffer.from('# tiny'),
  'onnx/model_q4.onnx': Buffer.from('onnx'),
  'onnx/model_q4.onnx_data': Buffer.from('data'),
  'tiny.Q8_0.gguf': Buffer.from('GGUF'),
}

/** What a repository of OpenCLIP's has besides. */
const openClip: Readonly<Record<string, Uint8Array>> = {
  'open_clip_config.json': Buffer.from('{"model_cfg":{}}'),
  'open_clip_model.safetensors': weights.subarray(1000),
}

interface Entry {
  readonly type: string
  readonly path: string
  readonly size: number
  readonly oid: string
  readonly lfs?: { readonly oid: string; readonly size: number; readonly pointerSize: number }
}
const entryOf = (path: string, bytes: Uint8Array): Entry => ({
  type: 'file',
  path,
  size: bytes.length,
  oid: gitOid(bytes),
  ...(path.endsWith('.safetensors') && { lfs: { oid: sha('sha256', bytes), size: bytes.length, pointerSize: 130 } }),
})

type Answer = (request: IncomingMessage, response: ServerResponse) => boolean
/** What this test's server does otherwise; false: as usual. */
let answer: Answer = () => false
let requests: { readonly url: string; readonly range: string | undefined; readonly authorization: string | undefined }[] = []
let entries: readonly Entry[] = []
let endpoint = ''
let elsewhere = ''

function sendFile(request: IncomingMessage, response: ServerResponse, bytes: Uint8Array): void {
  const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
  if (from > 0) response.writeHead(206, { 'content-range': `bytes ${from}-${bytes.length - 1}/${bytes.length}` })
  response.end(bytes.subarray(from))
}

function usual(request: IncomingMessage, response: ServerResponse): void {
  const url = new URL(request.url ?? '/', 'http://hub')
  if (url.pathname.startsWith(`/api/models/${repo}/revision/`)) {
    const known = ['main', 'refs/pr/1'].includes(decodeURIComponent(url.pathname.split('/revision/')[1] ?? ''))
    response.writeHead(known ? 200 : 404).end(JSON.stringify({ _id: '1', id: repo, sha: commit, lastModified: '2026-01-01T00:00:00Z' }))
  } else if (url.pathname === `/api/models/${repo}/tree/${commit}`) {
    // Two pages.
    const half = url.searchParams.has('cursor') ? entries.slice(3) : entries.slice(0, 3)
    if (!url.searchParams.has('cursor')) response.setHeader('link', `<${endpoint}${url.pathname}?recursive=true&cursor=2>; rel="next"`)
    response.end(JSON.stringify(half))
  } else if (url.pathname.startsWith(`/${repo}/resolve/${commit}/`)) {
    const path = url.pathname.slice(`/${repo}/resolve/${commit}/`.length)
    const bytes = published[path] ?? openClip[path]
    if (bytes === undefined) response.writeHead(404).end()
    else if (path.endsWith('.safetensors')) response.writeHead(302, { location: `${elsewhere}/${path}` }).end()
    else sendFile(request, response, bytes)
  } else response.writeHead(404).end()
}

const listener =
  (then: (request: IncomingMessage, response: ServerResponse) => void) =>
  (request: IncomingMessage, response: ServerResponse): void => {
    const { range, authorization, host } = request.headers
    requests.push({ url: `http://${host}${request.url}`, range, authorization })
    if (!answer(request, response)) then(request, response)
  }
const hub = createServer(listener(usual))
const storage = createServer(
  listener((request, response) => {
    const path = request.url?.slice(1) ?? ''
    sendFile(request, response, published[path] ?? openClip[path] ?? new Uint8Array())
  }),
)
const listening = (server: typeof hub): Promise<string> =>
  new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => {
      const address = server.address()
      resolve(`http://127.0.0.1:${typeof address === 'object' ? address?.port : ''}`)
    })
  })

beforeAll(async () => {
  endpoint = await listening(hub)
  elsewhere = (await listening(storage)).replace('127.0.0.1', 'localhost')
})
afterAll(() => {
  for (const server of [hub, storage]) {
    server.closeAllConnections()
    server.close()
  }
})

interface World {
  readonly cache: string
  readonly resolve: (name?: string, options?: Partial<ResolveOptions>, environment?: NodeJS.ProcessEnv) => Promise<string>
  readonly failure: (...given: Parameters<World['resolve']>) => Promise<ReturnType<typeof errorData>>
}

async function world(otherwise: Answer = () => false): Promise<World> {
  const cache = await mkdtemp(join(tmpdir(), 'modalign-hub-'))
  onTestFinished(() => rm(cache, { recursive: true }))
  answer = otherwise
  requests = []
  entries = Object.entries(published).map(([path, bytes]) => entryOf(path, bytes))
  const resolve: World['resolve'] = (name = repo, options = {}, environment = {}) =>
    resolveModel(name, {
      download: true,
      retryMs: 1,
      idleMs: 5_000,
      ...options,
      environment: { HF_HUB_CACHE: cache, HF_ENDPOINT: endpoint, HF_TOKEN: 'secret', ...environment },
    })
  return { cache, resolve, failure: (...given) => resolve(...given).then((path) => ({ code: path }), errorData) }
}

const isWeights = ({ url = '' }: IncomingMessage): boolean => url === '/model.safetensors'
const folderOf = (cache: string): string => join(cache, 'models--acme--tiny')

describe('a download', () => {
  test('has the files that the model needs, in the layout of huggingface_hub, and is then found without the network', async () => {
    const { cache, resolve } = await world()
    const progress: DownloadProgress[] = []
    const folder = await resolve(repo, { onDownload: (now) => progress.push(now) })
    expect(folder).toBe(join(folderOf(cache), 'snapshots', commit))
    expect((await readdir(folder)).sort()).toEqual(['config.json', 'model.safetensors', 'tokenizer.json'])
    expect(Buffer.compare(await readFile(join(folder, 'model.safetensors')), weights)).toBe(0)
    expect(await readlink(join(folder, 'model.safetensors'))).toBe(join('..', '..', 'blobs', sha('sha256', weights)))
    expect(await readFile(join(folderOf(cache), 'refs', 'main'), 'utf8')).toBe(commit)
    expect((await readdir(join(folderOf(cache), 'blobs'))).every((name) => /^(?:[0-9a-f]{40}|[0-9a-f]{64})$/.test(name))).toBe(true)
    expect(progress.at(-1)).toMatchObject({ receivedBytes: weights.length + 24, totalBytes: weights.length + 24 })
    const sent = requests.length
    expect(await resolve(repo)).toBe(folder)
    expect(await resolve(`${repo}@${commit}`, { download: false })).toBe(folder)
    expect(await resolve(repo, {}, { HF_HUB_OFFLINE: '1' })).toBe(folder)
    expect(requests.length).toBe(sent)
  })

  test('has the files of a model with names of its own, beside what is there already', async () => {
    const { resolve, failure } = await world()
    const files = { config: 'open_clip_config.json', weights: 'open_clip_model.safetensors' }
    const plain = await resolve(repo)
    expect(await failure(repo, { files, download: false })).toMatchObject({
      code: 'HUB_NOT_CACHED',
      got: expect.stringContaining(files.config),
    })
    expect(await failure(repo, { files })).toMatchObject({ code: 'HUB_FILE', got: `no ${files.config}` })
    entries = [...entries, ...Object.entries(openClip).map(([path, bytes]) => entryOf(path, bytes))]
    const folder = await resolve(repo, { files })
    expect(folder).toBe(plain)
    expect((await readdir(folder)).sort()).toEqual(['config.json', 'model.safetensors', ...Object.keys(openClip), 'tokenizer.json'])
    for (const [path, bytes] of Object.entries(openClip)) expect(Buffer.compare(await readFile(join(folder, path)), bytes)).toBe(0)
    const sent = requests.length
    expect(await resolve(repo, { files, download: false })).toBe(folder)
    expect(requests.length).toBe(sent)
  })

  test('of files with names of their own alone is no model by the usual ones', async () => {
    const { resolve, failure } = await world()
    entries = [...Object.entries(published), ...Object.entries(openClip)].map(([path, bytes]) => entryOf(path, bytes))
    const folder = await resolve(repo, { files: { config: 'open_clip_config.json', weights: 'open_clip_model.safetensors' } })
    expect((await readdir(folder)).sort()).toEqual(Object.keys(openClip))
    expect(await failure(repo, { download: false })).toMatchObject({ code: 'HUB_NOT_CACHED' })
  })

  test('shows its token to the Hub alone', async () => {
    const { resolve } = await world()
    await resolve()
    const [there, other] = [requests.filter(({ url }) => url.startsWith(endpoint)), requests.filter(({ url }) => url.startsWith(elsewhere))]
    expect(there.length).toBeGreaterThan(3)
    expect(there.every(({ authorization }) => authorization === 'Bearer secret')).toBe(true)
    expect(other.map(({ authorization }) => authorization)).toEqual([undefined])
  })

  test('goes on where the connection was cut, in the same run and in the next', async () => {
    let cuts = 0
    const { cache, resolve, failure } = await world((request, response) => {
      if (!isWeights(request) || cuts >= 2) return false
      cuts += 1
      const from = cuts === 1 ? 0 : 100_000
      if (from > 0) response.writeHead(206, { 'content-range': `bytes ${from}-299999/300000`, 'content-length': 300_000 - from })
      else response.writeHead(200, { 'content-length': 300_000 })
      response.write(weights.subarray(from, from + 100_000), () => setTimeout(() => response.destroy(), 20))
      return true
    })
    const stop = new AbortController()
    const aborted = failure(repo, {
      signal: stop.signal,
      onDownload: ({ file, receivedBytes }) => {
        if (file === 'model.safetensors' && receivedBytes >= 200_000) stop.abort(new DOMException('enough', 'AbortError'))
      },
    })
    expect((await aborted).code).toBe('ABORTED')
    expect(await failure(repo, { download: false })).toMatchObject({ code: 'HUB_NOT_CACHED' })
    expect(await readdir(folderOf(cache))).toEqual(['blobs'])
    const folder = await resolve()
    expect(Buffer.compare(await readFile(join(folder, 'model.safetensors')), weights)).toBe(0)
    const ranges = requests
      .filter(({ url }) => url.endsWith(`${elsewhere.slice(-5)}/model.safetensors`))
      .map(({ range }) => Number(/\d+/.exec(range ?? '0')?.[0]))
    expect(ranges[0]).toBe(0)
    expect(ranges.slice(1).every((from) => from >= 100_000)).toBe(true)
  })

  test('begins again where the server cannot go on, or where what was left is wrong', async () => {
    const { cache, resolve } = await world((request, response) => {
      if (!isWeights(request) || request.headers.range === undefined) return false
      response.end(weights)
      return true
    })
    await resolve(`${repo}/tiny.Q8_0.gguf`)
    const part = join(folderOf(cache), 'blobs', `${sha('sha256', weights)}.modalign-part`)
    await writeFile(part, weights.subarray(0, 5_000))
    const folder = await resolve()
    expect(Buffer.compare(await readFile(join(folder, 'model.safetensors')), weights)).toBe(0)
    await rm(folderOf(cache), { recursive: true })
    answer = () => false
    await resolve(`${repo}/tiny.Q8_0.gguf`)
    await writeFile(part, new Uint8Array(5_000))
    expect(Buffer.compare(await readFile(join(await resolve(), 'model.safetensors')), weights)).toBe(0)
  })

  test.each([
    [
      'of another content',
      (request: IncomingMessage, response: ServerResponse) => response.end(Buffer.alloc(weights.length, request.url)),
      'HTTP_CHECKSUM',
    ],
    ['that never ends', (_: IncomingMessage, response: ServerResponse) => response.end(Buffer.alloc(weights.length + 1)), 'HTTP_LENGTH'],
    ['that is too short', (_: IncomingMessage, response: ServerResponse) => response.end(), 'HTTP_LENGTH'],
  ])('of a file %s leaves nothing that looks complete', async (_, send, code) => {
    const { cache, failure } = await world((request, response) => {
      if (isWeights(request)) send(request, response)
      return isWeights(request)
    })
    expect((await failure()).code).toBe(code)
    expect((await readdir(folderOf(cache))).sort()).toEqual(['blobs'])
    expect(
      (await readdir(join(folderOf(cache), 'blobs'))).filter((name) => name.startsWith(sha('sha256', weights)) && !name.endsWith('-part')),
    ).toEqual([])
    expect((await failure(repo, { download: false })).code).toBe('HUB_NOT_CACHED')
  })

  test('of a small file with another checksum is refused, too', async () => {
    const { failure } = await world((request, response) => {
      if (!request.url?.endsWith('/config.json')) return false
      response.end('{"model_type":"lambs"}')
      return true
    })
    expect((await failure()).code).toBe('HTTP_CHECKSUM')
  })

  test('waits for a server that is busy, but not for ever', async () => {
    let busy = 2
    const { resolve, failure } = await world((_, response) => {
      if (busy-- > 0) response.writeHead(503).end()
      return busy >= 0
    })
    await resolve()
    busy = Number.POSITIVE_INFINITY
    expect((await failure(`${repo}@refs/pr/1`)).code).toBe('HUB_UNAVAILABLE')
  })

  test('by several at once is made once', async () => {
    const { cache, resolve } = await world()
    const folders = await Promise.all([resolve(), resolve(), resolve()])
    expect(new Set(folders).size).toBe(1)
    expect(Buffer.compare(await readFile(join(folders[0] ?? '', 'model.safetensors')), weights)).toBe(0)
    expect(requests.filter(({ url }) => url.startsWith(elsewhere))).toHaveLength(1)
    expect((await readdir(join(folderOf(cache), 'blobs'))).filter((name) => name.includes('.'))).toEqual([])
  })
})

describe('what may be named', () => {
  test('one file: GGUF alone, ONNX with its data', async () => {
    const { resolve, failure } = await world()
    const gguf = await resolve(`${repo}/tiny.Q8_0.gguf@main`)
    expect(await readFile(gguf, 'utf8')).toBe('GGUF')
    const onnx = await resolve(`${repo}/onnx/model_q4.onnx`)
    expect((await readdir(join(onnx, '..'))).sort()).toEqual(['model_q4.onnx', 'model_q4.onnx_data'])
    expect(await failure(`${repo}/other.gguf`)).toMatchObject({ code: 'HUB_FILE', hint: expect.stringContaining('tiny.Q8_0.gguf') })
  })

  test('another revision has its own ref', async () => {
    const { cache, resolve } = await world()
    await resolve(`${repo}@refs/pr/1`)
    expect(await readFile(join(folderOf(cache), 'refs', 'refs', 'pr', '1'), 'utf8')).toBe(commit)
  })

  test.each([
    '/a/b',
    './a/b',
    '../a',
    '~/a',
    'a',
    'a/b/c',
    'a//b',
    'a/..',
    'a/b@',
    'a/b@../x',
    'a/b@x/',
    'a--b/c',
    'a/b/../c.gguf',
    'a/.b',
    'a\\b/c',
    '',
  ])('%j is a path', async (text) => {
    expect(parseModelName(text)).toBeUndefined()
    expect(await resolveModel(text, { download: true, environment: {} })).toBe(text)
  })

  test('no name leads out of its folder', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom('a', '.', '/', '@', '-', '~', '\\', '\0', ':') }), (text) => {
        const name = parseModelName(text)
        if (name === undefined) return
        expect(`${name.repo}/${name.file ?? ''}/${name.revision}`.split('/')).not.toContain('..')
        expect(join('/cache', 'refs', name.revision)).toMatch(/^\/cache\/refs\/./)
      }),
    )
  })
})

describe('refusals', () => {
  test('nothing is sent unless it was asked for', async () => {
    const { failure } = await world()
    expect(await failure(repo, { download: false })).toMatchObject({ code: 'HUB_NOT_CACHED', hint: expect.stringContaining('--download') })
    expect(await failure(repo, {}, { HF_HUB_OFFLINE: '1' })).toMatchObject({ code: 'HUB_OFFLINE' })
    expect(requests).toEqual([])
  })

  test('without the package it says what to install', async () => {
    const { failure } = await world()
    const { ModalignError } = await import('../../errors.ts')
    const library = () => Promise.reject(new ModalignError({ code: 'DEPENDENCY_MISSING', hint: 'npm install @huggingface/hub' }))
    expect((await failure(repo, { library })).code).toBe('DEPENDENCY_MISSING')
  })

  test.each([
    [401, 'HUB_ACCESS'],
    [403, 'HUB_ACCESS'],
    [404, 'HUB_UNKNOWN'],
  ])('status %d', async (status, code) => {
    const { failure } = await world((_, response) => {
      response.writeHead(status, { 'content-type': 'application/json' }).end('{"error":"no"}')
      return true
    })
    expect((await failure()).code).toBe(code)
  })

  test.each([
    ['names that lead out', { ...entryOf('../../../evil.safetensors', weights) }],
    ['absolute names', { ...entryOf('/tmp/evil.safetensors', weights) }],
  ])('%s are passed over', async (_, evil) => {
    const { cache, failure } = await world()
    entries = [...entries.filter(({ path }) => path !== 'model.safetensors'), evil]
    expect((await failure()).code).toBe('HUB_FILE')
    expect(await readdir(cache)).toEqual([])
  })

  test.each([
    ['a checksum that is a path', { oid: '../../x' }],
    ['a size below zero', { size: -1 }],
    ['a size that is no integer', { size: 1e300 }],
    ['a configuration of a terabyte', { size: 2 ** 40 }],
  ])('%s', async (_, change) => {
    const { cache, failure } = await world()
    entries = entries.map((entry) => (entry.path === 'config.json' ? { ...entry, ...change } : entry))
    expect((await failure()).code).toBe('HUB_LISTING')
    expect(await readdir(cache)).toEqual([])
  })

  test('weights that no disk holds', async () => {
    const { failure } = await world()
    entries = entries.map((entry) => (entry.lfs === undefined ? entry : { ...entry, lfs: { ...entry.lfs, size: 2 ** 52 } }))
    expect((await failure()).code).toBe('DISK_FULL')
  })

  test.each([
    ['no JSON', (response: ServerResponse) => response.end('<html>')],
    ['endless JSON', (response: ServerResponse) => response.end(Buffer.alloc(17 * 2 ** 20, 32))],
    [
      'a next page elsewhere',
      (response: ServerResponse) => response.writeHead(200, { link: `<${elsewhere}/steal>; rel="next"` }).end('[]'),
    ],
    [
      'pages without end',
      (response: ServerResponse) =>
        response.writeHead(200, { link: `<${endpoint}/api/models/${repo}/tree/${commit}>; rel="next"` }).end('[]'),
    ],
  ])('a list that is %s', async (_, send) => {
    const { failure } = await world((request, response) => {
      const isList = request.url?.includes('/tree/') === true
      if (isList) send(response)
      return isList
    })
    expect((await failure()).code).toBe('HUB_LISTING')
    expect(requests.some(({ url }) => url.endsWith('/steal'))).toBe(false)
  })

  test('an endpoint that is no http address', async () => {
    const { failure } = await world()
    expect((await failure(repo, {}, { HF_ENDPOINT: 'file:///etc' })).code).toBe('HUB_ENDPOINT')
  })
})

test('the cache is where the environment says', () => {
  const at = (environment: NodeJS.ProcessEnv) => hubSettings(environment).cacheFolder
  expect(at({ HF_HUB_CACHE: '/a', HF_HOME: '/b' })).toBe('/a')
  expect(at({ HF_HOME: '/b', XDG_CACHE_HOME: '/c' })).toBe('/b/hub')
  expect(at({ XDG_CACHE_HOME: '/c' })).toBe('/c/huggingface/hub')
  expect(at({})).toMatch(/\.cache\/huggingface\/hub$/)
})
