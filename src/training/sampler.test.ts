import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { epochOf, groupedSampler, type Sampler, sampler } from './sampler.ts'

const all = ({ length, batch }: Sampler) => Array.from({ length }, (_, position) => batch(position))
const range = (length: number) => Array.from({ length }, (_, i) => i)
const ascending = (values: readonly number[]) => [...values].sort((a, b) => a - b)

describe('sampler', () => {
  test('law: every record once an epoch, batches of the asked size', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 300 }),
        fc.integer({ min: 1, max: 20 }),
        fc.nat(),
        fc.nat({ max: 5 }),
        (length, batchSize, seed, epoch) => {
          const batches = all(sampler(length, { seed, epoch, batchSize }))
          expect(ascending(batches.flat())).toEqual(range(length))
          expect(batches.slice(0, -1).every((batch) => batch.length === batchSize)).toBe(true)
        },
      ),
    )
  })

  test('the order is fixed by seed and epoch, and another epoch has another order', () => {
    const order = (seed: number, epoch: number) => all(sampler(100, { seed, epoch, batchSize: 8 }))
    expect(order(1, 0)).toEqual(order(1, 0))
    expect(order(1, 1)).not.toEqual(order(1, 0))
    expect(order(2, 0)).not.toEqual(order(1, 0))
    expect(order(1, 0).flat()).not.toEqual(range(100))
  })

  test('the order is pinned: checkpoints of older versions resume in it', () => {
    expect(all(sampler(10, { seed: 0, epoch: 0, batchSize: 10 })).flat()).toEqual([2, 3, 4, 9, 7, 0, 1, 6, 5, 8])
  })

  test('the batch size changes where batches are cut, not the order', () => {
    const order = (batchSize: number) => all(sampler(100, { seed: 3, epoch: 2, batchSize })).flat()
    expect(order(7)).toEqual(order(100))
  })

  test('without shuffling the order is the file’s; dropLast leaves the rest out', () => {
    expect(all(sampler(5, { seed: 0, epoch: 0, batchSize: 2, shuffle: false }))).toEqual([[0, 1], [2, 3], [4]])
    expect(all(sampler(5, { seed: 0, epoch: 0, batchSize: 2, shuffle: false, dropLast: true }))).toEqual([
      [0, 1],
      [2, 3],
    ])
  })

  test.each([
    [0, 1, 'SAMPLER_EMPTY'],
    [5, 0, 'SAMPLER_BATCH_SIZE'],
    [5, 1.5, 'SAMPLER_BATCH_SIZE'],
  ])('%d records in batches of %d', (length, batchSize, code) => {
    expect(() => sampler(length, { seed: 0, epoch: 0, batchSize })).toThrow(expect.objectContaining({ code }))
  })

  test('too few records for one full batch', () => {
    expect(() => sampler(3, { seed: 0, epoch: 0, batchSize: 4, dropLast: true })).toThrow(
      expect.objectContaining({ code: 'SAMPLER_EMPTY' }),
    )
  })

  test('epochOf', () => {
    expect([0, 99, 100, 250].map((step) => epochOf(step, 100))).toEqual([
      { epoch: 0, position: 0 },
      { epoch: 0, position: 99 },
      { epoch: 1, position: 0 },
      { epoch: 2, position: 50 },
    ])
  })
})

describe('groupedSampler', () => {
  const records = fc.array(fc.tuple(fc.integer({ min: 1, max: 500 }), fc.constantFrom('image', 'text', 'audio')), {
    minLength: 1,
    maxLength: 200,
  })

  test('law: every record once, no batch mixes groups, at most one short batch a group', () => {
    fc.assert(
      fc.property(records, fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 4 }), fc.nat(), (list, batchSize, window, seed) => {
        const lengths = list.map(([length]) => length)
        const groups = list.map(([, group]) => group)
        const batches = all(groupedSampler({ lengths, groups, seed, epoch: 0, batchSize, window }))
        expect(ascending(batches.flat())).toEqual(range(list.length))
        const short = new Map<string | undefined, number>()
        for (const batch of batches) {
          const group = groups[batch[0] ?? -1]
          expect(batch.every((record) => groups[record] === group)).toBe(true)
          if (batch.length < batchSize) short.set(group, (short.get(group) ?? 0) + 1)
        }
        expect([...short.values()].every((count) => count === 1)).toBe(true)
      }),
    )
  })

  test('sorting by length saves most of the padding', () => {
    const lengths = range(2000).map((i) => 1 + ((i * 7919) % 1000))
    const padding = (sample: Sampler) =>
      all(sample).reduce(
        (sum, batch) =>
          sum + batch.length * Math.max(...batch.map((i) => lengths[i] ?? 0)) - batch.reduce((s, i) => s + (lengths[i] ?? 0), 0),
        0,
      )
    const plain = padding(sampler(2000, { seed: 0, epoch: 0, batchSize: 8 }))
    expect(padding(groupedSampler({ lengths, seed: 0, epoch: 0, batchSize: 8 }))).toBeLessThan(plain / 10)
  })

  test('the longest batch comes first, unless switched off', () => {
    const lengths = range(400).map((i) => 1 + ((i * 7919) % 1000))
    const longest = (batch: readonly number[]) => Math.max(...batch.map((i) => lengths[i] ?? 0))
    const batches = all(groupedSampler({ lengths, seed: 5, epoch: 1, batchSize: 4, window: 3 }))
    expect(longest(batches[0] ?? [])).toBe(Math.max(...batches.map(longest)))
    const free = all(groupedSampler({ lengths, seed: 5, epoch: 1, batchSize: 4, window: 3, longestFirst: false }))
    expect(new Set(free.map(String))).toEqual(new Set(batches.map(String)))
    expect(free).not.toEqual(batches)
  })

  test('epochs differ, repetitions do not', () => {
    const order = (epoch: number) => all(groupedSampler({ lengths: range(50), seed: 0, epoch, batchSize: 4 }))
    expect(order(0)).toEqual(order(0))
    expect(order(0)).not.toEqual(order(1))
  })

  test('dropLast leaves short batches out', () => {
    const groups = ['a', 'a', 'a', 'b', 'b']
    const batches = all(groupedSampler({ lengths: [1, 2, 3, 4, 5], groups, seed: 0, epoch: 0, batchSize: 2, dropLast: true }))
    expect(batches.map((batch) => batch.length)).toEqual([2, 2])
  })

  test('groups of another length are refused', () => {
    expect(() => groupedSampler({ lengths: [1, 2], groups: ['a'], seed: 0, epoch: 0, batchSize: 1 })).toThrow(
      expect.objectContaining({ code: 'SAMPLER_LENGTHS' }),
    )
  })
})
