/** Films to RGB frames with their times, through ffmpeg: sampled by number, time, key frame or scene, streamed, never written to disk. */
import { ModalignError, unreachable } from '../errors.ts'
import type { HttpAccess } from '../io/guarded-fetch.ts'
import { spool } from '../io/spool.ts'
import type { DecodedAudio, DecodedImage, DecodedVideo } from '../model/contracts.ts'
import { decodeOpened } from './audio.ts'
import { type AudioLimits, checkSpan, defaultAudioLimits, type Span } from './audio-limits.ts'
import { checkContainer, identifyContainer } from './containers.ts'
import { passthrough, startFfmpeg } from './ffmpeg.ts'
import { mediaError } from './ffmpeg-error.ts'
import { FrameListReader } from './frame-list.ts'
import { checkSampling, type FrameSampling, type Shortage, sampledIndices, shownAt } from './frame-sampling.ts'
import type { MediaContainer } from './sniff.ts'
import { type MediaInput, type OpenedMedia, openMedia, sourceName } from './source.ts'
import { defaultVideoLimits, type VideoLimits } from './video-limits.ts'
import { type FilmScan, type OpenFilm, pictures, recountFilm, scanFilm, sceneChanges } from './video-scan.ts'

export interface VideoFramesOptions {
  /** The folder that a path is relative to and may not leave. Without it the path is a user's own, relative to the working directory. */
  readonly root?: string | undefined
  /** Which servers films may be fetched from. Default none. */
  readonly http?: HttpAccess | undefined
  /** Which frames. Default: 8, spread evenly (`linspace`). */
  readonly sampling?: FrameSampling | undefined
  /** What happens where there are fewer frames than asked. Default: the last one is repeated. */
  readonly shortage?: Shortage | undefined
  /** Only this part, in seconds from the beginning of the file: sampling sees its frames alone. */
  readonly span?: Span | undefined
  /**
   * The frames' size: exactly, or with a longest edge (never enlarged). ffmpeg scales (bicubic), which is not what Pillow does: for an encoder whose published pixels
   * matter leave frames as they are (default) and let its preprocessing resize them.
   */
  readonly size?: { readonly width: number; readonly height: number } | { readonly longestEdge: number } | undefined
  readonly limits?: Partial<VideoLimits> | undefined
  /** Files that end before their container says: refused (default), or decoded as far as they go. */
  readonly truncated?: 'refuse' | 'accept' | undefined
  /** The ffmpeg program. See `findFfmpeg`. */
  readonly ffmpeg?: string | undefined
  readonly signal?: AbortSignal | undefined
}

export interface DecodeVideoOptions extends VideoFramesOptions {
  /** The sound of the same part too, its first sample at the part's beginning: at its own rate, or at one's own. */
  readonly audio?: { readonly sampleRateHz?: number | undefined; readonly limits?: Partial<AudioLimits> | undefined } | undefined
}

export interface VideoFrame {
  readonly image: DecodedImage
  /** From the beginning of the file, by the container's clock. */
  readonly seconds: number
  /** Which of the film's frames (of the part's, where a span is given), counted from 0 in the order of showing. */
  readonly index: number
}

export interface DecodedVideoFile extends DecodedVideo {
  readonly format: MediaContainer
  /** Of the film, as shown. */
  readonly width: number
  readonly height: number
  /** How many frames the film (or the part) has, and until when it lasts. */
  readonly totalFrames: number
  readonly endSeconds: number
  /** Which of them were taken. */
  readonly indices: readonly number[]
  readonly audio?: DecodedAudio
}

