import { describe, expect, test } from 'vitest'
import { type RopeScaling, ropeScaling, rotaryFor } from './rope-scaling.ts'

const request = { theta: 10_000, headDim: 8, maxPositions: 64 }
const angles = (scaling: unknown): ReturnType<typeof rotaryFor> => {
  const parsed: RopeScaling = ropeScaling.parse(scaling)
  return rotaryFor({ ...request, scaling: parsed })
}

describe('angles of rotary positions', () => {
  test('theta^(-2i/d)', () => {
    const { frequencies } = rotaryFor(request)
    for (const [pair, expected] of [1, 0.1, 0.01, 0.001].entries()) expect(frequencies[pair]).toBeCloseTo(expected, 8)
  })

  test('a part of the head: so many channels alone', () => {
    expect(rotaryFor({ ...request, partial: 0.5 }).frequencies).toHaveLength(2)
    expect(angles({ rope_type: 'default', partial_rotary_factor: 0.5 }).frequencies).toHaveLength(2)
  })

  test('where scaling names a base, it counts', () => {
    expect(angles({ rope_type: 'default', rope_theta: 81 }).frequencies[2]).toBeCloseTo(1 / 9, 6)
  })

  test('dynamic scaling begins beyond the context, where sequences end', () => {
    expect(angles({ type: 'dynamic', factor: 4 })).toEqual(rotaryFor(request))
  })

  test('linear scaling stretches all waves, llama3 only the long ones', () => {
    const plain = rotaryFor(request).frequencies
    expect(angles({ type: 'linear', factor: 4 }).frequencies).toEqual(plain.map((f) => f / 4))
    const llama3 = { rope_type: 'llama3', factor: 4, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 32 }
    const { frequencies } = angles(llama3)
    // 32 positions are five waves of the first pair, half a wave of the second.
    expect(frequencies[0]).toBe(plain[0])
    expect(Array.from(frequencies.slice(1))).toEqual(Array.from(plain.slice(1), (f) => Math.fround(f / 4)))
  })

  test('longrope has long sequences only where the context is longer than the original one', () => {
    const scaling = { type: 'longrope', short_factor: [1, 1, 2, 2], long_factor: [4, 4, 8, 8] }
    expect(angles({ ...scaling, original_max_position_embeddings: 64 })).toMatchObject({ amplitude: 1 })
    expect(angles({ ...scaling, original_max_position_embeddings: 64 })).not.toHaveProperty('long')
    const { long, amplitude } = angles({ ...scaling, original_max_position_embeddings: 16 })
    expect(long).toMatchObject({ after: 16 })
    expect(long?.frequencies[0]).toBeCloseTo(1 / 4, 7)
    // Ding et al. 2024: sqrt(1 + ln s / ln L).
    expect(amplitude).toBeCloseTo(Math.sqrt(1.5), 7)
  })
})
