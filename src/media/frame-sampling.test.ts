import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { errorData } from '../errors.ts'
import { checkSampling, type FrameSampling, mostFrames, sampledIndices, shownAt, uniformIndices } from './frame-sampling.ts'

const indices = z.array(z.int())
const fixture = z
  .object({
    numpy: z.string(),
    torch: z.string(),
    cases: z.array(
      z.object({
        total: z.int(),
        frames: z.int(),
        linspace: indices,
        'linspace-rounded': indices,
        'segment-starts': indices.optional(),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(new URL('../../test/fixtures/film/sampling.json', import.meta.url), 'utf8')))

const frames = (...seconds: readonly number[]) => seconds.map((time, i) => ({ seconds: time, isKey: i % 3 === 0 }))
const regular = (count: number, fps: number) => frames(...Array.from({ length: count }, (_, i) => i / fps))
const code = (sampling: FrameSampling): string | undefined => {
  try {
    checkSampling(sampling)
    return undefined
  } catch (error) {
    return errorData(error).code
  }
}

test.each(['linspace', 'linspace-rounded', 'segment-starts'] as const)(
  `%s: the frames of NumPy ${fixture.numpy} and PyTorch ${fixture.torch}`,
  (rule) => {
    for (const { total, frames: count, [rule]: expected } of fixture.cases)
      if (expected !== undefined) expect([total, count, uniformIndices(total, count, rule)]).toEqual([total, count, expected])
  },
)

test('any number of frames of any film: exactly that many, in order, within it', () => {
  const rules = fc.constantFrom('linspace', 'linspace-rounded', 'segment-starts', 'segment-centres' as const)
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 100_000 }), fc.integer({ min: 1, max: 300 }), rules, (total, count, rule) => {
      const found = uniformIndices(total, count, rule)
      expect(found).toHaveLength(count)
      expect(found.every((index, i) => index >= (found[i - 1] ?? 0) && index < total)).toBe(true)
    }),
  )
})

test('the frame that is on the screen at a time', () => {
  const list = frames(0, 0.1, 0.5, 0.6)
  expect([0, 0.05, 0.1, 0.49, 0.5, 7].map((time) => shownAt(list, time))).toEqual([0, 0, 1, 1, 2, 3])
  expect(shownAt(frames(1, 2), 0.5)).toBe(0)
})

describe('sampling', () => {
  test('V6: fewer frames than asked: repeated, or refused', () => {
    const uniform = { type: 'uniform', frames: 8 } as const
    expect(sampledIndices(regular(1, 25), 0.04, uniform, 'repeat')).toEqual([0, 0, 0, 0, 0, 0, 0, 0])
    expect(sampledIndices(regular(5, 25), 0.2, uniform, 'repeat')).toEqual([0, 0, 1, 1, 2, 2, 3, 4])
    expect(() => sampledIndices(regular(5, 25), 0.2, uniform, 'error')).toThrow('VIDEO_TOO_SHORT')
    const times = { type: 'times', seconds: [0.05, 0.2] } as const
    expect(sampledIndices(regular(5, 25), 0.2, times, 'repeat')).toEqual([1, 4])
    expect(() => sampledIndices(regular(5, 25), 0.2, times, 'error')).toThrow('VIDEO_TOO_SHORT')
  })

  test('frames a second, by time, with a cap', () => {
    expect(sampledIndices(regular(50, 25), 2, { type: 'fps', fps: 2 }, 'repeat')).toEqual([0, 12, 25, 37])
    // A film that stands still for a second shows that frame at each moment of it.
    expect(sampledIndices(frames(0, 0.25, 1.5, 1.75), 2, { type: 'fps', fps: 2 }, 'repeat')).toEqual([0, 1, 1, 2])
    expect(sampledIndices(regular(50, 25), 2, { type: 'fps', fps: 25, maxFrames: 4 }, 'repeat')).toEqual([0, 16, 32, 49])
    expect(sampledIndices(regular(1, 25), 0.04, { type: 'fps', fps: 1 }, 'repeat')).toEqual([0])
  })

  test('key frames and scenes, thinned', () => {
    expect(sampledIndices(regular(10, 25), 0.4, { type: 'keyframes' }, 'repeat')).toEqual([0, 3, 6, 9])
    expect(sampledIndices(regular(10, 25), 0.4, { type: 'keyframes', maxFrames: 2 }, 'repeat')).toEqual([0, 9])
    expect(sampledIndices(regular(10, 25), 0.4, { type: 'scenes' }, 'repeat', [7, 4])).toEqual([0, 4, 7])
  })

  test.each<FrameSampling>([
    { type: 'uniform', frames: 0 },
    { type: 'uniform', frames: 1.5 },
    { type: 'uniform', frames: mostFrames + 1 },
    { type: 'fps', fps: 0 },
    { type: 'fps', fps: Number.NaN },
    { type: 'fps', fps: 1, maxFrames: 0 },
    { type: 'times', seconds: [] },
    { type: 'times', seconds: [-1] },
    { type: 'times', seconds: [Number.POSITIVE_INFINITY] },
    { type: 'scenes', threshold: 1 },
    { type: 'keyframes', maxFrames: -1 },
  ])('%j is refused', (sampling) => expect(code(sampling)).toBe('VIDEO_SAMPLING'))
})