/**
 * Decodes frames of a film to 8-bit RGB, with their times, all at once: exactly as many as the sampling says. Rotation is applied once; variable frame rates, edit
 * lists and reordered frames are handled by the container's own times: a frame is shown from its time until the next one's, and zero is the beginning of the file
 * (which ffmpeg calls its start time). 10 bits, 4:4:4 and alpha become 8-bit RGB as ffmpeg converts them; HDR is not tone-mapped. Needs ffmpeg.
 *
 * @param source a path, a URL, the file's bytes, or a stream of them: see {@link MediaInput}
 * @throws {ModalignError} `VIDEO_EMPTY`, `VIDEO_CONTAINER`, `VIDEO_TOO_LARGE`, `VIDEO_TOO_LONG`, `VIDEO_TOO_SHORT`, `VIDEO_TRUNCATED`, `VIDEO_ENCRYPTED`,
 * `VIDEO_NO_STREAM`, `VIDEO_NO_FRAMES`, `VIDEO_DECODE`, `VIDEO_TIMEOUT`, `VIDEO_SAMPLING`, `VIDEO_SIZE`, `MEDIA_SPAN`; `FFMPEG_MISSING`; where sound is asked for what
 * `decodeAudio` throws; for the source what `openMedia` throws; the signal's reason.
 *
 * @example
 * const { frames, timesSeconds } = await decodeVideo('film.mp4', { sampling: { type: 'uniform', frames: 8 } })
 */
export async function decodeVideo(source: MediaInput, options: DecodeVideoOptions = {}): Promise<DecodedVideoFile> {
  try {
    await using opened = await openFilm(source, options)
    const { film, media, format } = opened
    const taken: VideoFrame[] = []
    const images = new Set<DecodedImage>()
    let bytes = 0
    let plan: Plan | undefined
    for await (const frame of framesOf(film, options, (found) => {
      plan = found
    })) {
      taken.push(frame)
      if (!images.has(frame.image)) bytes += frame.image.data.length
      images.add(frame.image)
      if (bytes > film.limits.maxFrameBytes) {
        throw new ModalignError({
          code: 'VIDEO_TOO_LARGE',
          got: `more than ${film.limits.maxFrameBytes} bytes of frames`,
          expected: `at most ${film.limits.maxFrameBytes} bytes`,
          hint: 'take fewer or smaller frames, or videoFrames one by one',
        })
      }
    }
    const { part } = plan ?? unreachable('frames without a plan')
    const sound = options.audio && (await soundOf(media, film, options, options.audio))
    return {
      frames: taken.map(({ image }) => image),
      timesSeconds: taken.map(({ seconds }) => seconds),
      format,
      width: part.width,
      height: part.height,
      totalFrames: part.frames.length,
      endSeconds: part.endSeconds,
      indices: taken.map(({ index }) => index),
      ...(sound && { audio: sound }),
    }
  } catch (error) {
    throw named(mediaError(error, 'VIDEO'), sourceName(source))
  }
}

async function soundOf(
  media: OpenedMedia,
  film: OpenFilm,
  { span, truncated }: VideoFramesOptions,
  { sampleRateHz, limits }: NonNullable<DecodeVideoOptions['audio']>,
): Promise<DecodedAudio> {
  const sound = await decodeOpened(
    media,
    { ...defaultAudioLimits, maxBytes: film.limits.maxBytes, ...limits },
    { sampleRateHz, span, truncated, ffmpeg: film.ffmpeg, signal: film.signal, aligned: true },
  )
  return { samples: sound.samples, sampleRateHz: sound.sampleRateHz }
}

/**
 * As {@link decodeVideo}, one frame at a time as they are decoded: a film longer than memory passes through. ffmpeg waits while a frame is looked at, and is killed
 * when the loop is left.
 *
 * @throws {ModalignError} what {@link decodeVideo} throws.
 *
 * @example
 * for await (const { image, seconds } of videoFrames('film.mp4', { sampling: { type: 'fps', fps: 1, maxFrames: 600 } })) console.log(seconds, image.width)
 */
export async function* videoFrames(source: MediaInput, options: VideoFramesOptions = {}): AsyncGenerator<VideoFrame> {
  try {
    await using opened = await openFilm(source, options)
    yield* framesOf(opened.film, options)
  } catch (error) {
    throw named(mediaError(error, 'VIDEO'), sourceName(source))
  }
}

function named(error: unknown, file: string | undefined): unknown {
  return error instanceof ModalignError && file !== undefined ? new ModalignError({ ...error.details, file, cause: error.cause }) : error
}

