/** How a sound of any length becomes the windows that an encoder was trained on. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'

const samples = z
  .int()
  .min(1)
  .max(2 ** 30)

export const soundWindowsSchema = z
  .discriminatedUnion('kind', [
    /** One after another until the sound ends. */
    z.strictObject({
      kind: z.literal('consecutive'),
      /** Samples that a window shows. Neighbours may overlap: the next begins `step` on. */
      samples,
      step: samples,
      /**
       * What stands in a window after the sound's end. `zeros`; `repeat`: the sound again and again, cut off; `repeat-zeros`: as often as it fits
       * wholly, then zeros; `none`: nothing, the window is shorter.
       */
      fill: z.enum(['zeros', 'repeat', 'repeat-zeros', 'none']),
      /** Sounds that need more windows are refused. */
      most: z.int().min(1).max(100_000).default(1_000),
    }),
    /** So many, spread evenly from the beginning to the end; they overlap where the sound is short, which zeros prolong to one window. */
    z.strictObject({ kind: z.literal('spread'), samples, count: z.int().min(1).max(1_000) }),
  ])
  .readonly()
export type SoundWindows = z.infer<typeof soundWindowsSchema>

/** A stretch of a sound, in samples. `length` counts what is there of it. */
export interface SoundWindow {
  readonly start: number
  readonly length: number
}

/**
 * The windows of a sound of `total` samples; at least one.
 *
 * @throws {ModalignError} `AUDIO_EMPTY`, `AUDIO_TOO_LONG`
 *
 * @example
 * soundWindows(40 * 16_000, { kind: 'consecutive', samples: 480_000, step: 480_000, fill: 'zeros', most: 100 })
 * // [{ start: 0, length: 480000 }, { start: 480000, length: 160000 }]
 */
export function soundWindows(total: number, windows: SoundWindows | undefined): readonly SoundWindow[] {
  if (total < 1) throw new ModalignError({ code: 'AUDIO_EMPTY', got: 'no samples', expected: 'a sound' })
  if (windows === undefined) return [{ start: 0, length: total }]
  if (windows.kind === 'spread') {
    const last = Math.max(0, total - windows.samples)
    return Array.from({ length: windows.count }, (_, index) => {
      const start = Math.trunc((last / Math.max(1, windows.count - 1)) * index)
      return { start, length: Math.min(windows.samples, total - start) }
    })
  }
  const count = Math.ceil(total / windows.step)
  if (count > windows.most) {
    throw new ModalignError({
      code: 'AUDIO_TOO_LONG',
      got: `${total} samples, ${count} windows`,
      expected: `at most ${windows.most} windows of ${windows.step} samples`,
      hint: 'cut the sound, or raise maxWindows',
    })
  }
  return Array.from({ length: count }, (_, index) => {
    const start = index * windows.step
    return { start, length: Math.min(windows.samples, total - start) }
  })
}

/** A window's samples, filled up to its size. */
export function windowSamples(sound: Float32Array, { start, length }: SoundWindow, windows: SoundWindows | undefined): Float32Array {
  const cut = sound.subarray(start, start + length)
  if (windows === undefined || length === windows.samples) return cut
  const fill = windows.kind === 'spread' ? 'zeros' : windows.fill
  if (fill === 'none') return cut
  const result = new Float32Array(windows.samples)
  const times = fill === 'zeros' ? 1 : fill === 'repeat-zeros' ? Math.floor(windows.samples / length) : Math.ceil(windows.samples / length)
  for (let time = 0; time < times; time++) {
    const at = time * length
    result.set(cut.subarray(0, Math.min(length, windows.samples - at)), at)
  }
  return result
}

/** Samples at `rateHz` that a sound of so many seconds has after resampling: the same number that {@link resample} gives. */
export function samplesIn(seconds: number, rateHz: number): number {
  // Seconds are a quotient of whole numbers; what binary fractions add to it must not count as a sample.
  return Math.ceil(seconds * rateHz - 1e-6)
}
