import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { release } from './release.ts'

test('what is released is gone at once, and counts no more', async () => {
  await turn()
  const views = Array.from({ length: 64 }, () => new Float32Array(2 ** 18).fill(1))
  const before = process.memoryUsage().arrayBuffers
  release(views.map(({ buffer }) => buffer))
  expect(views.map(({ length }) => length)).toEqual(views.map(() => 0))
  expect(before - process.memoryUsage().arrayBuffers).toBeGreaterThan(60 * 2 ** 20)
})

test('shared memory, empty buffers and buffers that are gone already are left alone', () => {
  const shared = new SharedArrayBuffer(8)
  const gone = new ArrayBuffer(8)
  release([gone])
  release([shared, new ArrayBuffer(0), gone])
  expect(shared.byteLength).toBe(8)
})
