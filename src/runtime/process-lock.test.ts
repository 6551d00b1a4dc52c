import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import type { TestHandlers } from '../../test/fixtures/runtime/rpc-worker.ts'
import { unlock, whileLocked } from './process-lock.ts'
import { connectWorker } from './rpc.ts'

describe('the process lock', () => {
  test('work of one thread does not overlap, and a failure frees the lock', async () => {
    const events: string[] = []
    const work = (name: string, fails = false) =>
      whileLocked(async () => {
        events.push(`${name} begins`)
        await sleep(5)
        events.push(`${name} ends`)
        if (fails) throw new Error(name)
        return name
      })
    const results = await Promise.allSettled([work('a'), work('b', true), work('c')])
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
    expect(events).toEqual(['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends'])
  })

  test('only its holder frees it: another thread waits, and a thread that ended no longer holds it', async () => {
    const holding = connectWorker<TestHandlers>(new URL('../../test/fixtures/runtime/rpc-worker.ts', import.meta.url))
    const waiting = connectWorker<TestHandlers>(new URL('../../test/fixtures/runtime/rpc-worker.ts', import.meta.url))
    await waiting.call('square', 1)
    await holding.call('lock', undefined)
    unlock(999)
    let taken = false
    const second = waiting.call('lock', undefined).then(() => {
      taken = true
    })
    await sleep(100)
    expect(taken).toBe(false)
    await holding.dispose()
    await second
    expect(taken).toBe(true)
    await waiting.dispose()
    await expect(whileLocked(async () => 'free again')).resolves.toBe('free again')
  })
})
