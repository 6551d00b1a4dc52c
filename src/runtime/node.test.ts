import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import type { Worker } from 'node:worker_threads'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { makeGraph, makeModel, makeNode, makeValueInfo } from '../onnx/build.ts'
import { encodeModel } from '../onnx/codec.ts'
import type { PixelTensor } from '../pixel-planes.ts'
import { float32Tensor, type TensorValue } from '../tensors.ts'
import { createSession } from './node.ts'
import { probeError, probeFeeds, probeModel } from './probe.ts'
import type { Session } from './session.ts'

const fixture = (name: string) => readFile(new URL(`../../test/fixtures/runtime/${name}.onnx`, import.meta.url))
const modelBytes = probeModel()
const numbers = (value: TensorValue | undefined) => Array.from(value?.data ?? [], Number)

/** Eight n x n products in a row: at n = 1024 about 17 GFLOP, long against a timer. */
const heavy = (n: number) => ({ x: float32Tensor(new Float32Array(n * n).fill(1e-3), [n, n]) })

describe('createSession', () => {
  /** One session of the probe and one of the products for the tests that do not end theirs. */
  let probe: Session
  let products: Session
  beforeAll(async () => {
    probe = await createSession({ bytes: modelBytes }, { device: 'cpu' })
    products = await createSession({ bytes: await fixture('products') }, { device: 'cpu', threads: 1 })
  })
  afterAll(async () => {
    await probe.dispose()
    await products.dispose()
  })

  test('computes in a worker; the caller keeps model and feeds, and gets buffers of its own', async () => {
    expect(modelBytes).toEqual(probeModel())
    expect(probe.inputs).toEqual([{ name: 'x', dtype: 'float32', dims: ['batch', 3] }])
    const outputs = await probe.run(probeFeeds)
    expect(probeError(outputs)).toBeLessThan(1e-6)
    expect(probeFeeds.x?.data.length).toBe(6)
    expect(probeError(await probe.run(probeFeeds))).toBeLessThan(1e-6)
  })

  test('a feed that is a view into a large or shared buffer arrives as the view', async () => {
    const values = [1, 0.5, -2, 0, 3, 0.25]
    for (const buffer of [new ArrayBuffer(1 << 20), new SharedArrayBuffer(1 << 20)]) {
      const view = new Float32Array(buffer, 4096, 6)
      view.set(values)
      expect(probeError(await probe.run({ x: float32Tensor(view, [2, 3]) }))).toBeLessThan(1e-6)
    }
  })

  test('feeds are taken when run is called: changing them afterwards changes nothing', async () => {
    const data = Float32Array.of(1, 0.5, -2, 0, 3, 0.25)
    const running = probe.run({ x: float32Tensor(data, [2, 3]) })
    data.fill(0)
    expect(probeError(await running)).toBeLessThan(1e-6)
  })

  test('a feed that is given moves; one that is part of a buffer is copied', async () => {
    const values = [1, 0.5, -2, 0, 3, 0.25]
    const given = Float32Array.from(values)
    expect(probeError(await probe.run({ x: float32Tensor(given, [2, 3]) }, { giveFeeds: true }))).toBeLessThan(1e-6)
    expect(given.length).toBe(0)
    const part = new Float32Array(7).subarray(1)
    part.set(values)
    expect(probeError(await probe.run({ x: float32Tensor(part, [2, 3]) }, { giveFeeds: true }))).toBeLessThan(1e-6)
    expect(Array.from(part)).toEqual(values)
  })

  test('pictures come as bytes, copied or given, and their tensors are made here', async () => {
    const nodes = [makeNode({ opType: 'Identity', inputs: ['x'], outputs: ['y'] })]
    const graph = makeGraph({
      nodes,
      inputs: [makeValueInfo('x', 'float32', ['pictures', 3, 1, 2])],
      outputs: [makeValueInfo('y', 'float32')],
    })
    await using session = await createSession({ bytes: encodeModel(makeModel({ graph })) }, { device: 'cpu' })
    const values = Float32Array.from({ length: 768 }, (_, at) => at / 4)
    const dims = [2, 3, 1, 2] as const
    const pixels = [Uint8Array.of(1, 2, 3, 4, 5, 6), Uint8Array.of(10, 20, 30, 40, 50, 255)]
    const expected = [0.25, 1, 64.5, 65.25, 128.75, 129.5, 2.5, 10, 69, 76.5, 135.5, 191.75]
    const { y } = await session.run({}, { pixels: { x: { dims, pixels, values } } })
    expect([y?.dims, numbers(y)]).toEqual([[2, 3, 1, 2], expected])
    expect(numbers((await session.run({}, { pixels: { x: { dims, pixels, values } }, giveFeeds: true })).y)).toEqual(expected)
    expect(pixels.map(({ length }) => length)).toEqual([0, 0])
    const wrong: readonly [PixelTensor, object][] = [
      [
        { dims, pixels: [new Uint8Array(6)], values },
        { code: 'RUNTIME_FEED_DATA', message: expect.stringContaining('1 pictures') },
      ],
      [
        { dims, pixels: [new Uint8Array(6), new Uint8Array(5)], values },
        { code: 'RUNTIME_FEED_DATA', message: expect.stringContaining('a picture of 5 bytes') },
      ],
      [
        { dims: [1, 3, 1, 2], pixels: [new Uint8Array(6)], values: new Float32Array(2) },
        { code: 'RUNTIME_FEED_DATA', message: expect.stringContaining('2 values') },
      ],
      [{ dims: [1, 3, 2, 1], pixels: [new Uint8Array(6)], values }, { code: 'RUNTIME_FEED_SHAPE' }],
    ]
    for (const [x, error] of wrong) await expect(session.run({}, { pixels: { x } })).rejects.toMatchObject(error)
    await expect(session.run({}, { pixels: { z: { dims, pixels, values } } })).rejects.toMatchObject({ code: 'RUNTIME_FEED_DATA' })
  })

  test('a run leaves the caller’s thread free', async () => {
    await products.run(heavy(16))
    const gaps: number[] = []
    let last = performance.now()
    const timer = setInterval(() => {
      gaps.push(performance.now() - last)
      last = performance.now()
    }, 5)
    const feeds = heavy(1024)
    const start = performance.now()
    await products.run(feeds)
    const elapsed = performance.now() - start
    clearInterval(timer)
    expect(elapsed).toBeGreaterThan(60)
    expect(Math.max(...gaps)).toBeLessThan(elapsed / 2)
    expect(gaps.length).toBeGreaterThan(4)
  })

  test('runs queue in the order of the calls, carried values with them', async () => {
    await using session = await createSession({ bytes: await fixture('cache') }, { device: 'cpu' })
    const setting = session.setCarried({ past: float32Tensor(new Float32Array(0), [1, 0, 2]) })
    const totals = [1, 2, 3, 4].map((x) =>
      session.run({ x: float32Tensor(Float32Array.of(x, x), [1, 1, 2]) }, { carry: { present: 'past' } }),
    )
    await setting
    expect((await Promise.all(totals)).map(({ total }) => numbers(total))).toEqual([[2], [6], [12], [20]])
  })

  test('abort rejects at once; the run under way ends unseen, its carried outputs are dropped, a queued run never begins', async () => {
    await products.run(heavy(16))
    const controller = new AbortController()
    const carry = { p8: 'x' }
    await products.setCarried({ x: float32Tensor(Float32Array.of(2), [1, 1]) })
    const aborted = [
      products.run(heavy(1024), { signal: controller.signal, carry }),
      products.run(heavy(1024), { signal: controller.signal, carry }),
    ]
    const start = performance.now()
    setTimeout(() => controller.abort(), 20)
    for (const result of await Promise.allSettled(aborted))
      expect(result).toMatchObject({ status: 'rejected', reason: { name: 'AbortError' } })
    const rejectedAfter = performance.now() - start
    // 2^9: the carried 2, not the values of the aborted runs.
    expect(numbers((await products.run({})).p8)).toEqual([512])
    const nextAfter = performance.now() - start
    await products.setCarried({})
    expect(rejectedAfter).toBeLessThan(nextAfter)
  })

  test('dispose rejects pending runs, waits for the native one, and is idempotent', async () => {
    const session = await createSession({ bytes: await fixture('products') }, { device: 'cpu', threads: 1 })
    const runs = [session.run(heavy(512)), session.run(heavy(512))]
    const outcome = Promise.allSettled(runs)
    await Promise.all([session.dispose(), session.dispose()])
    for (const result of await outcome) expect(result).toMatchObject({ status: 'rejected', reason: { code: 'RUNTIME_DISPOSED' } })
    await expect(session.run(heavy(16))).rejects.toMatchObject({ code: 'RUNTIME_DISPOSED' })
    await session[Symbol.asyncDispose]()
  })

  test('a worker that dies rejects pending and later runs, and can still be disposed', async () => {
    const workers: Worker[] = []
    const notice = (worker: Worker) => workers.push(worker)
    process.on('worker', notice)
    const session = await createSession({ bytes: await fixture('products') }, { device: 'cpu' })
    process.off('worker', notice)
    // Stopped before the call reaches it: stopped inside a native run, it would take the process with it.
    const death = workers.at(-1)?.terminate()
    const pending = session.run(heavy(16))
    pending.catch(() => undefined)
    await death
    await expect(pending).rejects.toMatchObject({ code: 'RUNTIME_WORKER_DIED' })
    await expect(session.run(heavy(16))).rejects.toMatchObject({ code: 'RUNTIME_WORKER_DIED' })
    await session.dispose()
  })

  test('feeds that do not fit are refused before they are copied', async () => {
    const cases = [
      [{ y: probeFeeds.x }, 'RUNTIME_FEED_UNKNOWN'],
      [{}, 'RUNTIME_FEED_MISSING'],
      [{ x: { dtype: 'float64', dims: [1, 3], data: new Float64Array(3) } }, 'RUNTIME_FEED_DTYPE'],
      [{ x: float32Tensor(new Float32Array(4), [1, 4]) }, 'RUNTIME_FEED_SHAPE'],
    ] as const
    for (const [feeds, code] of cases) await expect(probe.run(feeds as never)).rejects.toMatchObject({ code })
    expect(probeError(await probe.run(probeFeeds))).toBeLessThan(1e-6)
  })

  test('errors of the worker arrive as data', async () => {
    await expect(createSession({ bytes: new Uint8Array(3) }, { device: 'cpu' })).rejects.toMatchObject({ code: 'RUNTIME_MODEL_INVALID' })
    await expect(createSession({ bytes: probeModel(), externalRoot: '/no/such/folder' })).rejects.toMatchObject({
      code: 'RUNTIME_EXTERNAL_ROOT',
      details: { file: '/no/such/folder' },
    })
    await expect(createSession({ bytes: probeModel() }, { devise: 'cpu' } as never)).rejects.toMatchObject({
      code: 'RUNTIME_OPTIONS',
      details: { field: '/devise' },
    })
    await expect(createSession({} as never)).rejects.toMatchObject({ code: 'RUNTIME_MODEL_INVALID' })
  })

  const runProgram = (program: string) => {
    const imports = `
      import { readFileSync } from 'node:fs'
      import { createSession } from ${JSON.stringify(new URL('./node.ts', import.meta.url).href)}
      import { probeFeeds, probeModel } from ${JSON.stringify(new URL('./probe.ts', import.meta.url).href)}
      const products = readFileSync(new URL(${JSON.stringify(new URL('../../test/fixtures/runtime/products.onnx', import.meta.url).href)}))`
    return new Promise((resolve) => {
      execFile(
        process.execPath,
        ['--import', 'tsx', '--input-type=module', '-e', imports + program],
        { timeout: 50_000 },
        (error, stdout, stderr) => resolve({ code: error === null ? 0 : (error.code ?? error.signal), stdout, stderr }),
      )
    })
  }

  test('an idle session does not keep the process alive, a pending run does', async () => {
    const program = `
      const session = await createSession({ bytes: probeModel() }, { device: 'cpu' })
      session.run(probeFeeds).then(() => console.log('the pending run ended'))`
    expect(await runProgram(program)).toEqual({ code: 0, stdout: 'the pending run ended\n', stderr: '' })
  })

  test('process.exit during a native run gives the code that was asked for', async () => {
    const program = `
      const session = await createSession({ bytes: products }, { device: 'cpu' })
      const feeds = { x: { dtype: 'float32', dims: [1024, 1024], data: new Float32Array(1024 * 1024) } }
      for (let i = 0; i < 3; i++) session.run(feeds)
      setTimeout(() => process.exit(3), 30)`
    expect(await runProgram(program)).toEqual({ code: 3, stdout: '', stderr: '' })
  })
})
