/** Running ffmpeg on strangers' files: the one place that knows the program, its arguments and the fluent-ffmpeg package that writes them. */
import { execFile, spawn } from 'node:child_process'
import { access, constants } from 'node:fs/promises'
import { createRequire } from 'node:module'
import path from 'node:path'
import { Readable } from 'node:stream'
import ffmpeg from 'fluent-ffmpeg'
import { ModalignError, unreachable } from '../errors.ts'
import { errnoOf, fileError } from '../io/file-error.ts'

/**
 * The ffmpeg program: `option`, else the variable `FFMPEG_PATH`, else the `ffmpeg-static` package where it is installed, else the first `ffmpeg` on `PATH`.
 * A path that is named but does not lead to a program is an error: nothing is passed over in silence.
 *
 * @throws {ModalignError} `FFMPEG_MISSING`.
 *
 * @example
 * const program = await findFfmpeg()
 */
export async function findFfmpeg(option?: string): Promise<string> {
  const named = option ?? (process.env.FFMPEG_PATH === '' ? undefined : process.env.FFMPEG_PATH)
  if (named !== undefined) {
    if (await isProgram(named)) return named
    throw new ModalignError({
      code: 'FFMPEG_MISSING',
      file: named,
      got: 'no program there',
      expected: option === undefined ? 'the ffmpeg program, because FFMPEG_PATH names it' : 'the ffmpeg program',
    })
  }
  const packaged = packagedFfmpeg()
  if (packaged !== undefined && (await isProgram(packaged))) return packaged
  for (const folder of (process.env.PATH ?? '').split(path.delimiter)) {
    const program = path.join(folder, process.platform === 'win32' ? 'ffmpeg.exe' : 'ffmpeg')
    if (path.isAbsolute(program) && (await isProgram(program))) return program
  }
  throw new ModalignError({
    code: 'FFMPEG_MISSING',
    got: 'no ffmpeg program',
    expected: 'ffmpeg on PATH, in FFMPEG_PATH, or as the package ffmpeg-static',
    hint: 'install it (apt install ffmpeg, brew install ffmpeg, npm install ffmpeg-static)',
  })
}

async function isProgram(file: string): Promise<boolean> {
  return await access(file, constants.X_OK).then(
    () => true,
    () => false,
  )
}

/** The package exports the path of its program, or null where there is none for the platform. It is optional: its download may have failed. */
function packagedFfmpeg(): string | undefined {
  const load = createRequire(import.meta.url)
  try {
    const found: unknown = load('ffmpeg-static')
    return typeof found === 'string' ? found : undefined
  } catch (error) {
    if (errnoOf(error) === 'MODULE_NOT_FOUND') return undefined
    throw error
  }
}

const passthroughOptions = new Map<string, readonly string[]>()

/**
 * The option by which a program writes frames as they come, none repeated or left out to keep a rate: its name changed in ffmpeg 5.1 (libavutil 57.28).
 * A program that does not say its version is taken for a new one.
 */
export async function passthrough(option?: string): Promise<readonly string[]> {
  const program = await findFfmpeg(option)
  const known = passthroughOptions.get(program)
  if (known !== undefined) return known
  const text = await new Promise<string>((resolve) => {
    execFile(program, ['-version'], { timeout: 10_000, env: {}, maxBuffer: 2 ** 16 }, (_, output) => resolve(output))
  })
  const [, major = '999', minor = '0'] = /libavutil\s+(\d+)\.\s*(\d+)/.exec(text) ?? []
  const options = Number(major) * 1000 + Number(minor) >= 57_028 ? ['-fps_mode', 'passthrough'] : ['-vsync', 'passthrough']
  passthroughOptions.set(program, options)
  return options
}

/** The only formats that ffmpeg may read. Playlists, scripts and image patterns (hls, dash, concat, image2 ...), which open further files, are not among them. */
export const demuxers = ['mov', 'matroska', 'avi', 'mpegts', 'ogg', 'flac', 'wav', 'mp3', 'aac', 'bmp_pipe'] as const
export type Demuxer = (typeof demuxers)[number]

