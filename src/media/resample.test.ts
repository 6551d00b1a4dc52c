import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { resample } from './resample.ts'

const floats = z.base64().transform((text) => {
  const bytes = Uint8Array.from(Buffer.from(text, 'base64'))
  return new Float32Array(bytes.buffer)
})
const fixture = z
  .object({
    torchaudio: z.string(),
    samples: floats,
    cases: z.array(
      z.object({
        fromHz: z.int(),
        toHz: z.int(),
        length: z.int(),
        options: z.strictObject({
          window: z.literal('kaiser').optional(),
          lowpassFilterWidth: z.int().optional(),
          rolloff: z.number().optional(),
          beta: z.number().optional(),
        }),
        float32: floats,
        /** What torchaudio's own float32 differs from its float64 by. */
        largest: z.number(),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(new URL('../../test/fixtures/audio/resample.json', import.meta.url), 'utf8')))

const largestDifference = (a: Float32Array, b: Float32Array): number =>
  a.reduce((largest, value, at) => Math.max(largest, Math.abs(value - (b[at] ?? Number.NaN))), 0)

describe(`samples as torchaudio ${fixture.torchaudio} resamples them`, () => {
  test.each(fixture.cases)('$fromHz to $toHz Hz, $length samples, $options', ({ fromHz, toHz, length, options, float32, largest }) => {
    const samples = fixture.samples.slice(0, length)
    const result = resample(samples, fromHz, toHz, options)
    expect(result.length).toBe(float32.length)
    expect(largestDifference(result, float32)).toBeLessThan(1e-6)
    const exact = resample(samples, fromHz, toHz, { ...options, precision: 'float64' })
    expect(largestDifference(exact, float32)).toBeLessThan(1e-6 + largest)
  })
})

test('a tone stays the tone, at any pair of rates', () => {
  fc.assert(
    fc.property(fc.integer({ min: 4_000, max: 50_000 }), fc.integer({ min: 4_000, max: 50_000 }), (fromHz, toHz) => {
      const tone = (rate: number, length: number): Float32Array =>
        Float32Array.from({ length }, (_, at) => Math.sin((2 * Math.PI * 400 * at) / rate))
      const result = resample(tone(fromHz, Math.ceil(fromHz / 20)), fromHz, toHz)
      const wanted = tone(toHz, result.length)
      const edge = Math.ceil((8 * toHz) / Math.min(fromHz, toHz))
      expect(result.length).toBe(Math.ceil((Math.ceil(fromHz / 20) * toHz) / fromHz))
      expect(largestDifference(result.subarray(edge, -edge), wanted.subarray(edge, -edge))).toBeLessThan(0.02)
    }),
    { numRuns: 30 },
  )
})

test('equal rates give the samples themselves; nothing gives nothing', () => {
  const samples = new Float32Array([0.5, -0.25])
  expect(resample(samples, 16_000, 16_000)).toBe(samples)
  expect(resample(new Float32Array(), 44_100, 16_000).length).toBe(0)
})

test.each([
  [0, 16_000, {}, 'AUDIO_SAMPLE_RATE'],
  [44_100.5, 16_000, {}, 'AUDIO_SAMPLE_RATE'],
  [44_100, Number.NaN, {}, 'AUDIO_SAMPLE_RATE'],
  [44_100, -1, {}, 'AUDIO_SAMPLE_RATE'],
  [1, 4_000_000, {}, 'AUDIO_TOO_LONG'],
  [44_100, 16_000, { lowpassFilterWidth: 0 }, 'AUDIO_OPTIONS'],
  [44_100, 16_000, { rolloff: 1.5 }, 'AUDIO_OPTIONS'],
  [44_100, 16_000, { beta: Number.NaN }, 'AUDIO_OPTIONS'],
])('refuses %d to %d Hz with %j', (fromHz, toHz, options, code) => {
  expect(() => resample(new Float32Array(1_000), fromHz, toHz, options)).toThrow(expect.objectContaining({ code }))
})

test('ten seconds at 44.1 kHz become 16 kHz in milliseconds', () => {
  const samples = new Float32Array(441_000).fill(0.1)
  const times = Array.from({ length: 8 }, () => {
    const start = performance.now()
    resample(samples, 44_100, 16_000)
    return performance.now() - start
  })
  // The best of eight: other processes only ever add time. Ten times what is expected, so that slow machines pass.
  expect(Math.min(...times)).toBeLessThan(100)
})