interface Opened extends AsyncDisposable {
  readonly film: OpenFilm
  readonly media: OpenedMedia
  readonly format: MediaContainer
}

async function openFilm(source: MediaInput, options: VideoFramesOptions): Promise<Opened> {
  const limits = { ...defaultVideoLimits, ...options.limits }
  options.signal?.throwIfAborted()
  checkSpan(options.span)
  checkSampling(options.sampling ?? defaultSampling)
  const opened = await openMedia(source, {
    maxBytes: limits.maxBytes,
    tooLargeCode: 'VIDEO_TOO_LARGE',
    timeoutMs: limits.timeoutMs,
    root: options.root,
    http: options.http,
    signal: options.signal,
  })
  const format = await identifyContainer(opened.bytes, 'VIDEO')
  await checkContainer(opened.bytes, format, 'VIDEO', options.truncated ?? 'refuse')
  // Several passes, and formats that keep their index at the end: a pipe will not do.
  const spooled = opened.file === undefined ? await spool(await opened.bytes.read(0, opened.bytes.size)) : undefined
  const file = opened.file ?? (spooled === undefined ? unreachable('bytes were spooled') : { ...opened.bytes, path: spooled.path })
  return {
    film: { path: file.path, demuxer: format, limits, ffmpeg: options.ffmpeg, signal: options.signal },
    media: { bytes: opened.bytes, file },
    format,
    [Symbol.asyncDispose]: async () => await spooled?.[Symbol.asyncDispose](),
  }
}

const defaultSampling: FrameSampling = { type: 'uniform', frames: 8 }

/** Which frames of which part, at what size. */
interface Plan {
  readonly whole: FilmScan
  readonly part: FilmScan
  /** The number, in the whole film, of the part's first frame. */
  readonly offset: number
  readonly indices: readonly number[]
  readonly width: number
  readonly height: number
}

async function planOf(film: OpenFilm, scan: FilmScan, options: VideoFramesOptions): Promise<Plan> {
  const { sampling = defaultSampling, shortage = 'repeat', span } = options
  const { offset, part } = partOf(scan, span)
  const changes = sampling.type === 'scenes' ? await sceneChanges(film, scan, sampling.threshold ?? 0.3) : []
  const inPart = changes.map((index) => index - offset).filter((index) => index >= 0 && index < part.frames.length)
  return {
    whole: scan,
    part,
    offset,
    indices: sampledIndices(part.frames, part.endSeconds, sampling, shortage, inPart),
    ...sizeOf(scan, options),
  }
}

/** The frames that are on the screen at some moment of the span. */
function partOf(scan: FilmScan, span: Span | undefined): { readonly part: FilmScan; readonly offset: number } {
  if (span === undefined) return { part: scan, offset: 0 }
  if (span.startSeconds >= scan.endSeconds) {
    throw new ModalignError({
      code: 'MEDIA_SPAN',
      got: `a part that begins at ${span.startSeconds} s`,
      expected: `a beginning within the film of ${scan.endSeconds} s`,
    })
  }
  const offset = shownAt(scan.frames, span.startSeconds)
  const behind = scan.frames.findIndex(({ seconds }, index) => index > offset && seconds >= span.endSeconds)
  const frames = scan.frames.slice(offset, behind < 0 ? undefined : behind)
  return { offset, part: { ...scan, frames, endSeconds: Math.min(scan.endSeconds, span.endSeconds) } }
}

function sizeOf({ width, height }: FilmScan, { size }: VideoFramesOptions): { readonly width: number; readonly height: number } {
  const wanted = size === undefined ? { width, height } : 'longestEdge' in size ? within(width, height, size.longestEdge) : size
  const isEdge = (edge: number): boolean => Number.isInteger(edge) && edge >= 1 && edge <= 16_384
  if (isEdge(wanted.width) && isEdge(wanted.height)) return { width: wanted.width, height: wanted.height }
  throw new ModalignError({ code: 'VIDEO_SIZE', got: `${wanted.width} x ${wanted.height}`, expected: 'whole numbers from 1 to 16384' })
}

