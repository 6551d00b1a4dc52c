/** Running ffmpeg on strangers' files: the one place that knows the program, its arguments and the fluent-ffmpeg package that writes them. */
import { spawn } from 'node:child_process'
import { access, constants } from 'node:fs/promises'
import { createRequire } from 'node:module'
import path from 'node:path'
import ffmpeg from 'fluent-ffmpeg'
import { ModalignError } from '../errors.ts'
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

/** The only formats that ffmpeg may read. Playlists, scripts and image patterns (hls, dash, concat, image2 ...), which open further files, are not among them. */
export const demuxers = ['mov', 'matroska', 'avi', 'mpegts', 'ogg', 'flac', 'wav', 'mp3', 'aac', 'bmp_pipe'] as const
export type Demuxer = (typeof demuxers)[number]

export interface FfmpegRequest {
  /** Bytes go through a pipe; a file is named absolutely. Seeking formats (mov) need a file. */
  readonly input: Uint8Array | { readonly file: string }
  /** What the input is by our own sniffing, never by ffmpeg's guess. */
  readonly demuxer: Demuxer
  readonly inputOptions?: readonly string[]
  /** What to make: for example `['-frames:v', '1', '-pix_fmt', 'rgb24']`. */
  readonly outputOptions: readonly string[]
  /** The muxer of the output: `rawvideo`, `f32le`, ... */
  readonly outputFormat: string
  /** More output is an error. */
  readonly maxBytes: number
  /** Wall clock, after which ffmpeg and whatever it started are killed. */
  readonly timeoutMs: number
  /** See {@link findFfmpeg}. */
  readonly program?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** No single allocation of ffmpeg's may be larger: enough for a picture of 64 megapixels. */
const maxAllocationBytes = 2 ** 28
const mostErrorText = 2 ** 16

/** The whole command line, in the order in which ffmpeg reads it. */
function ffmpegArguments({ input, demuxer, inputOptions = [], outputOptions, outputFormat }: FfmpegRequest): string[] {
  if (!(input instanceof Uint8Array) && !path.isAbsolute(input.file)) {
    throw new ModalignError({ code: 'FFMPEG_INPUT', file: input.file, got: 'a relative path', expected: 'an absolute path' })
  }
  // "file:" keeps names such as "-y", "concat:a|b" or "x%03d.png" from meaning anything.
  const source = input instanceof Uint8Array ? 'pipe:0' : `file:${input.file}`
  const command = ffmpeg()
    .input(source)
    .inputOptions('-nostdin', '-hide_banner', '-loglevel', 'error', '-max_alloc', String(maxAllocationBytes))
    .inputOptions('-protocol_whitelist', 'file,pipe', ...inputOptions)
    .inputFormat(demuxer)
    .outputOptions(...outputOptions)
    .format(outputFormat)
    .output('pipe:1')
  // Only the building of the command line is the package's: its runner would search PATH, run ffmpeg for its capabilities and buffer output without limit.
  return command._getArguments()
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
export async function runFfmpeg(request: FfmpegRequest): Promise<Uint8Array> {
  const { input, maxBytes, timeoutMs, signal } = request
  signal?.throwIfAborted()
  const program = await findFfmpeg(request.program)
  const file = input instanceof Uint8Array ? undefined : input.file
  const child = spawn(program, ffmpegArguments(request), {
    shell: false,
    stdio: [input instanceof Uint8Array ? 'pipe' : 'ignore', 'pipe', 'pipe'],
    // Its own process group, so that a kill reaches whatever it started. ffmpeg needs nothing of our environment.
    detached: process.platform !== 'win32',
    env: process.platform === 'win32' ? { SystemRoot: process.env.SystemRoot } : {},
    windowsHide: true,
  })
  let failure: ModalignError | Error | undefined
  const kill = (error: ModalignError | Error): void => {
    failure ??= error
    if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
    if (process.platform === 'win32') child.kill('SIGKILL')
    else process.kill(-child.pid, 'SIGKILL')
  }
  const abort = (): void => kill(signal?.reason instanceof Error ? signal.reason : new DOMException('aborted', 'AbortError'))
  const timer = setTimeout(
    () => kill(new ModalignError({ code: 'FFMPEG_TIMEOUT', file, got: `no result after ${timeoutMs} ms`, expected: 'a result' })),
    timeoutMs,
  )
  signal?.addEventListener('abort', abort, { once: true })
  try {
    const chunks: Buffer[] = []
    let received = 0
    child.stdout?.on('data', (chunk: Buffer) => {
      received += chunk.length
      if (received > maxBytes) {
        kill(new ModalignError({ code: 'FFMPEG_OUTPUT', file, got: `more than ${maxBytes} bytes`, expected: `at most ${maxBytes} bytes` }))
      } else chunks.push(chunk)
    })
    let words = ''
    child.stderr?.on('data', (chunk: Buffer) => {
      if (words.length < mostErrorText) words += chunk.toString('utf8')
    })
    // ffmpeg may stop reading early (it has all it needs, or it failed); its exit status tells which.
    child.stdin?.on('error', () => child.stdin?.destroy())
    if (input instanceof Uint8Array) child.stdin?.end(input)
    const status = await new Promise<string>((resolve, reject) => {
      child.once('error', (error) => reject(fileError(error, program, 'a program that runs')))
      child.once('close', (code, signalName) => resolve(signalName ?? String(code)))
    })
    if (failure !== undefined) throw failure
    if (status !== '0') {
      throw new ModalignError({
        code: 'FFMPEG_FAILED',
        file,
        got: words.trim() === '' ? `exit status ${status}` : words.trim().replaceAll(/\s*\n\s*/g, '; '),
        expected: 'a medium that ffmpeg can decode',
        hint: status === 'SIGKILL' ? 'something killed ffmpeg, most likely for want of memory' : undefined,
      })
    }
    const output = Buffer.concat(chunks)
    return new Uint8Array(output.buffer, output.byteOffset, output.length)
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', abort)
  }
}
