import { mkdir, mkdtemp, readFile, realpath, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { float32Tensor, type NamedTensors, type TensorValue } from '../tensors.ts'
import { createLocalSession } from './local.ts'
import { probeError, probeExpected, probeFeeds, probeModel } from './probe.ts'

const fixture = (name: string) => readFile(new URL(`../../test/fixtures/runtime/${name}.onnx`, import.meta.url))
const tokens = (...values: number[]): TensorValue => float32Tensor(Float32Array.from(values), [1, values.length / 2, 2])
const numbers = (value: TensorValue | undefined) => Array.from(value?.data ?? [], Number)

describe('createLocalSession', () => {
  test('computes what NumPy computed in float64', async () => {
    await using session = await createLocalSession({ bytes: probeModel() }, { device: 'cpu' })
    const { y } = await session.run(probeFeeds)
    expect(y?.dims).toEqual([2, 4])
    for (const [i, value] of numbers(y).entries()) expect(value).toBeCloseTo(probeExpected[i] ?? Number.NaN, 6)
    expect(probeError({})).toBe(Number.POSITIVE_INFINITY)
  })

  test('the probe in the source is the model that make.py wrote', async () => {
    expect(Buffer.from(probeModel()).equals(await fixture('probe'))).toBe(true)
  })

  test('describes inputs and outputs, named sizes included', async () => {
    await using session = await createLocalSession({ bytes: await fixture('cache') }, { device: 'cpu' })
    expect(session.device).toBe('cpu')
    expect(session.inputs).toEqual([
      { name: 'past', dtype: 'float32', dims: ['batch', 'past', 2] },
      { name: 'x', dtype: 'float32', dims: ['batch', 'tokens', 2] },
    ])
    expect(session.outputs).toEqual([
      { name: 'present', dtype: 'float32', dims: ['batch', 'past + tokens', 2] },
      { name: 'total', dtype: 'float32', dims: [] },
    ])
  })

  test.each(['cpu', 'wasm'] as const)('every type goes in and comes out unchanged, extremes included: %s', async (device) => {
    const feeds: NamedTensors = {
      in_float: { dtype: 'float32', dims: [2], data: Float32Array.of(1.5, Number.NaN) },
      in_double: { dtype: 'float64', dims: [2], data: Float64Array.of(Math.PI, -0) },
      in_float16: { dtype: 'float16', dims: [2], data: Uint16Array.of(0x3c00, 0xfbff) },
      in_int64: { dtype: 'int64', dims: [2], data: BigInt64Array.of(2n ** 63n - 1n, -(2n ** 63n)) },
      in_int32: { dtype: 'int32', dims: [2], data: Int32Array.of(2 ** 31 - 1, -(2 ** 31)) },
      in_int16: { dtype: 'int16', dims: [2], data: Int16Array.of(32767, -32768) },
      in_int8: { dtype: 'int8', dims: [2], data: Int8Array.of(127, -128) },
      in_uint64: { dtype: 'uint64', dims: [2], data: BigUint64Array.of(2n ** 64n - 1n, 0n) },
      in_uint32: { dtype: 'uint32', dims: [2], data: Uint32Array.of(2 ** 32 - 1, 0) },
      in_uint16: { dtype: 'uint16', dims: [2], data: Uint16Array.of(65535, 0) },
      in_uint8: { dtype: 'uint8', dims: [2], data: Uint8Array.of(255, 0) },
      in_bool: { dtype: 'bool', dims: [2], data: Uint8Array.of(1, 0) },
    }
    await using session = await createLocalSession({ bytes: await fixture('types') }, { device })
    const outputs = await session.run(feeds)
    for (const [name, value] of Object.entries(feeds)) expect(outputs[name.replace('in_', 'out_')]).toEqual(value)
  })

  test('takes feeds in memory shared between threads', async () => {
    await using session = await createLocalSession({ bytes: probeModel() }, { device: 'cpu' })
    const shared = new Float32Array(new SharedArrayBuffer(24))
    shared.set(probeFeeds.x?.dtype === 'float32' ? probeFeeds.x.data : [])
    expect(probeError(await session.run({ x: float32Tensor(shared, [2, 3]) }))).toBeLessThan(1e-6)
  })

  test('carried outputs feed the next run, stay where they are, and can be set, overridden and cleared', async () => {
    await using session = await createLocalSession({ bytes: await fixture('cache') }, { device: 'cpu' })
    const carry = { present: 'past' }
    await expect(session.run({ x: tokens(1, 2) }, { carry })).rejects.toMatchObject({ code: 'RUNTIME_FEED_MISSING' })

    await session.setCarried({ past: float32Tensor(new Float32Array(0), [1, 0, 2]) })
    const first = await session.run({ x: tokens(1, 2) }, { carry })
    expect(Object.keys(first)).toEqual(['total'])
    expect(numbers(first.total)).toEqual([3])
    expect(numbers((await session.run({ x: tokens(3, 4, 5, 6) }, { carry })).total)).toEqual([21])
    // Without `carry` the cache is read and not advanced.
    expect(numbers((await session.run({ x: tokens(1, 1) })).present)).toEqual([1, 2, 3, 4, 5, 6, 1, 1])
    expect(numbers((await session.run({ x: tokens(1, 1) })).total)).toEqual([23])
    // A feed wins for its run.
    expect(numbers((await session.run({ past: tokens(10, 10), x: tokens(1, 1) })).total)).toEqual([22])
    // Runs fail without moving the cache.
    await expect(session.run({ x: float32Tensor(new Float32Array(4), [2, 1, 2]) }, { carry })).rejects.toMatchObject({
      code: 'RUNTIME_FEED_SHAPE',
    })
    expect(numbers((await session.run({ x: tokens(0, 0) })).total)).toEqual([21])

    await session.setCarried({})
    await expect(session.run({ x: tokens(1, 1) })).rejects.toMatchObject({ code: 'RUNTIME_FEED_MISSING', details: { field: '/past' } })
  })

  test.each([
    [{ nothing: 'past' }, 'RUNTIME_CARRY'],
    [{ present: 'nothing' }, 'RUNTIME_CARRY'],
    [{ total: 'past' }, 'RUNTIME_CARRY'],
  ])('carry %o is refused', async (carry, code) => {
    await using session = await createLocalSession({ bytes: await fixture('cache') }, { device: 'cpu' })
    await expect(session.run({ past: tokens(1, 1), x: tokens(1, 1) }, { carry })).rejects.toMatchObject({ code })
  })

  test('fetch chooses outputs; unknown, carried or no outputs are refused', async () => {
    await using session = await createLocalSession({ bytes: await fixture('cache') }, { device: 'cpu' })
    const feeds = { past: tokens(1, 1), x: tokens(2, 2) }
    expect(Object.keys(await session.run(feeds, { fetch: ['total'] }))).toEqual(['total'])
    expect(await session.run(feeds, { fetch: [], carry: { present: 'past' } })).toEqual({})
    for (const fetch of [['y'], ['present'], []])
      await expect(session.run(feeds, { fetch, ...(fetch.length > 0 && { carry: { present: 'past' } }) })).rejects.toMatchObject({
        code: 'RUNTIME_FETCH',
      })
  })

  test('refuses what is not a model, and models of types that are not ours', async () => {
    const bytes = probeModel()
    for (const device of ['cpu', 'auto'] as const) {
      await expect(createLocalSession({ bytes: bytes.subarray(0, 50) }, { device })).rejects.toMatchObject({
        code: 'RUNTIME_MODEL_INVALID',
      })
    }
    await expect(createLocalSession({ bytes: new Uint8Array(0) }, { device: 'cpu' })).rejects.toMatchObject({
      code: 'RUNTIME_MODEL_INVALID',
    })
    await expect(createLocalSession({ bytes: await fixture('text') }, { device: 'cpu' })).rejects.toMatchObject({
      code: 'RUNTIME_MODEL_TYPE',
    })
  })

  test('external weights: below a folder reached through a link, or as bytes; a missing folder is an error', async () => {
    const folder = await realpath(await mkdtemp(join(tmpdir(), 'modalign-runtime-')))
    try {
      const weights = new Uint8Array(4096 + 16)
      new Float32Array(weights.buffer, 4096).set([10, 20, 30, 40])
      await mkdir(join(folder, 'real', 'weights'), { recursive: true })
      await writeFile(join(folder, 'real', 'weights', 'shard.bin'), weights)
      await symlink(join(folder, 'real'), join(folder, 'link'))
      const bytes = await fixture('external')
      const feeds = { x: float32Tensor(Float32Array.of(1, 2, 3, 4), [4]) }
      for (const source of [
        { bytes, externalRoot: join(folder, 'link') },
        { bytes, externalData: [{ path: 'weights/shard.bin', data: weights }] },
      ]) {
        await using session = await createLocalSession(source, { device: 'cpu', prepacking: false })
        expect(numbers((await session.run(feeds)).y)).toEqual([11, 22, 33, 44])
      }
      for (const externalRoot of [join(folder, 'none'), join(folder, 'real', 'weights', 'shard.bin')])
        await expect(createLocalSession({ bytes, externalRoot }, { device: 'cpu' })).rejects.toMatchObject({
          code: 'RUNTIME_EXTERNAL_ROOT',
        })
    } finally {
      await rm(folder, { recursive: true })
    }
  })

  test('after dispose every call is refused; disposing again is harmless', async () => {
    const session = await createLocalSession({ bytes: probeModel() }, { device: 'cpu' })
    await session.dispose()
    await session.dispose()
    await expect(session.run(probeFeeds)).rejects.toMatchObject({ code: 'RUNTIME_DISPOSED' })
    await expect(session.setCarried({})).rejects.toMatchObject({ code: 'RUNTIME_DISPOSED' })
  })
})
