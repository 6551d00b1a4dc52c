import { describe, expect, test } from 'vitest'
import type { TestHandlers } from '../../test/fixtures/runtime/rpc-worker.ts'
import { ModalignError } from '../errors.ts'
import { connectWorker } from './rpc.ts'

const entry = new URL('../../test/fixtures/runtime/rpc-worker.ts', import.meta.url)

describe('calls to a worker', () => {
  test('requests, results and worker data cross; buffers named in a transfer list move', async () => {
    await using worker = connectWorker<TestHandlers>(entry, { workerData: { a: 1 } })
    expect(await Promise.all([1, 2, 3].map((x) => worker.call('square', x)))).toEqual([1, 4, 9])
    expect(await worker.call('workerData', undefined)).toEqual({ a: 1 })
    const values = Float32Array.of(1, 2, 3)
    expect(await worker.call('double', values)).toEqual(Float32Array.of(2, 4, 6))
    expect(values.length).toBe(3)
    await worker.call('double', values, { transfer: [values.buffer] })
    expect(values.length).toBe(0)
  })

  test('errors cross as data, defects with their stack', async () => {
    await using worker = connectWorker<TestHandlers>(entry)
    const refused = await worker.call('refuse', undefined).catch((error: unknown) => error)
    expect(refused).toBeInstanceOf(ModalignError)
    expect(refused).toMatchObject({ code: 'TEST_REFUSED', details: { file: 'a.txt', line: 3, got: 'x', expected: 'y', hint: 'z' } })
    const crashed = await worker.call('crash', undefined).catch((error: unknown) => error)
    expect(crashed).toMatchObject({
      code: 'INTERNAL',
      details: { got: 'a defect' },
      cause: { stack: expect.stringContaining('rpc-worker.ts') },
    })
  })

  test('what cannot be cloned is an error of that call alone', async () => {
    await using worker = connectWorker<TestHandlers>(entry)
    await expect(worker.call('square', (() => 1) as never)).rejects.toMatchObject({ code: 'RUNTIME_REQUEST' })
    await expect(worker.call('unclonable', undefined)).rejects.toMatchObject({ code: 'INTERNAL' })
    expect(await worker.call('square', 5)).toBe(25)
  })

  test('events arrive in order and before the result that was sent after them', async () => {
    const events: number[] = []
    await using worker = connectWorker<TestHandlers, number>(entry, { onEvent: (event) => events.push(event) })
    await worker.call('count', 5)
    expect(events).toEqual([1, 2, 3, 4, 5])
  })

  test.each([
    ['exit', 'exit code 7'],
    ['throwLater', 'nobody catches this'],
  ] as const)('a worker that dies (%s) rejects pending and later calls', async (method, got) => {
    await using worker = connectWorker<TestHandlers>(entry)
    const bystander = worker.call('waitForSignal', undefined)
    bystander.catch(() => undefined)
    await expect(worker.call(method, undefined)).rejects.toMatchObject({ code: 'RUNTIME_WORKER_DIED', details: { got } })
    await expect(bystander).rejects.toMatchObject({ code: 'RUNTIME_WORKER_DIED' })
    await expect(worker.call('square', 2)).rejects.toMatchObject({ code: 'RUNTIME_WORKER_DIED', details: { got } })
  })

  test('a module that does not load is a worker that died', async () => {
    await using worker = connectWorker<TestHandlers>(new URL('./no-such-worker.ts', import.meta.url))
    await expect(worker.call('square', 2)).rejects.toMatchObject({ code: 'RUNTIME_WORKER_DIED' })
  })
})

describe('abort', () => {
  test('rejects at once with an AbortError; the worker lives on', async () => {
    await using worker = connectWorker<TestHandlers>(entry)
    const controller = new AbortController()
    const waiting = worker.call('waitForSignal', undefined, { signal: controller.signal })
    controller.abort('no longer needed')
    await expect(waiting).rejects.toMatchObject({ name: 'AbortError', message: 'no longer needed' })
    await expect(worker.call('square', 2, { signal: controller.signal })).rejects.toMatchObject({ name: 'AbortError' })
    await expect(worker.call('square', 2, { signal: new AbortController().signal })).resolves.toBe(4)
  })

  test('a handler that blocks its thread learns it through shared memory', async () => {
    await using worker = connectWorker<TestHandlers>(entry)
    await worker.call('square', 1)
    await expect(worker.call('spin', undefined, { signal: AbortSignal.timeout(50) })).rejects.toMatchObject({ name: 'AbortError' })
    expect(await worker.call('spins', undefined)).toEqual(['the event could not come'])
  })
})

describe('dispose', () => {
  test('rejects pending calls at once, aborts their handlers, and may be called again', async () => {
    const worker = connectWorker<TestHandlers>(entry)
    const waiting = worker.call('waitForSignal', undefined)
    const spinning = worker.call('spin', undefined)
    const disposal = worker.dispose()
    await expect(waiting).rejects.toMatchObject({ code: 'RUNTIME_DISPOSED' })
    await expect(spinning).rejects.toMatchObject({ code: 'RUNTIME_DISPOSED' })
    expect(worker.dispose()).toBe(disposal)
    await disposal
    await expect(worker.call('square', 2)).rejects.toMatchObject({ code: 'RUNTIME_DISPOSED' })
  })

  test('reports what the worker’s own dispose threw', async () => {
    const worker = connectWorker<TestHandlers>(entry, { workerData: { failDispose: true } })
    await expect(worker.dispose()).rejects.toMatchObject({ code: 'TEST_DISPOSE' })
  })
})
