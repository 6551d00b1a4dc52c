/** Where a stretch of time lies once a sound or film has been cut, windowed and sampled: what `views.ts` is for boxes. */
import { ModalignError } from '../errors.ts'
import type { TokenSegment } from '../model/contracts.ts'
import type { Span } from './audio-limits.ts'
import type { SoundWindow } from './waveform-windows.ts'

/** A span in seconds from the beginning of what shows it. */
export interface ShownSpan extends Span {
  /** The part of the span that is shown: 1 if nothing was cut off. */
  readonly visible: number
}

/**
 * A span of a file in the part of it that was read: in seconds from the part's beginning, cut at the part's ends.
 *
 * @returns undefined if the part shows nothing of it
 * @throws {ModalignError} `MEDIA_SPAN` for a span that ends before it begins
 * @example
 * remapSpan({ startSeconds: 12, endSeconds: 18 }, { startSeconds: 10, endSeconds: 15 }) // { startSeconds: 2, endSeconds: 5, visible: 0.5 }
 */
export function remapSpan(span: Span, part: Span): ShownSpan | undefined {
  check(span)
  const startSeconds = Math.max(span.startSeconds, part.startSeconds)
  const endSeconds = Math.min(span.endSeconds, part.endSeconds)
  const length = span.endSeconds - span.startSeconds
  if (endSeconds < startSeconds || (endSeconds === startSeconds && length > 0) || startSeconds >= part.endSeconds) return undefined
  return {
    startSeconds: startSeconds - part.startSeconds,
    endSeconds: endSeconds - part.startSeconds,
    visible: length === 0 ? 1 : (endSeconds - startSeconds) / length,
  }
}

/** A span within one window of a sound. */
export interface WindowSpan extends ShownSpan {
  readonly window: number
}

/**
 * A span in every window that shows some of it. What a window is filled up with behind the sound's end (zeros, or the sound again) is no part of it.
 *
 * @param windows as `preprocessAudio` gives them, in samples at the encoder's rate
 * @throws {ModalignError} `MEDIA_SPAN`
 * @example
 * const { windows } = preprocessAudio(audio, encoder.preprocessing)
 * windowSpans({ startSeconds: 29, endSeconds: 31 }, windows, encoder.sampleRateHz) // one second of the first window, one of the second
 */
export function windowSpans(span: Span, windows: readonly SoundWindow[], sampleRateHz: number): readonly WindowSpan[] {
  return windows.flatMap(({ start, length }, window) => {
    const shown = remapSpan(span, { startSeconds: start / sampleRateHz, endSeconds: (start + length) / sampleRateHz })
    return shown === undefined ? [] : [{ ...shown, window }]
  })
}

/**
 * Which steps of a segment show a span: a step (a sampled frame, or a step of a sound encoder) is shown from its time until the next one's. A span between two sampled frames lies
 * in the earlier one; a span before the first frame, or behind `endSeconds`, in none.
 *
 * @param segment with `time`; windows that overlap begin again
 * @param endSeconds when the last step ends. Default: it lasts as long as the one before it
 * @returns numbers of steps, in order
 * @throws {ModalignError} `MEDIA_SPAN`
 * @example
 * spanSteps({ startSeconds: 1.5, endSeconds: 3.5 }, { frames: 4, rows: 2, columns: 2, time: [0, 1, 2, 3] }) // [1, 2, 3]
 */
export function spanSteps(span: Span, { time = [] }: Pick<TokenSegment, 'time'>, endSeconds?: number): readonly number[] {
  check(span)
  return time.flatMap((start, step) => {
    const next = time[step + 1]
    const before = time[step - 1]
    const usual = before !== undefined && before < start ? start - before : Number.POSITIVE_INFINITY
    // Where the next one lies earlier, another window begins.
    const end = next === undefined ? (endSeconds ?? start + usual) : next >= start ? next : start + usual
    const shows =
      span.startSeconds === span.endSeconds
        ? span.startSeconds >= start && span.startSeconds < end
        : span.startSeconds < end && span.endSeconds > start
    return shows ? [step] : []
  })
}

function check({ startSeconds, endSeconds }: Span): void {
  if (startSeconds >= 0 && endSeconds >= startSeconds && Number.isFinite(endSeconds)) return
  throw new ModalignError({
    code: 'MEDIA_SPAN',
    got: `from ${startSeconds} s to ${endSeconds} s`,
    expected: 'a beginning of at least 0 s, and an end after it',
  })
}
