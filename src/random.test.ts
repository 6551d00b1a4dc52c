import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { normals, permutation, philox4x32, randomStream, uniforms } from './random.ts'

describe('philox4x32', () => {
  /** The known answers that the authors publish with Random123 (kat_vectors, philox4x32 10). */
  test.each([
    [[0, 0, 0, 0], [0, 0], '6627e8d5 e169c58d bc57ac4c 9b00dbd8'],
    [[0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff], [0xffffffff, 0xffffffff], '408f276d 41c83b0e a20bc7c6 6d5451fd'],
    [[0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0], 'd16cfe09 94fdcceb 5001e420 24126ea1'],
  ])('counter %j, key %j', ([c0 = 0, c1 = 0, c2 = 0, c3 = 0], [k0 = 0, k1 = 0], expected) => {
    const out = new Uint32Array(4)
    philox4x32(out, c0, c1, c2, c3, k0, k1)
    expect([...out].map((word) => word.toString(16).padStart(8, '0')).join(' ')).toBe(expected)
  })

  test('equals the same rounds in exact integer arithmetic', () => {
    const word = fc.integer({ min: 0, max: 0xffffffff })
    fc.assert(
      fc.property(fc.tuple(word, word, word, word), fc.tuple(word, word), (counter, key) => {
        let [x0, x1, x2, x3] = counter.map(BigInt) as [bigint, bigint, bigint, bigint]
        let [k0, k1] = key.map(BigInt) as [bigint, bigint]
        for (let round = 0; round < 10; round++) {
          const p0 = 0xd2511f53n * x0
          const p1 = 0xcd9e8d57n * x2
          ;[x0, x1, x2, x3] = [(p1 >> 32n) ^ x1 ^ k0, p1 & 0xffffffffn, (p0 >> 32n) ^ x3 ^ k1, p0 & 0xffffffffn]
          k0 = (k0 + 0x9e3779b9n) & 0xffffffffn
          k1 = (k1 + 0xbb67ae85n) & 0xffffffffn
        }
        const out = new Uint32Array(4)
        philox4x32(out, ...counter, ...key)
        expect([...out].map(BigInt)).toEqual([x0, x1, x2, x3])
      }),
    )
  })
})

describe('streams', () => {
  const key = { seed: 20_240_607, stream: 'test' }

  test('a number depends on seed, stream and index alone', () => {
    const stream = randomStream(key)
    const forward = Array.from({ length: 50 }, (_, i) => stream.uniform(i))
    const backward = Array.from({ length: 50 }, (_, i) => randomStream(key).uniform(49 - i)).reverse()
    expect(backward).toEqual(forward)
    expect(randomStream({ ...key, stream: 'other' }).uniform(0)).not.toBe(forward[0])
    expect(randomStream({ ...key, seed: key.seed + 2 ** 32 }).uniform(0)).not.toBe(forward[0])
    expect(randomStream(key).uniform(2 ** 32)).not.toBe(forward[0])
    expect(new Set(forward).size).toBe(50)
  })

  test('normals and uniforms have the moments of their distributions', () => {
    const count = 200_000
    const mean = (values: Float32Array, power: number) => values.reduce((sum, value) => sum + value ** power, 0) / count
    const z = normals(count, key)
    // Five standard errors each.
    const bound = (variance: number) => 5 * Math.sqrt(variance / count)
    expect(Math.abs(mean(z, 1))).toBeLessThan(bound(1))
    expect(Math.abs(mean(z, 2) - 1)).toBeLessThan(bound(2))
    expect(Math.abs(mean(z, 3))).toBeLessThan(bound(15))
    expect(Math.abs(mean(z, 4) - 3)).toBeLessThan(bound(96))
    const u = uniforms(count, key)
    expect(Math.abs(mean(u, 1) - 1 / 2)).toBeLessThan(bound(1 / 12))
    expect(Math.abs(mean(u, 2) - 1 / 3)).toBeLessThan(bound(4 / 45))
  })

  test('mean, deviation and range are applied; a longer array begins with the shorter one', () => {
    const standard = normals(20, key)
    normals(10, key, { mean: 3, deviation: 0.5 }).forEach((value, i) => {
      expect(value).toBeCloseTo(3 + 0.5 * (standard[i] ?? Number.NaN), 5)
    })
    const range = uniforms(1000, key, { low: -2, high: 5 })
    expect(Math.min(...range)).toBeGreaterThanOrEqual(-2)
    expect(Math.max(...range)).toBeLessThanOrEqual(5)
  })

  test.each([-1, 0.5, 2 ** 53, Number.NaN])('seed %d is refused', (seed) => {
    expect(() => randomStream({ seed, stream: '' })).toThrow(expect.objectContaining({ code: 'SEED_RANGE' }))
  })
})

describe('permutation', () => {
  test('law: a bijection for every length and key', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 3000 }), fc.nat(), fc.string(), (length, seed, stream) => {
        const order = permutation(length, { seed, stream })
        const seen = Array.from({ length }, (_, i) => order(i)).sort((a, b) => a - b)
        expect(seen).toEqual(Array.from({ length }, (_, i) => i))
      }),
    )
  })

  test('all 24 orders of four things are equally likely (chi-squared, 23 degrees of freedom)', () => {
    const counts = new Map<string, number>()
    const trials = 24_000
    for (let seed = 0; seed < trials; seed++) {
      const order = permutation(4, { seed, stream: 'order' })
      const label = [0, 1, 2, 3].map(order).join('')
      counts.set(label, (counts.get(label) ?? 0) + 1)
    }
    const expected = trials / 24
    const chiSquared = [...counts.values()].reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0)
    expect(counts.size).toBe(24)
    expect(chiSquared).toBeLessThan(52) // p = 0.0005
  })

  test('where neighbours go is not correlated (chi-squared over a 10 x 10 table of first and second value)', () => {
    const length = 1000
    const table = new Float64Array(100)
    for (let seed = 0; seed < 200; seed++) {
      const order = permutation(length, { seed, stream: 'order' })
      for (let i = 0; i + 1 < length; i += 10) {
        const cell = 10 * Math.floor(order(i) / 100) + Math.floor(order(i + 1) / 100)
        table[cell] = (table[cell] ?? 0) + 1
      }
    }
    const expected = (200 * 100) / 100
    expect(table.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0)).toBeLessThan(150) // 99 degrees of freedom, p = 0.0007
  })

  test('a place deep in ten million is reached at once', () => {
    const before = performance.now()
    const order = permutation(10_000_000, { seed: 1, stream: 'order' })
    expect(order(9_999_999)).toBe(permutation(10_000_000, { seed: 1, stream: 'order' })(9_999_999))
    expect(performance.now() - before).toBeLessThan(1000)
  })

  test('a position outside is refused', () => {
    expect(() => permutation(3, { seed: 0, stream: '' })(3)).toThrow(RangeError)
  })
})
