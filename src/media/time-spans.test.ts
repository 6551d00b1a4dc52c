/** Spans go where the samples and frames go: a sound that is loud, and a film that is white, within a span only. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { Span } from './audio-limits.ts'
import { type FrameSampling, sampledIndices } from './frame-sampling.ts'
import { whisperLogMel } from './log-mel.ts'
import { remapSpan, spanSteps, windowSpans } from './time-spans.ts'
import { type AudioPreprocessing, preprocessAudio } from './waveform-preprocess.ts'
import type { SoundWindows } from './waveform-windows.ts'

const rate = 16_000
const seconds = fc.tuple(fc.double({ min: 0, max: 3, noNaN: true }), fc.double({ min: 0, max: 3, noNaN: true }))
const spans = seconds.map(([a, b]): Span => ({ startSeconds: Math.min(a, b), endSeconds: Math.max(a, b) }))

const windowings: Readonly<Record<string, SoundWindows | undefined>> = {
  whole: undefined,
  'one after another': { kind: 'consecutive', samples: rate, step: rate, fill: 'zeros', most: 100 },
  'overlapping, the rest left short': { kind: 'consecutive', samples: rate, step: 12_000, fill: 'none', most: 100 },
  'filled with the sound again': { kind: 'consecutive', samples: 4 * rate, step: 4 * rate, fill: 'repeat', most: 100 },
  'spread evenly': { kind: 'spread', samples: rate, count: 4 },
}

/** Loud within the span, silent elsewhere. */
function burst({ startSeconds, endSeconds }: Span, length: number): Float32Array {
  return Float32Array.from({ length }, (_, at) => (at / rate >= startSeconds && at / rate < endSeconds ? (at % 2 === 0 ? 0.5 : -0.3) : 0))
}

describe.each(Object.entries(windowings))('a sound in windows: %s', (_, windows) => {
  const sounds = fc.record({ span: spans, length: fc.integer({ min: 800, max: 3 * rate }) })
  const shownIn = (span: Span, spec: AudioPreprocessing, length: number) => {
    const prepared = preprocessAudio({ sampleRateHz: rate, samples: burst(span, length) }, spec)
    const found = windowSpans(span, prepared.windows, rate)
    return prepared.windows.map((window, index) => ({
      ...window,
      data: prepared.values[index]?.data,
      span: found.find((one) => one.window === index),
    }))
  }

  test('every loud sample lies within the span of its window, and every sample of the span is loud', () => {
    const spec: AudioPreprocessing = { kind: 'waveform', sampleRateHz: rate, normalize: false, ...(windows && { windows }) }
    fc.assert(
      fc.property(sounds, ({ span, length }) => {
        for (const { length: own, data, span: shown } of shownIn(span, spec, length)) {
          const [from, to] = shown === undefined ? [0, 0] : [shown.startSeconds * rate, shown.endSeconds * rate]
          // By sample: the first that was misplaced.
          const misplaced = Array.from({ length: own }, (__, at) => at).find((at) =>
            data?.[at] === 0 ? at >= from + 1 && at <= to - 1 : at <= from - 1 || at >= to + 1,
          )
          expect(misplaced).toBeUndefined()
        }
      }),
      { numRuns: 10 },
    )
  })

  test('frames of a log-mel picture are loud within it, and quiet half a transform away from it', () => {
    const mel = whisperLogMel()
    const spec: AudioPreprocessing = { kind: 'log-mel', mel, axes: ['band', 'frame'], ...(windows && { windows }) }
    fc.assert(
      fc.property(sounds, ({ span, length }) => {
        for (const { length: own, data, span: shown } of shownIn(span, spec, length)) {
          if (data === undefined || shown === undefined || shown.endSeconds - shown.startSeconds < 0.05) continue
          const frames = data.length / 80
          const level = (frame: number): number =>
            Math.max(...Array.from({ length: 80 }, (__, band) => Number(data[band * frames + frame])))
          const loudest = Math.max(...Array.from({ length: frames }, (__, frame) => level(frame)))
          // Frames lie 10 ms apart, and each is a transform over 25 ms around its time.
          for (let frame = 0; frame < Math.min(frames, Math.floor(own / 160)); frame++) {
            const time = frame / 100
            if (time > shown.startSeconds && time < shown.endSeconds - 0.001) expect(level(frame)).toBeGreaterThan(loudest - 1)
            if (time < shown.startSeconds - 0.013 && time > 0.013) expect(level(frame)).toBeLessThan(loudest - 1)
            if (time > shown.endSeconds + 0.013 && time < own / rate - 0.013) expect(level(frame)).toBeLessThan(loudest - 1)
          }
        }
      }),
      { numRuns: 4 },
    )
  })
})

describe('sampled frames of a film', () => {
  const samplings: readonly FrameSampling[] = [
    { type: 'uniform', frames: 6 },
    { type: 'uniform', frames: 9, rule: 'segment-centres' },
    { type: 'fps', fps: 3 },
    { type: 'times', seconds: [0.2, 0.9, 2.4] },
  ]
  const films = fc.record({
    gaps: fc.array(fc.double({ min: 0.01, max: 0.3, noNaN: true }), { minLength: 2, maxLength: 40 }),
    span: spans,
    sampling: fc.constantFrom(...samplings),
  })

  test('a white frame is among the steps of its span; the others of them began before it', () => {
    fc.assert(
      fc.property(films, ({ gaps, span, sampling }) => {
        let at = 0
        const times = gaps.map((gap) => {
          at += gap
          return at - gap
        })
        const frames = times.map((time) => ({ seconds: time, isKey: true }))
        const taken = sampledIndices(frames, at, sampling, 'repeat').map((index) => times[index] ?? 0)
        const white = (time: number): boolean => time >= span.startSeconds && time < span.endSeconds
        const steps = spanSteps(span, { time: taken }, at)
        for (const [step, time] of taken.entries()) {
          // A frame that was taken twice lasts no time the first time.
          const last = taken[step + 1] !== time
          if (white(time) && last && time < at) expect(steps).toContain(step)
          if (steps.includes(step) && !white(time)) expect(time).toBeLessThanOrEqual(span.startSeconds)
        }
      }),
    )
  })
})

test('steps of overlapping windows last as long as their neighbours', () => {
  const time = [0, 0.5, 1, 0.75, 1.25, 1.75]
  expect(spanSteps({ startSeconds: 1.3, endSeconds: 1.4 }, { time })).toEqual([2, 4])
  expect(spanSteps({ startSeconds: 2.3, endSeconds: 2.4 }, { time })).toEqual([])
  expect(spanSteps({ startSeconds: 1, endSeconds: 1 }, { time })).toEqual([2, 3])
  expect(spanSteps({ startSeconds: 1, endSeconds: 2 }, {})).toEqual([])
})

test('a span in the part that was read', () => {
  const part = { startSeconds: 10, endSeconds: 20 }
  expect(remapSpan({ startSeconds: 5, endSeconds: 15 }, part)).toEqual({ startSeconds: 0, endSeconds: 5, visible: 0.5 })
  expect(remapSpan({ startSeconds: 12, endSeconds: 12 }, part)).toEqual({ startSeconds: 2, endSeconds: 2, visible: 1 })
  expect(remapSpan({ startSeconds: 1, endSeconds: 10 }, part)).toBeUndefined()
  expect(remapSpan({ startSeconds: 20, endSeconds: 21 }, part)).toBeUndefined()
  expect(() => remapSpan({ startSeconds: 2, endSeconds: 1 }, part)).toThrow(expect.objectContaining({ code: 'MEDIA_SPAN' }))
})
