/** Sounds from files, films and bytes to mono samples. Every limit of size, length and time is enforced here. */
import { setImmediate as turn } from 'node:timers/promises'
import { ModalignError, unreachable } from '../errors.ts'
import type { HttpAccess } from '../io/guarded-fetch.ts'
import { spool } from '../io/spool.ts'
import type { DecodedAudio } from '../model/contracts.ts'
import { type AudioLimits, checkAudioFormat, checkSpan, defaultAudioLimits, type Span } from './audio-limits.ts'
import { checkContainer, identifyContainer } from './containers.ts'
import { type FfmpegInput, startFfmpeg } from './ffmpeg.ts'
import { mediaError } from './ffmpeg-error.ts'
import { resample } from './resample.ts'
import type { MediaContainer } from './sniff.ts'
import { type MediaInput, type OpenedMedia, openMedia, sourceName } from './source.ts'
import { floatStream } from './wav-floats.ts'
import { readWavHeader } from './wav-header.ts'
import { monoPieces, unpackingOf } from './wav-samples.ts'

export interface DecodeAudioOptions {
  /** The folder that a path is relative to and may not leave. Without it the path is a user's own, relative to the working directory. */
  readonly root?: string | undefined
  /** Which servers sounds may be fetched from. Default none. */
  readonly http?: HttpAccess | undefined
  /** Samples per second of the result, by {@link resample}. Default: the file's own. */
  readonly sampleRateHz?: number | undefined
  /** Only this part, in seconds from the first sample. An end beyond the sound's is its end. */
  readonly span?: Span | undefined
  readonly limits?: Partial<AudioLimits> | undefined
  /** What becomes of a sound longer than `limits.maxSeconds`: cut there, with the note `cut` (default), or refused. */
  readonly tooLong?: 'cut' | 'refuse' | undefined
  /** Samples that are no number or beyond all measure: refused (default), or zero, with the note `samples-zeroed`. */
  readonly badSamples?: 'refuse' | 'zero' | undefined
  /** Files that end before their container says: refused (default), or decoded as far as they go, with the note `truncated`. */
  readonly truncated?: 'refuse' | 'accept' | undefined
  /** The ffmpeg program, for everything but WAV. See `findFfmpeg`. */
  readonly ffmpeg?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** What is worth counting though the sound was accepted. */
export type AudioNote =
  /** Longer than the limit, and cut there. */
  | 'cut'
  /** A WAV whose header does not say how long it is. */
  | 'open-ended'
  /** The file ends early, and that was accepted. */
  | 'truncated'
  /** It holds no sample: the result is one sample of silence, so that nothing after it meets an empty tensor. */
  | 'no-samples'
  /** Samples that were no numbers became silence. */
  | 'samples-zeroed'
  /** ffmpeg complained, but went on. */
  | 'decoder-warning'

export interface DecodedAudioFile extends DecodedAudio {
  readonly format: MediaContainer
  /** Of the file, before mixing. */
  readonly channels: number
  /** Of the file, before resampling. */
  readonly sourceRateHz: number
  readonly notes: readonly AudioNote[]
}

/**
 * Decodes one sound to mono samples in [-1, 1], as torchaudio and libsndfile scale them: integers divided by their full scale, floats as they are (a little beyond 1
 * is normal); the mean of all channels. WAV (8 to 32 bits, float, A-law, mu-law, extensible, RIFX, RF64) is read here, piece by piece; everything else, and the sound
 * of films, by ffmpeg. What the file is, its first bytes say. A sound is never empty: see the note `no-samples`.
 *
 * @param source a path, a URL, the file's bytes, or a stream of them: see {@link MediaInput}
 * @throws {ModalignError} `AUDIO_EMPTY`, `AUDIO_CONTAINER`, `AUDIO_TOO_LARGE`, `AUDIO_TOO_LONG`, `AUDIO_CHANNELS`, `AUDIO_RATE`, `AUDIO_BITS`, `AUDIO_STRUCTURE`,
 * `AUDIO_TRUNCATED`, `AUDIO_ENCRYPTED`, `AUDIO_NO_STREAM`, `AUDIO_NOT_FINITE`, `AUDIO_DECODE`, `AUDIO_TIMEOUT`, `MEDIA_SPAN`; `FFMPEG_MISSING`; for the source what
 * {@link openMedia} throws; the signal's reason.
 *
 * @example
 * const { samples, sampleRateHz } = await decodeAudio('speech.mp3', { sampleRateHz: 16_000 })
 */
export async function decodeAudio(source: MediaInput, options: DecodeAudioOptions = {}): Promise<DecodedAudioFile> {
  const limits = { ...defaultAudioLimits, ...options.limits }
  const file = sourceName(source)
  options.signal?.throwIfAborted()
  checkSpan(options.span)
  try {
    const media = await openMedia(source, {
      maxBytes: limits.maxBytes,
      tooLargeCode: 'AUDIO_TOO_LARGE',
      timeoutMs: limits.timeoutMs,
      root: options.root,
      http: options.http,
      signal: options.signal,
    })
    return await decodeOpened(media, limits, options)
  } catch (error) {
    throw error instanceof ModalignError && file !== undefined ? new ModalignError({ ...error.details, file, cause: error.cause }) : error
  }
}

/** As {@link decodeAudio}, of a medium that is open already; `aligned`: the first sample lies at the file's beginning even if its sound begins later. */
export async function decodeOpened(
  media: OpenedMedia,
  limits: AudioLimits,
  options: DecodeAudioOptions & { readonly aligned?: boolean },
): Promise<DecodedAudioFile> {
  const format = await identifyContainer(media.bytes, 'AUDIO')
  const mixed = (format === 'wav' ? await fromWav(media, limits, options) : undefined) ?? (await fromFfmpeg(media, format, limits, options))
  const { samples, notes } = checked(mixed, options)
  const { sampleRateHz: sourceRateHz, channels } = mixed
  const { sampleRateHz = sourceRateHz } = options
  return { samples: resample(samples, sourceRateHz, sampleRateHz), sampleRateHz, sourceRateHz, channels, format, notes }
}

interface Mixed {
  readonly samples: Float32Array
  readonly sampleRateHz: number
  readonly channels: number
  readonly notes: readonly AudioNote[]
}

/** Frames that are wanted: `[from, to)`; `asked` is where the part would end without the limit of length. */
interface Range {
  readonly from: number
  readonly to: number
  readonly asked: number
}

function rangeOf(rate: number, { maxSeconds }: AudioLimits, span: Span | undefined): Range {
  const from = Math.round((span?.startSeconds ?? 0) * rate)
  const asked = Math.round((span?.endSeconds ?? Number.POSITIVE_INFINITY) * rate)
  return { from, asked, to: Math.min(asked, from + Math.round(maxSeconds * rate)) }
}

function cutNotes(isCut: boolean, { maxSeconds }: AudioLimits, { tooLong }: DecodeAudioOptions): readonly AudioNote[] {
  if (!isCut) return []
  if (tooLong !== 'refuse') return ['cut']
  throw new ModalignError({ code: 'AUDIO_TOO_LONG', got: `more than ${maxSeconds} s`, expected: `at most ${maxSeconds} s` })
}

function checkStart(range: Range, frames: number, rate: number): void {
  if (range.from === 0 || range.from < frames) return
  throw new ModalignError({
    code: 'MEDIA_SPAN',
    got: `a part that begins at ${range.from / rate} s`,
    expected: `a beginning within the sound of ${frames / rate} s`,
  })
}

function concatenated(pieces: readonly Float32Array[]): Float32Array {
  const samples = new Float32Array(pieces.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const piece of pieces) {
    samples.set(piece, at)
    at += piece.length
  }
  return samples
}

function timeout({ timeoutMs }: AudioLimits): ModalignError {
  return new ModalignError({ code: 'AUDIO_TIMEOUT', got: `no sound after ${timeoutMs} ms`, expected: 'a sound that decodes in time' })
}

async function fromWav({ bytes }: OpenedMedia, limits: AudioLimits, options: DecodeAudioOptions): Promise<Mixed | undefined> {
  const header = await readWavHeader(bytes, options.truncated)
  const { sampleRateHz, channels } = header
  checkAudioFormat(sampleRateHz, channels, limits)
  const unpacking = unpackingOf(header)
  if (unpacking === undefined) return undefined
  const deadline = performance.now() + limits.timeoutMs
  const frames = Math.floor(header.dataBytes / header.blockAlign)
  const range = rangeOf(sampleRateHz, limits, options.span)
  checkStart(range, frames, sampleRateHz)
  const notes = [...cutNotes(Math.min(range.asked, frames) > range.to, limits, options)]
  if (header.openEnded) notes.push('open-ended')
  if (header.truncated) notes.push('truncated')
  const pieces: Float32Array[] = []
  // What is not wanted is not read.
  for await (const piece of monoPieces(bytes, header, unpacking, range.from, Math.min(frames, range.to))) {
    pieces.push(piece)
    // Lets timers and signals through.
    await turn()
    options.signal?.throwIfAborted()
    if (performance.now() > deadline) throw timeout(limits)
  }
  return { samples: concatenated(pieces), sampleRateHz, channels, notes }
}

async function fromFfmpeg(
  media: OpenedMedia,
  format: MediaContainer,
  limits: AudioLimits,
  options: DecodeAudioOptions & { readonly aligned?: boolean },
): Promise<Mixed> {
  await checkContainer(media.bytes, format, 'AUDIO', options.truncated ?? 'refuse')
  // Formats that keep their index at the end cannot be read from a pipe.
  await using spooled = media.file === undefined && format === 'mov' ? await spool(await media.bytes.read(0, media.bytes.size)) : undefined
  const file = media.file ?? spooled
  const input: FfmpegInput = file === undefined ? await media.bytes.read(0, media.bytes.size) : { file: file.path }
  const lastSecond = Math.min(options.span?.endSeconds ?? Number.POSITIVE_INFINITY, (options.span?.startSeconds ?? 0) + limits.maxSeconds)
  try {
    await using process = await startFfmpeg({
      input,
      demuxer: format,
      // Decoding begins at the beginning: positions inside compressed sound are guesses.
      outputs: [
        {
          options: [
            ...['-map', '0:a:0', '-vn', '-sn', '-dn', '-map_metadata', '-1', '-fflags', '+bitexact', '-c:a', 'pcm_f32le'],
            // A second more than wanted tells whether anything is cut.
            ...['-t', String(lastSecond + 1)],
            ...(options.aligned === true ? ['-af', 'aresample=async=1:first_pts=0'] : []),
          ],
          format: 'wav',
          maxBytes: Number.MAX_SAFE_INTEGER,
        },
      ],
      timeoutMs: limits.timeoutMs,
      program: options.ffmpeg,
      signal: options.signal,
    })
    const stream = await floatStream(process.outputs[0] ?? unreachable('one output was asked for'))
    if (stream === undefined) {
      await process.ended
      throw new ModalignError({ code: 'AUDIO_DECODE', got: 'no samples', expected: 'a sound that decodes' })
    }
    const { sampleRateHz, channels } = stream
    checkAudioFormat(sampleRateHz, channels, limits)
    const range = rangeOf(sampleRateHz, limits, options.span)
    const pieces: Float32Array[] = []
    let frames = 0
    for await (const piece of stream.mono()) {
      const [start, end] = [Math.max(0, range.from - frames), Math.min(piece.length, range.to - frames)]
      if (end > start) pieces.push(piece.subarray(start, end))
      frames += piece.length
    }
    const complaints = await process.ended
    checkStart(range, frames, sampleRateHz)
    const notes = [...cutNotes(range.asked > range.to && frames > range.to, limits, options)]
    if (complaints !== '') notes.push('decoder-warning')
    return { samples: concatenated(pieces), sampleRateHz, channels, notes }
  } catch (error) {
    throw mediaError(error, 'AUDIO')
  }
}

/** 36 dB over full scale: no sound any more, but integers stored as floats, or an accident of decoding. */
const loudest = 64

/** Finite samples, at least one. */
function checked({ samples, notes }: Mixed, { badSamples }: DecodeAudioOptions): Pick<DecodedAudioFile, 'samples' | 'notes'> {
  if (samples.length === 0) return { samples: new Float32Array(1), notes: [...notes, 'no-samples'] }
  // NaN compares with nothing.
  const bad = samples.findIndex((value) => !(Math.abs(value) <= loudest))
  if (bad < 0) return { samples, notes }
  const value = samples[bad] ?? 0
  if (badSamples !== 'zero') {
    throw new ModalignError({
      code: 'AUDIO_NOT_FINITE',
      got: `${value} as sample ${bad}`,
      expected: `finite samples, at most ${loudest} times full scale`,
      hint:
        Math.abs(value) <= 2 ** 31
          ? 'floats hold sound from -1 to 1: divide integers by their full scale'
          : "badSamples: 'zero' makes them silent",
    })
  }
  return { samples: samples.map((sample) => (Math.abs(sample) <= loudest ? sample : 0)), notes: [...notes, 'samples-zeroed'] }
}