/** Decoders that may run: what films and recordings are really made of. Screens, terminals, subtitles and the codecs of games are not among them. */
const codecs = [
  ...[
    'h264',
    'hevc',
    'libdav1d',
    'av1',
    'libaom-av1',
    'vp8',
    'vp9',
    'libvpx',
    'libvpx-vp9',
    'mpeg1video',
    'mpeg2video',
    'mpeg4',
    'msmpeg4v2',
    'msmpeg4',
  ],
  ...[
    'h263',
    'flv',
    'wmv1',
    'wmv2',
    'wmv3',
    'vc1',
    'theora',
    'mjpeg',
    'dvvideo',
    'prores',
    'dnxhd',
    'ffv1',
    'huffyuv',
    'ffvhuff',
    'utvideo',
    'rawvideo',
  ],
  ...[
    'bmp',
    'png',
    'qtrle',
    'svq1',
    'svq3',
    'cinepak',
    'aac',
    'aac_latm',
    'mp1',
    'mp1float',
    'mp2',
    'mp2float',
    'mp3',
    'mp3float',
    'opus',
    'libopus',
  ],
  ...[
    'vorbis',
    'libvorbis',
    'flac',
    'alac',
    'ac3',
    'eac3',
    'dca',
    'truehd',
    'wmav1',
    'wmav2',
    'wmapro',
    'speex',
    'libspeex',
    'amrnb',
    'amrwb',
  ],
  ...[
    'libopencore_amrnb',
    'libopencore_amrwb',
    'gsm',
    'gsm_ms',
    'libgsm',
    'libgsm_ms',
    'adpcm_ms',
    'adpcm_ima_wav',
    'adpcm_ima_qt',
    'adpcm_g726',
    'adpcm_yamaha',
  ],
  ...[
    'pcm_u8',
    'pcm_s8',
    'pcm_s16le',
    'pcm_s16be',
    'pcm_s24le',
    'pcm_s24be',
    'pcm_s32le',
    'pcm_s32be',
    'pcm_f32le',
    'pcm_f32be',
    'pcm_f64le',
    'pcm_f64be',
  ],
  ...['pcm_alaw', 'pcm_mulaw', 'pcm_bluray', 'pcm_dvd', 'wavpack', 'tta', 'g723_1', 'g729'],
] as const

/** Bytes go through a pipe; a file is named absolutely. Formats that seek (mov) need a file. */
export type FfmpegInput = Uint8Array | { readonly file: string }

export interface FfmpegOutput {
  /** What to make: for example `['-frames:v', '1', '-pix_fmt', 'rgb24']`. */
  readonly options: readonly string[]
  /** The muxer: `rawvideo`, `wav`, `framecrc`, ... */
  readonly format: string
  /** More is an error. */
  readonly maxBytes: number
}

