/** How long, large and many-channelled a sound may be. */
import { ModalignError } from '../errors.ts'

export interface AudioLimits {
  /** Of the file. Default 1 GiB: files are read in pieces. */
  readonly maxBytes: number
  /** Of the part that is asked for. Default 3,600 s, which is 230 MB of samples at 16 kHz. */
  readonly maxSeconds: number
  /** Default 32. */
  readonly maxChannels: number
  /** Wall clock. Default 120 s. */
  readonly timeoutMs: number
}

export const defaultAudioLimits: AudioLimits = { maxBytes: 2 ** 30, maxSeconds: 3_600, maxChannels: 32, timeoutMs: 120_000 }

/** Lower is no sound that anybody recorded, higher no converter that anybody built. */
const [lowestRateHz, highestRateHz] = [1_000, 768_000]

/** Rate and channels, before anything is decoded. */
export function checkAudioFormat(sampleRateHz: number, channels: number, { maxChannels }: AudioLimits): void {
  if (!(channels >= 1 && channels <= maxChannels))
    throw new ModalignError({ code: 'AUDIO_CHANNELS', got: `${channels} channels`, expected: `1 to ${maxChannels} channels` })
  if (!(sampleRateHz >= lowestRateHz && sampleRateHz <= highestRateHz))
    throw new ModalignError({ code: 'AUDIO_RATE', got: `${sampleRateHz} Hz`, expected: `${lowestRateHz} to ${highestRateHz} Hz` })
}

/** A part of a medium that has time, in seconds from its beginning. */
export interface Span {
  readonly startSeconds: number
  readonly endSeconds: number
}

/** @throws {ModalignError} `MEDIA_SPAN` unless 0 <= start < end. */
export function checkSpan(span: Span | undefined): void {
  if (span === undefined || (span.startSeconds >= 0 && span.endSeconds > span.startSeconds && Number.isFinite(span.startSeconds))) return
  throw new ModalignError({
    code: 'MEDIA_SPAN',
    got: `${span.startSeconds} s to ${span.endSeconds} s`,
    expected: 'a start of at least 0 s and a later end',
  })
}
