import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { bundledFiles, bundleForBrowsers, findChromium, withPage } from '../../test/chromium.ts'
import { skipWithout } from '../../test/skip.ts'
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
  const bundled = bundleForBrowsers(pageModule, fileURLToPath(new URL('.', import.meta.url)), { external: ['onnxruntime-web/*'] })

  test('reaches none of the native runtime', async () => {
    const inputs = Object.keys((await bundled).metafile.inputs)
    expect(inputs.some((path) => path.endsWith('src/runtime/host.ts'))).toBe(true)
    expect(inputs.filter((path) => /node_modules/.test(path) && !/node_modules\/(zod|@bufbuild\/protobuf)\//.test(path))).toEqual([])
    expect(inputs.filter((path) => /runtime\/(node|native|local|rpc)\.ts$/.test(path))).toEqual([])
  })

  skipWithout(findChromium().missing).test(
    'in Chromium: WASM on two threads and WebGPU on a software adapter give the known values; auto keeps off the software adapter',
    async () => {
      // An import map in place of a bundler: ONNX Runtime's modules as they are published.
      const imports = { 'onnxruntime-web/wasm': '/ort.wasm.bundle.min.mjs', 'onnxruntime-web/webgpu': '/ort.webgpu.bundle.min.mjs' }
      const html = `<!doctype html><script type="importmap">${JSON.stringify({ imports })}</script>`
      const evaluate = "import('/page.js').then((module) => module.outcome())"
      const results: unknown = await withPage(bundledFiles(await bundled), (page) => page.evaluate(evaluate), html)
      expect(results).toEqual({
        isolated: true,
        wasm: { device: 'wasm', error: expect.closeTo(0, 6), passedOver: '' },
        webgpu: { device: 'webgpu', error: expect.closeTo(0, 6), passedOver: '' },
        auto: { device: 'wasm', error: expect.closeTo(0, 6), passedOver: expect.stringContaining('software') },
      })
    },
    180_000,
  )
})
