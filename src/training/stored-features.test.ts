import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { Region } from '../model/contracts.ts'
import { decodeRecord, type FeatureDtype, type FeatureKey, featureDtypes, keyText, packFeatures } from './stored-features.ts'

const key: FeatureKey = { modality: 'image', content: 'c0ffee', encoder: 'e', width: 4 }
const size = { width: 640, height: 480 }

function restored(data: Float32Array, dtype: FeatureDtype): Float32Array {
  const decoded = decodeRecord(packFeatures(key, { size, data }, dtype).bytes, key, dtype)
  if (!('features' in decoded)) throw new Error(decoded.damage)
  expect(decoded.features.size).toEqual(size)
  return decoded.features.data
}
const finite = fc.float({ noNaN: true, min: -1000, max: 1000 })
const features = fc.array(fc.tuple(finite, finite, finite, finite), { maxLength: 20 }).map((rows) => Float32Array.from(rows.flat()))

test('float32 comes back bit for bit', () => {
  fc.assert(
    fc.property(features, (data) => {
      expect(restored(data, 'float32')).toEqual(data)
    }),
  )
})

test('float16 comes back within half a unit in its last place', () => {
  fc.assert(
    fc.property(features, (data) => {
      restored(data, 'float16').forEach((value, place) => {
        const original = data[place] ?? 0
        expect(Math.abs(value - original)).toBeLessThanOrEqual(Math.max(Math.abs(original) * 2 ** -11, 2 ** -25))
      })
    }),
  )
})

test('int8 comes back within half a step of its channel', () => {
  fc.assert(
    fc.property(features, (data) => {
      const largest = [0, 0, 0, 0]
      data.forEach((value, place) => {
        largest[place % 4] = Math.max(largest[place % 4] ?? 0, Math.abs(value))
      })
      restored(data, 'int8').forEach((value, place) => {
        expect(Math.abs(value - (data[place] ?? 0))).toBeLessThanOrEqual(((largest[place % 4] ?? 0) / 127) * 0.5001 + 1e-37)
      })
    }),
  )
})

test('a float16 record with a value beyond float16 is kept in float32, and says so', () => {
  const data = Float32Array.of(1, -70_000, 3, 4)
  const { bytes, dtype } = packFeatures(key, { size, data }, 'float16')
  expect(dtype).toBe('float32')
  expect(decodeRecord(bytes, key, 'float16')).toEqual({ features: { size, data } })
})

test.each([Number.NaN, Number.POSITIVE_INFINITY])('%d is refused', (value) => {
  expect(() => packFeatures(key, { size, data: Float32Array.of(1, value, 3, 4) }, 'int8')).toThrowError(
    expect.objectContaining({ code: 'FEATURES_NOT_FINITE' }),
  )
})

describe('a damaged record is never taken for features', () => {
  const data = Float32Array.from({ length: 8 }, (_, place) => place / 3)

  test.each(featureDtypes)('a turned bit anywhere (%s)', (dtype) => {
    const { bytes } = packFeatures(key, { size, data }, dtype)
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const copy = Uint8Array.from(bytes)
      copy[bit >> 3] = (copy[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      expect(decodeRecord(copy, key, dtype)).toHaveProperty('damage')
    }
  })

  test('cut anywhere', () => {
    const { bytes } = packFeatures(key, { size, data }, 'float32')
    for (let length = 0; length < bytes.length; length++)
      expect(decodeRecord(bytes.subarray(0, length), key, 'float32')).toHaveProperty('damage')
  })

  test('of another key, in whatever way it is another', () => {
    const { bytes } = packFeatures(key, { size, data }, 'float32')
    const span: Region = { type: 'span', startSeconds: 0, endSeconds: 1 }
    const others: readonly FeatureKey[] = [
      { ...key, content: 'c0ffef' },
      { ...key, encoder: 'f' },
      { ...key, width: 8 },
      { ...key, modality: 'video' },
      { ...key, region: span },
    ]
    for (const other of others) expect(decodeRecord(bytes, other, 'float32')).toEqual({ damage: 'it belongs to another key' })
    expect(decodeRecord(bytes, key, 'float16')).toEqual({ damage: 'it belongs to another key' })
  })

  test('of any bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        expect(decodeRecord(bytes, key, 'float32')).toHaveProperty('damage')
      }),
    )
  })
})

test('two keys have one text only where they are the same', () => {
  const text = fc.string({ maxLength: 4 })
  const box = fc.record({ type: fc.constant('box' as const), x: fc.nat(3), y: fc.nat(3), width: fc.nat(3), height: fc.nat(3) })
  const keys = fc.record({
    modality: fc.constantFrom('image' as const, 'audio' as const),
    content: text,
    encoder: text,
    width: fc.nat(3),
    region: fc.option(box, { nil: undefined }),
  })
  fc.assert(
    fc.property(keys, keys, (a, b) => {
      const same = JSON.stringify(a) === JSON.stringify(b)
      expect(keyText(a, 'int8') === keyText(b, 'int8')).toBe(same)
    }),
  )
})
