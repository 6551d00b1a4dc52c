import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { build } from 'esbuild'
import { chromium } from 'playwright-core'
import { afterAll, describe, expect, test } from 'vitest'
import { float32Tensor, type TensorValue } from '../tensors.ts'
import { createLocalSession } from './local.ts'
import { createSession } from './node.ts'
import { probeError, probeFeeds, probeModel } from './probe.ts'
import { createWebSession } from './web.ts'

const fixture = (name: string) => readFile(new URL(`../../test/fixtures/runtime/${name}.onnx`, import.meta.url))
const numbers = (value: TensorValue | undefined) => Array.from(value?.data ?? [], Number)

describe('onnxruntime-web in Node', () => {
  test('createWebSession computes the same on WASM; auto says why WebGPU was passed over', async () => {
    await using session = await createWebSession({ bytes: probeModel() })
    expect(session.device).toBe('wasm')
    expect(session.passedOver).toMatchObject([{ device: 'webgpu', reason: expect.stringContaining('navigator.gpu') }])
    expect(session.inputs).toEqual([{ name: 'x', dtype: 'float32', dims: ['batch', 3] }])
    expect(probeError(await session.run(probeFeeds))).toBeLessThan(1e-6)
  })

  test('sessions take turns; carried values work as on the native runtime', async () => {
    await using cache = await createWebSession({ bytes: await fixture('cache') }, { device: 'wasm' })
    await using probe = await createWebSession({ bytes: probeModel() }, { device: 'wasm' })
    await cache.setCarried({ past: float32Tensor(new Float32Array(0), [1, 0, 2]) })
    const step = (x: number) => cache.run({ x: float32Tensor(Float32Array.of(x, x), [1, 1, 2]) }, { carry: { present: 'past' } })
    const [first, other, second] = await Promise.all([step(1), probe.run(probeFeeds), step(2)])
    expect([numbers(first.total), numbers(second.total)]).toEqual([[2], [6]])
    expect(probeError(other)).toBeLessThan(1e-6)
  })

  test('refusals are ours', async () => {
    const bytes = probeModel()
    await expect(createWebSession({ bytes }, { device: 'webgpu' })).rejects.toMatchObject({ code: 'RUNTIME_DEVICE_UNAVAILABLE' })
    await expect(createWebSession({ bytes }, { device: 'cpu' })).rejects.toMatchObject({ code: 'RUNTIME_DEVICE_UNAVAILABLE' })
    await expect(createWebSession({ bytes }, { threads: 2 })).rejects.toMatchObject({
      code: 'RUNTIME_OPTIONS',
      details: { field: '/threads' },
    })
    await expect(createWebSession({ bytes }, { wasmPath: '/' } as never)).rejects.toMatchObject({
      code: 'RUNTIME_OPTIONS',
      details: { field: '/wasmPath' },
    })
    await expect(createWebSession({ bytes, externalRoot: '/' })).rejects.toMatchObject({ code: 'RUNTIME_EXTERNAL_ROOT' })
    await expect(createWebSession({ bytes: bytes.subarray(0, 40) })).rejects.toMatchObject({ code: 'RUNTIME_MODEL_INVALID' })
  })

  test('createSession({ device: wasm }): a worker, several threads, the same values as the CPU provider', async () => {
    await using wasm = await createSession({ bytes: await fixture('products') }, { device: 'wasm', threads: 2 })
    await using cpu = await createLocalSession({ bytes: await fixture('products') }, { device: 'cpu' })
    expect(wasm.device).toBe('wasm')
    const x = float32Tensor(
      Float32Array.from({ length: 64 * 64 }, (_, i) => Math.sin(i) / 8),
      [64, 64],
    )
    const expected = numbers((await cpu.run({ x })).p8)
    const largest = Math.max(...expected.map(Math.abs))
    for (const [i, value] of numbers((await wasm.run({ x })).p8).entries())
      expect(Math.abs(value - (expected[i] ?? Number.NaN))).toBeLessThan(1e-5 * largest)
  })

  test('a second number of threads in one thread is refused, not ignored', async () => {
    await using _ = await createLocalSession({ bytes: probeModel() }, { device: 'wasm', threads: 1 })
    await expect(createLocalSession({ bytes: probeModel() }, { device: 'wasm', threads: 3 })).rejects.toMatchObject({
      code: 'RUNTIME_OPTIONS',
      details: { field: '/threads' },
    })
  })
})