export interface FfmpegRun {
  readonly input: FfmpegInput
  /** What the input is by our own sniffing, never by ffmpeg's guess. */
  readonly demuxer: Demuxer
  readonly inputOptions?: readonly string[]
  /** Three at most. They must be read together: ffmpeg stops where one of them is full. */
  readonly outputs: readonly FfmpegOutput[]
  /** Wall clock, after which ffmpeg and whatever it started are killed. */
  readonly timeoutMs: number
  /** See {@link findFfmpeg}. */
  readonly program?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** No single allocation of ffmpeg's may be larger: enough for a picture of 64 megapixels. */
const maxAllocationBytes = 2 ** 28
const maxStreams = 100
const mostErrorText = 2 ** 16
/** Standard error lies between the first output and the others. */
const outputDescriptors = [1, 3, 4] as const

/** The whole command line, in the order in which ffmpeg reads it. */
function ffmpegArguments({ input, demuxer, inputOptions = [], outputs }: FfmpegRun): string[] {
  if (!(input instanceof Uint8Array) && !path.isAbsolute(input.file)) {
    throw new ModalignError({ code: 'FFMPEG_INPUT', file: input.file, got: 'a relative path', expected: 'an absolute path' })
  }
  // "file:" keeps names such as "-y", "concat:a|b" or "x%03d.png" from meaning anything.
  const source = input instanceof Uint8Array ? 'pipe:0' : `file:${input.file}`
  const command = ffmpeg()
    .input(source)
    .inputOptions('-nostdin', '-hide_banner', '-loglevel', 'error', '-max_alloc', String(maxAllocationBytes))
    .inputOptions('-protocol_whitelist', 'file,pipe', '-format_whitelist', demuxer, '-codec_whitelist', codecs.join(','))
    .inputOptions('-max_streams', String(maxStreams), ...inputOptions)
    .inputFormat(demuxer)
  outputs.forEach(({ options, format }, index) => {
    command
      .output(`pipe:${outputDescriptors[index]}`)
      .outputOptions(...options)
      .format(format)
  })
  // Only the building of the command line is the package's: its runner would search PATH, run ffmpeg for its capabilities and buffer output without limit.
  return command._getArguments()
}

export interface FfmpegProcess extends AsyncDisposable {
  /** One for each output, in their order. A slow reader slows ffmpeg. */
  readonly outputs: readonly AsyncIterable<Uint8Array>[]
  /** Resolves with what ffmpeg complained about (often nothing) when it has ended well. Await it after the outputs. */
  readonly ended: Promise<string>
  /** Kills it if it still runs, and waits until it is gone. */
  stop(): Promise<void>
}

/**
 * Starts ffmpeg and gives its outputs as they come.
 *
 * @throws {ModalignError} `FFMPEG_MISSING`, `FFMPEG_INPUT`; `ended`, and the outputs, throw `FFMPEG_FAILED` (with ffmpeg's own words), `FFMPEG_OUTPUT` (more than
 * `maxBytes`), `FFMPEG_TIMEOUT`, and the signal's reason.
 *
 * @example
 * await using process = await startFfmpeg({ input: { file: '/data/film.mp4' }, demuxer: 'mov', timeoutMs: 60_000,
 *   outputs: [{ options: ['-map', '0:v:0', '-pix_fmt', 'rgb24'], format: 'rawvideo', maxBytes: 2 ** 30 }] })
 */
export async function startFfmpeg(run: FfmpegRun): Promise<FfmpegProcess> {
  const { input, outputs, timeoutMs, signal } = run
  signal?.throwIfAborted()
  const program = await findFfmpeg(run.program)
  const file = input instanceof Uint8Array ? undefined : input.file
  const child = spawn(program, ffmpegArguments(run), {
    shell: false,
    stdio: [input instanceof Uint8Array ? 'pipe' : 'ignore', 'pipe', 'pipe', ...outputs.slice(1).map(() => 'pipe' as const)],
    // Its own process group, so that a kill reaches whatever it started. ffmpeg needs nothing of our environment.
    detached: process.platform !== 'win32',
    env: process.platform === 'win32' ? { SystemRoot: process.env.SystemRoot } : {},
    windowsHide: true,
  })
  let failure: unknown
  let over = false
  const kill = (error: unknown): void => {
    failure ??= error
    // The child's end is told when all its pipes have ended: one with bytes that nobody reads any more never would.
    for (const stream of child.stdio) if (stream instanceof Readable) stream.destroy()
    if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
    if (process.platform === 'win32') child.kill('SIGKILL')
    else process.kill(-child.pid, 'SIGKILL')
  }
  const abort = (): void => kill(signal?.reason)
  const timer = setTimeout(
    () => kill(new ModalignError({ code: 'FFMPEG_TIMEOUT', file, got: `no result after ${timeoutMs} ms`, expected: 'a result' })),
    timeoutMs,
  )
  signal?.addEventListener('abort', abort, { once: true })
  let words = ''
  child.stderr?.on('data', (chunk: Buffer) => {
    if (words.length < mostErrorText) words += chunk.toString('utf8')
  })
  // ffmpeg may stop reading early (it has all it needs, or it failed); its exit status tells which.
  child.stdin?.on('error', () => child.stdin?.destroy())
  if (input instanceof Uint8Array) child.stdin?.end(input)
  const gone = new Promise<string>((resolve, reject) => {
    child.once('error', (error) => reject(fileError(error, program, 'a program that runs')))
    child.once('close', (code, signalName) => resolve(signalName ?? String(code)))
  }).finally(() => {
    over = true
    clearTimeout(timer)
    signal?.removeEventListener('abort', abort)
  })
  const ended = gone.then((status) => {
    if (failure !== undefined) throw failure
    const complaints = words.trim().replaceAll(/\s*\n\s*/g, '; ')
    if (status === '0') return complaints
    throw new ModalignError({
      code: 'FFMPEG_FAILED',
      file,
      got: complaints === '' ? `exit status ${status}` : complaints,
      expected: 'a medium that ffmpeg can decode',
      // A shell or a container reports the same as 128 + 9.
      hint: status === 'SIGKILL' || status === '137' ? 'something killed ffmpeg, most likely for want of memory' : undefined,
    })
  })
  // Whoever reads the outputs first learns of the failure there.
  ended.catch(() => undefined)

  async function* chunks(stream: unknown, { maxBytes }: FfmpegOutput): AsyncGenerator<Uint8Array> {
    if (!(stream instanceof Readable)) return unreachable('an output of ffmpeg without a pipe')
    let received = 0
    try {
      for await (const chunk of stream as AsyncIterable<Buffer>) {
        received += chunk.length
        if (received > maxBytes) {
          kill(
            new ModalignError({ code: 'FFMPEG_OUTPUT', file, got: `more than ${maxBytes} bytes`, expected: `at most ${maxBytes} bytes` }),
          )
          break
        }
        yield chunk
      }
    } catch (error) {
      // A pipe whose ends were closed around it; the process's end says why.
      kill(error)
    }
    if (failure !== undefined) await ended
  }
  const stop = async (): Promise<void> => {
    if (!over) kill(new ModalignError({ code: 'FFMPEG_STOPPED', file, got: 'a run that was stopped', expected: 'a run to its end' }))
    await gone.catch(() => undefined)
  }
  return {
    outputs: outputs.map((output, index) => chunks(child.stdio[outputDescriptors[index] ?? 0], output)),
    ended,
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

/** What {@link runFfmpegOutputs} gives. */
export interface FfmpegResult {
  readonly outputs: readonly Uint8Array[]
  /** What ffmpeg complained about though it ended well. */
  readonly complaints: string
}

/** Runs ffmpeg to its end and gives what it wrote to each output. Throws what {@link startFfmpeg} throws. */
export async function runFfmpegOutputs(run: FfmpegRun): Promise<FfmpegResult> {
  await using process = await startFfmpeg(run)
  const outputs = await Promise.all(
    process.outputs.map(async (output) => {
      const chunks: Uint8Array[] = []
      for await (const chunk of output) chunks.push(chunk)
      const whole = Buffer.concat(chunks)
      return new Uint8Array(whole.buffer, whole.byteOffset, whole.length)
    }),
  )
  return { outputs, complaints: await process.ended }
}

export interface FfmpegRequest extends Omit<FfmpegRun, 'outputs'> {
  readonly outputOptions: readonly string[]
  /** The muxer of the output: `rawvideo`, `wav`, ... */
  readonly outputFormat: string
  /** More output is an error. */
  readonly maxBytes: number
}

/**
 * Runs ffmpeg once and gives what it wrote.
 *
 * @throws {ModalignError} `FFMPEG_MISSING`, `FFMPEG_FAILED` (with ffmpeg's own words), `FFMPEG_OUTPUT` (more than `maxBytes`), `FFMPEG_TIMEOUT`; an `AbortError` where `signal` says so.
 *
 * @example
 * const rgb = await runFfmpeg({ input: bitmap, demuxer: 'bmp_pipe', outputOptions: ['-frames:v', '1', '-pix_fmt', 'rgb24'],
 *   outputFormat: 'rawvideo', maxBytes: width * height * 3, timeoutMs: 10_000 })
 */
export async function runFfmpeg({ outputOptions, outputFormat, maxBytes, ...run }: FfmpegRequest): Promise<Uint8Array> {
  const { outputs } = await runFfmpegOutputs({ ...run, outputs: [{ options: outputOptions, format: outputFormat, maxBytes }] })
  return outputs[0] ?? unreachable('one output was asked for')
}