function within(width: number, height: number, edge: number): { readonly width: number; readonly height: number } {
  const factor = Math.min(1, edge / Math.max(width, height))
  return factor === 1
    ? { width, height }
    : { width: Math.max(1, Math.round(width * factor)), height: Math.max(1, Math.round(height * factor)) }
}

/** Yields the frames in the order of the plan; `onPlan` hears of the plan, and of a better one that replaces it. */
async function* framesOf(film: OpenFilm, options: VideoFramesOptions, onPlan?: (plan: Plan) => void): AsyncGenerator<VideoFrame> {
  const scan = await scanFilm(film)
  const plan = await planOf(film, scan, options)
  onPlan?.(plan)
  const done = yield* taken(film, plan, 0, seekable.has(film.demuxer))
  if (done === plan.indices.length) return
  // The packets were not the frames (two fields a frame, broken frames, missing times): count again by decoding. What was taken had the right times.
  const exact = await planOf(film, await recountFilm(film, scan), options)
  onPlan?.(exact)
  const most = exact.indices.length
  if ((yield* taken(film, exact, done, false)) >= most) return
  throw new ModalignError({ code: 'VIDEO_DECODE', got: `fewer than ${most} frames`, expected: `${most} frames`, file: film.path })
}

/** Containers whose index leads to the right frame. */
const seekable: ReadonlySet<string> = new Set(['mov', 'matroska'])

/** Frames of the plan from its position `start` on; returns the position reached. It stops early where the film's frames are not those that were counted. */
async function* taken(film: OpenFilm, plan: Plan, start: number, seeks: boolean): AsyncGenerator<VideoFrame, number> {
  const { part, offset, indices } = plan
  const numbers = [...new Set(indices.slice(start))].sort((a, b) => a - b).map((index) => index + offset)
  const lastUse = new Map(indices.map((index, position) => [index, position]))
  const decoded = new Map<number, Omit<VideoFrame, 'index'>>()
  let position = start
  for (const run of seeks ? runsOf(plan.whole, numbers) : [{ numbers, from: 0 }]) {
    let count = 0
    for await (const frame of decodedRun(film, plan, run)) {
      const index = (run.numbers[count++] ?? 0) - offset
      const planned = part.frames[index]?.seconds ?? 0
      const seconds = frame.seconds ?? planned
      if (Math.abs(seconds - planned) > 1e-3) return position
      decoded.set(index, { image: frame.image, seconds })
      for (let next = indices[position]; next !== undefined; next = indices[position]) {
        const ready = decoded.get(next)
        if (ready === undefined) break
        if (lastUse.get(next) === position) decoded.delete(next)
        position++
        // ffmpeg may have ended before the caller's wish to: its last frames wait here.
        film.signal?.throwIfAborted()
        yield { ...ready, index: next }
      }
    }
    if (count < run.numbers.length) return position
  }
  return position
}

/** Frames that one process decodes, by number in the whole film; `from`: the frame that it begins to count at. */
interface Run {
  readonly numbers: readonly number[]
  readonly from: number
}

/** Starting a process costs about as much as decoding this many small frames. */
const worthSeeking = 200

/** Cuts the frames into runs where a key frame lies far behind the last frame before it. */
function runsOf({ frames }: FilmScan, numbers: readonly number[]): readonly Run[] {
  const runs: { readonly numbers: number[]; readonly from: number }[] = []
  let before = 0
  for (const number of numbers) {
    let key = number
    while (key > before && frames[key]?.isKey !== true) key--
    const run = runs.at(-1)
    if (key - before >= worthSeeking) runs.push({ numbers: [number], from: number })
    else if (run === undefined) runs.push({ numbers: [number], from: 0 })
    else run.numbers.push(number)
    before = number
  }
  return runs
}