const browser = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((path) => existsSync(path))
if (browser === undefined) console.warn("skipped: onnxruntime-web in a browser: no Chromium found; install Debian's package chromium")

/** What the page runs: the probe on each device, and on what `auto` takes. */
const pageModule = `
  import { createWebSession } from './web.ts'
  import { probeError, probeFeeds, probeModel } from './probe.ts'
  export async function outcome() {
    const outcome = { isolated: crossOriginIsolated }
    for (const options of [{ device: 'wasm', threads: 2 }, { device: 'webgpu' }, {}]) {
      const session = await createWebSession({ bytes: probeModel() }, options)
      outcome[options.device ?? 'auto'] = {
        device: session.device,
        error: probeError(await session.run(probeFeeds)),
        passedOver: session.passedOver.map(({ reason }) => reason).join(),
      }
      await session.dispose()
    }
    return outcome
  }
`

describe('the module for browsers', () => {
  // esbuild refuses Node's modules on this platform, so that it bundles at all is half of the test.
  const bundled = build({
    stdin: {
      contents: pageModule,
      resolveDir: new URL('.', import.meta.url).pathname,
      loader: 'ts',
    },
    bundle: true,
    splitting: true,
    outdir: 'out',
    write: false,
    format: 'esm',
    platform: 'browser',
    external: ['onnxruntime-web/*'],
    metafile: true,
    logLevel: 'silent',
  })

  test('reaches no module of Node and none of the native runtime', async () => {
    const inputs = Object.keys((await bundled).metafile.inputs)
    expect(inputs.some((path) => path.endsWith('src/runtime/host.ts'))).toBe(true)
    expect(inputs.filter((path) => /node_modules/.test(path) && !/node_modules\/(zod|@zod)\//.test(path))).toEqual([])
    expect(inputs.filter((path) => /runtime\/(node|native|local|rpc)\.ts$/.test(path))).toEqual([])
  })

  describe.skipIf(browser === undefined)('in Chromium', () => {
    const dist = new URL('../../node_modules/onnxruntime-web/dist/', import.meta.url)
    const server = createServer(async ({ url = '/' }, response) => {
      const name = url.slice(1)
      response.setHeader('Cross-Origin-Opener-Policy', 'same-origin')
      response.setHeader('Cross-Origin-Embedder-Policy', 'require-corp')
      const chunk = (await bundled).outputFiles.find(({ path }) => path.endsWith(`/${name}`))
      if (name === '') {
        const imports = { 'onnxruntime-web/wasm': '/ort.wasm.bundle.min.mjs', 'onnxruntime-web/webgpu': '/ort.webgpu.bundle.min.mjs' }
        response.setHeader('Content-Type', 'text/html')
        response.end(`<!doctype html><script type="importmap">${JSON.stringify({ imports })}</script>`)
      } else if (chunk !== undefined) {
        response.setHeader('Content-Type', 'text/javascript')
        response.end(chunk.contents)
      } else if (/^ort[\w.-]+\.(mjs|wasm)$/.test(name) && existsSync(new URL(name, dist))) {
        response.setHeader('Content-Type', name.endsWith('.wasm') ? 'application/wasm' : 'text/javascript')
        response.end(await readFile(new URL(name, dist)))
      } else {
        response.statusCode = 404
        response.end()
      }
    })
    afterAll(() => server.close())

    test('WASM on two threads and WebGPU on a software adapter give the known values; auto keeps off the software adapter', async () => {
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
      const address = server.address()
      const port = typeof address === 'object' && address !== null ? address.port : 0
      const launched = await chromium.launch({
        executablePath: browser ?? '',
        args: ['--no-sandbox', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'],
      })
      try {
        const page = await launched.newPage()
        const errors: string[] = []
        page.on('pageerror', (error) => errors.push(error.message))
        await page.goto(`http://127.0.0.1:${port}/`)
        const results: unknown = await page.evaluate("import('/stdin.js').then((module) => module.outcome())")
        expect(errors).toEqual([])
        expect(results).toEqual({
          isolated: true,
          wasm: { device: 'wasm', error: expect.closeTo(0, 6), passedOver: '' },
          webgpu: { device: 'webgpu', error: expect.closeTo(0, 6), passedOver: '' },
          auto: { device: 'wasm', error: expect.closeTo(0, 6), passedOver: expect.stringContaining('software') },
        })
      } finally {
        await launched.close()
      }
    })
  })
})
