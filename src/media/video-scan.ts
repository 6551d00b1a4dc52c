/** One pass over a film without decoding it: which frames it has, when they are shown, how large they are. */
import { ModalignError } from '../errors.ts'
import { type Demuxer, passthrough, startFfmpeg } from './ffmpeg.ts'
import { FrameListReader, type ShownFrame, shownFrames } from './frame-list.ts'
import type { VideoLimits } from './video-limits.ts'

/** A film that lies in a file, ready for any number of passes. */
export interface OpenFilm {
  readonly path: string
  readonly demuxer: Demuxer
  readonly limits: VideoLimits
  readonly ffmpeg: string | undefined
  readonly signal: AbortSignal | undefined
}

export interface FilmScan {
  /** As shown: rotated as the film says. Pixels are taken for square. */
  readonly width: number
  readonly height: number
  /** All frames, in the order of showing. */
  readonly frames: readonly ShownFrame[]
  /** When the last frame ends, as far as its container says; a frame lasts until the next one, the last one as long as the one before it. */
  readonly endSeconds: number
  /** Seconds of one tick of the container, as a fraction. */
  readonly timeBase: readonly [number, number]
}

/** Pictures, not covers of albums. */
export const pictures = '0:V:0'
const bytesPerLine = 200

async function listed(film: OpenFilm, outputs: readonly (readonly string[])[]): Promise<readonly FrameListReader[]> {
  await using process = await startFfmpeg({
    input: { file: film.path },
    demuxer: film.demuxer,
    inputOptions: ['-max_pixels', String(film.limits.maxPixels)],
    outputs: outputs.map((options) => ({ options, format: 'framecrc', maxBytes: film.limits.maxFramesInFile * bytesPerLine })),
    timeoutMs: film.limits.timeoutMs,
    program: film.ffmpeg,
    signal: film.signal,
  })
  const readers = await Promise.all(
    process.outputs.map(async (output) => {
      const reader = new FrameListReader()
      for await (const chunk of output) {
        reader.add(chunk)
        if (reader.current().frames.length > film.limits.maxFramesInFile) throw tooMany(film.limits)
      }
      reader.finish()
      return reader
    }),
  )
  const complaints = await process.ended
  if (readers.some((reader) => reader.current().frames.length === 0)) {
    throw new ModalignError({
      code: 'VIDEO_DECODE',
      got: complaints === '' ? 'no frame' : complaints,
      expected: 'a film of at least one frame',
    })
  }
  return readers
}

function tooMany({ maxFramesInFile }: VideoLimits): ModalignError {
  return new ModalignError({ code: 'VIDEO_TOO_LONG', got: `more than ${maxFramesInFile} frames`, expected: `at most ${maxFramesInFile}` })
}

/** Counts packets, and decodes the first frame to learn the size as shown. */
export async function scanFilm(film: OpenFilm): Promise<FilmScan> {
  const [packets, first] = await listed(film, [
    ['-map', pictures, '-c', 'copy'],
    ['-map', pictures, '-frames:v', '1'],
  ])
  return scanOf(packets, first)
}

/** The same by decoding all of it: for films whose packets are not their frames (two fields a frame, broken frames, times that are missing). */
export async function recountFilm(film: OpenFilm, { timeBase }: FilmScan): Promise<FilmScan> {
  const [frames] = await listed(film, [['-map', pictures, ...(await passthrough(film.ffmpeg)), '-enc_time_base', timeBase.join(':')]])
  return scanOf(frames, frames)
}

function scanOf(packets: FrameListReader | undefined, first: FrameListReader | undefined): FilmScan {
  const list = packets?.current()
  const size = first?.current()
  const frames = list === undefined ? [] : shownFrames(list)
  const last = frames.at(-1)
  if (list === undefined || size === undefined || last === undefined) {
    throw new ModalignError({ code: 'VIDEO_NO_FRAMES', got: 'no frame that is shown', expected: 'a film of at least one frame' })
  }
  const before = frames.at(-2)
  return {
    width: size.width,
    height: size.height,
    frames,
    endSeconds: last.seconds + (before === undefined ? 0.04 : last.seconds - before.seconds),
    timeBase: list.timeBase,
  }
}

/** Numbers of the frames, of all the film's, at which the picture changes by more than `threshold` of ffmpeg's scene score. */
export async function sceneChanges(film: OpenFilm, scan: FilmScan, threshold: number): Promise<readonly number[]> {
  const filter = `select='eq(n\\,0)+gt(scene\\,${threshold})'`
  const [changes] = await listed(film, [
    ['-map', pictures, '-vf', filter, ...(await passthrough(film.ffmpeg)), '-enc_time_base', scan.timeBase.join(':')],
  ])
  const numbers = new Map(scan.frames.map(({ seconds }, i) => [Math.round(seconds * 1e6), i]))
  return (changes?.current().frames ?? []).flatMap(({ seconds }) => numbers.get(Math.round((seconds ?? 0) * 1e6)) ?? [])
}