async function* decodedRun(
  film: OpenFilm,
  { whole, width, height }: Plan,
  { numbers, from }: Run,
): AsyncGenerator<{ readonly image: DecodedImage; readonly seconds: number | undefined }> {
  if (numbers.length === 0) return
  const bytes = width * height * 3
  const raw = [...(await passthrough(film.ffmpeg)), '-enc_time_base', whole.timeBase.join(':'), '-frames:v', String(numbers.length)]
  const wanted = selection(numbers.map((number) => number - from))
  const filter = `[${pictures}]select='${wanted}',scale=${width}:${height},format=rgb24,split[times][frames]`
  await using process = await startFfmpeg({
    input: { file: film.path },
    demuxer: film.demuxer,
    inputOptions: ['-max_pixels', String(film.limits.maxPixels), ...(from > 0 ? seekOptions(whole, from) : [])],
    outputs: [
      // Times first: ffmpeg has written a frame's line before it waits for somebody to read its pixels.
      { options: ['-filter_complex', filter, '-map', '[times]', ...raw, '-flush_packets', '1'], format: 'framecrc', maxBytes: 2 ** 24 },
      { options: ['-map', '[frames]', ...raw], format: 'rawvideo', maxBytes: numbers.length * bytes },
    ],
    timeoutMs: film.limits.timeoutMs,
    program: film.ffmpeg,
    signal: film.signal,
  })
  const [timeOutput, pixelOutput] = process.outputs
  if (timeOutput === undefined || pixelOutput === undefined) return unreachable('two outputs were asked for')
  const times = lineByLine(timeOutput)
  let count = 0
  for await (const data of pieces(pixelOutput, bytes)) {
    const line = await times.next()
    if (line !== undefined && line.bytes !== bytes) {
      throw new ModalignError({ code: 'VIDEO_DECODE', got: `a frame of ${line.bytes} bytes`, expected: `${bytes} bytes` })
    }
    yield { image: { width, height, data }, seconds: line?.seconds }
    // The rest of the film is of no interest.
    if (++count === numbers.length) return
  }
  await process.ended
}

/** Decoding begins at the key frame before; frames before the time are dropped. Half a frame earlier, no rounding drops the first one. */
function seekOptions({ frames }: FilmScan, from: number): readonly string[] {
  const [first, before] = [frames[from]?.seconds ?? 0, frames[from - 1]?.seconds ?? 0]
  return ['-copyts', '-start_at_zero', '-ss', ((first + before) / 2).toFixed(6)]
}

/** ffmpeg's condition for frames by number; runs of neighbours become one term. */
function selection(numbers: readonly number[]): string {
  const terms: string[] = []
  for (let at = 0; at < numbers.length; ) {
    const first = numbers[at] ?? 0
    let end = at + 1
    while (numbers[end] === first + end - at) end++
    const last = first + end - at - 1
    terms.push(first === last ? `eq(n\\,${first})` : `between(n\\,${first}\\,${last})`)
    at = end
  }
  return terms.join('+')
}

interface Lines {
  next(): Promise<{ readonly seconds: number | undefined; readonly bytes: number } | undefined>
}

function lineByLine(output: AsyncIterable<Uint8Array>): Lines {
  const reader = new FrameListReader()
  const iterator = output[Symbol.asyncIterator]()
  let count = 0
  let ended = false
  return {
    async next() {
      while (reader.current().frames.length <= count && !ended) {
        const { done, value } = await iterator.next()
        if (done === true) ended = true
        else reader.add(value)
      }
      return reader.current().frames[count++]
    },
  }
}

/** A stream cut into pieces of one size; an incomplete last one is dropped. */
async function* pieces(output: AsyncIterable<Uint8Array>, size: number): AsyncGenerator<Uint8Array> {
  let piece = new Uint8Array(size)
  let filled = 0
  for await (const chunk of output) {
    for (let at = 0; at < chunk.length; ) {
      const part = chunk.subarray(at, at + size - filled)
      piece.set(part, filled)
      filled += part.length
      at += part.length
      if (filled < size) continue
      yield piece
      piece = new Uint8Array(size)
      filled = 0
    }
  }
}
