/** Decoding strangers' pictures in processes that may die: a native crash costs one picture, never the job. */
import { type ChildProcess, fork } from 'node:child_process'
import { Socket } from 'node:net'
import { availableParallelism } from 'node:os'
import { ModalignError } from '../errors.ts'
import { openSharedRoom, type SharedRoom } from '../io/shared-room.ts'
import type { DecodedImage } from '../model/contracts.ts'
import type { TensorValue } from '../tensors.ts'
import {
  type ChildDecodeOptions,
  type ChildResult,
  type FromChild,
  fromChildSchema,
  type SentResult,
  type ToChild,
} from './child-protocol.ts'
import { type DecodedImageFile, defaultImageFormats, type ImageNote } from './image.ts'
import { defaultImageLimits } from './image-limits.ts'
import { type ImagePreprocessing, imageTensor } from './preprocess.ts'
import type { ImageFormat } from './sniff.ts'
import { isRemote, type MediaInput, readMedia, sourceName } from './source.ts'

export interface ImageDecoderOptions extends ChildDecodeOptions {
  /** How many processes decode at once. Default: as many as the machine has cores. */
  readonly processes?: number
  /** How many pixels may be in decoding at once, in all processes together; a larger picture goes alone. Default 200 million. */
  readonly maxPixelsAtOnce?: number
}

export interface PreprocessedImage {
  /** float32 `[1, 3, height, width]`. */
  readonly tensor: TensorValue
  /** The picture's own size. */
  readonly width: number
  readonly height: number
  readonly format: ImageFormat
  readonly notes: readonly ImageNote[]
}

/** A picture as `transformImage` gives it. */
export interface TransformedImage extends Omit<PreprocessedImage, 'tensor'> {
  readonly pixels: DecodedImage
}

export interface ImageDecoder extends AsyncDisposable {
  /** Of the processes that run now. */
  readonly processIds: readonly number[]
  /** As `decodeImage`. A picture over which two processes die is `IMAGE_DECODER_CRASHED`; one that does not answer in time is killed (`IMAGE_TIMEOUT`). */
  decode(source: MediaInput, options?: { readonly signal?: AbortSignal }): Promise<DecodedImageFile>
  /** The same, then `transformImage`: padding, resizing and cropping happen in the process, so that little crosses. */
  transform(source: MediaInput, spec: ImagePreprocessing, options?: { readonly signal?: AbortSignal }): Promise<TransformedImage>
  /** {@link ImageDecoder.transform}, then `imageTensor`. */
  preprocess(source: MediaInput, spec: ImagePreprocessing, options?: { readonly signal?: AbortSignal }): Promise<PreprocessedImage>
  /** Kills the processes; pictures under way reject with `DECODER_DISPOSED`. */
  dispose(): Promise<void>
}

/** The process has its own clock; it is killed where that clock does not tick either. */
const graceMs = 2_000
const startTimeoutMs = 60_000
const v8Options: readonly string[] = [
  // V8 counts pixels as memory that marking might free, and marks its heap in small steps beside the work after every few pictures. Without steps it frees them as they die.
  '--no-incremental-marking',
  // WebAssembly is compiled well at once, instead of quickly first and well after hundreds of pictures.
  '--no-liftoff',
]
/** Prepared pictures fit; whole ones that are larger cross as messages. */
const roomBytes = 2 ** 22

interface Job {
  readonly message: Omit<Extract<ToChild, { type: 'decode' }>, 'admittedPixels'>
  readonly name: string | undefined
  readonly resolve: (image: ChildResult) => void
  readonly reject: (error: unknown) => void
  readonly signal: AbortSignal | undefined
  /** A process died over it once already. */
  readonly isRetry: boolean
}

/**
 * A pool of decoding processes, started as they are needed. Pictures are given to them in the order of the calls.
 *
 * @example
 * await using decoder = createImageDecoder({ root: 'coco', processes: 2 })
 * const { tensor } = await decoder.preprocess('train2017/000000033471.jpg', encoder.preprocessing)
 */
export function createImageDecoder({
  processes = availableParallelism(),
  maxPixelsAtOnce = 200_000_000,
  ...options
}: ImageDecoderOptions = {}): ImageDecoder {
  const { timeoutMs, maxBytes } = { ...defaultImageLimits, ...options.limits }
  const sourceLimits = { maxBytes, tooLargeCode: 'IMAGE_TOO_LARGE', timeoutMs, root: options.root, http: options.http }
  const budget = pixelBudget(maxPixelsAtOnce)
  const children = new Set<Child>()
  const waiting: Job[] = []
  let disposed = false

  const assign = (): void => {
    while (waiting.length > 0) {
      const child = [...children].find(({ isIdle }) => isIdle()) ?? (children.size < processes ? start() : undefined)
      const job = child === undefined ? undefined : waiting.shift()
      if (child === undefined || job === undefined) return
      child.run(job)
    }
  }
  const start = (): Child => {
    const child = startChild({
      formats: options.formats ?? defaultImageFormats,
      timeoutMs,
      budget,
      // So much for each: together they stay within the budget, and nobody has to ask for an ordinary picture.
      ownPixels: Math.floor(maxPixelsAtOnce / processes),
      freed: assign,
      ended(interrupted) {
        children.delete(child)
        if (interrupted !== undefined && interrupted.signal?.aborted !== true) waiting.unshift({ ...interrupted, isRetry: true })
        assign()
      },
    })
    children.add(child)
    return child
  }
  const request = async (
    input: MediaInput,
    preprocessing: ImagePreprocessing | undefined,
    signal: AbortSignal | undefined,
  ): Promise<ChildResult> => {
    signal?.throwIfAborted()
    if (disposed) throw disposedError()
    // Only this process has the stream, and only this one should speak to servers.
    const source = isRemote(input) ? await readMedia(input, { ...sourceLimits, ...(signal && { signal }) }) : input
    const name = sourceName(input)
    let abort = (): void => {}
    try {
      return await new Promise((resolve, reject) => {
        const job: Job = { message: { type: 'decode', source, options, preprocessing }, name, resolve, reject, signal, isRetry: false }
        abort = () => {
          const at = waiting.indexOf(job)
          if (at >= 0) waiting.splice(at, 1)
          reject(signal?.reason)
        }
        signal?.addEventListener('abort', abort, { once: true })
        waiting.push(job)
        assign()
      })
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  const transform: ImageDecoder['transform'] = async (source, spec, { signal } = {}) => {
    const { original, format, notes, ...pixels } = await request(source, spec, signal)
    return { pixels, ...original, format, notes }
  }

  const dispose = async (): Promise<void> => {
    disposed = true
    for (const job of waiting.splice(0)) job.reject(disposedError())
    await Promise.all([...children].map((child) => child.kill(disposedError())))
  }
  return {
    get processIds() {
      return [...children].flatMap(({ pid }) => pid ?? [])
    },
    async decode(source, { signal } = {}) {
      const { original: _, ...image } = await request(source, undefined, signal)
      return image
    },
    transform,
    async preprocess(source, spec, options) {
      const { pixels, ...image } = await transform(source, spec, options)
      return { tensor: imageTensor(pixels, spec), ...image }
    },
    dispose,
    [Symbol.asyncDispose]: dispose,
  }
}

function disposedError(): ModalignError {
  return new ModalignError({ code: 'DECODER_DISPOSED', got: 'a picture for a decoder that was disposed', expected: 'a decoder in use' })
}

interface PixelBudget {
  /** Calls `admit` once there is room; the function returned gives the room back, or leaves the queue. */
  take(pixels: number, admit: () => void): () => void
}

function pixelBudget(most: number): PixelBudget {
  interface Claim {
    readonly pixels: number
    readonly admit: () => void
  }
  const held = new Set<Claim>()
  const queue: Claim[] = []
  const admitNext = (): void => {
    for (let next = queue[0]; next !== undefined; next = queue[0]) {
      const used = [...held].reduce((sum, { pixels }) => sum + pixels, 0)
      if (held.size > 0 && used + next.pixels > most) return
      queue.shift()
      held.add(next)
      next.admit()
    }
  }
  return {
    take(pixels, admit) {
      const claim = { pixels, admit }
      queue.push(claim)
      admitNext()
      return () => {
        held.delete(claim)
        const at = queue.indexOf(claim)
        if (at >= 0) queue.splice(at, 1)
        admitNext()
      }
    },
  }
}

interface Child {
  readonly pid: number | undefined
  isIdle(): boolean
  run(job: Job): void
  kill(reason: unknown): Promise<void>
}

interface ChildSettings {
  readonly formats: readonly ImageFormat[]
  readonly timeoutMs: number
  readonly budget: PixelBudget
  /** What it takes of the budget before it knows the picture. */
  readonly ownPixels: number
  /** The process can take another picture. */
  freed(): void
  /** The process is gone; `interrupted` deserves a second try. */
  ended(interrupted: Job | undefined): void
}

function startChild({ formats, timeoutMs, budget, ownPixels, freed, ended }: ChildSettings): Child {
  const program = new URL(import.meta.url.endsWith('.ts') ? './child.ts' : './child.js', import.meta.url)
  const room = openSharedRoom(roomBytes)
  const child = fork(program, {
    serialization: 'advanced',
    execArgv: [...process.execArgv, ...v8Options],
    stdio: ['ignore', 'ignore', 'pipe', 'ipc', ...(room === undefined ? [] : [room.descriptor])],
  })
  const gone = new Promise<void>((resolve) => child.once('close', () => resolve()))
  let ready = false
  let over = false
  let job: Job | undefined
  let clock: NodeJS.Timeout | undefined
  let release: (() => void) | undefined
  let reason: unknown
  let words = ''

  const send = (message: ToChild): void => {
    // A process that has just died cannot be told anything; its end is reported by `close`.
    if (child.connected) child.send(message, () => {})
  }
  const kill = (error: unknown): void => {
    reason ??= error
    child.kill('SIGKILL')
  }
  const watch = (limitMs: number, error: () => ModalignError): void => {
    clearTimeout(clock)
    clock = setTimeout(() => kill(error()), limitMs)
  }
  const watchWork = (): void => watch(timeoutMs + graceMs, () => timeoutError(timeoutMs))
  const abort = (): void => kill(job?.signal?.reason)
  // A caller waits for this end: with nothing else to do, Node would leave the wait unsettled and exit with status 13.
  const awaited = (): Promise<void> => {
    if (!over) setReferenced(child, true)
    return gone
  }
  const finish = (): Job | undefined => {
    const finished = job
    clearTimeout(clock)
    finished?.signal?.removeEventListener('abort', abort)
    release?.()
    release = undefined
    job = undefined
    setReferenced(child, false)
    return finished
  }
  const begin = (): void => {
    if (job === undefined || !ready) return
    const { message } = job
    release = budget.take(ownPixels, () => {
      send({ ...message, admittedPixels: ownPixels })
      watchWork()
    })
  }

  const heard = (message: FromChild): void => {
    if (message.type === 'ready') {
      ready = true
      begin()
    } else if (message.type === 'asks') {
      clearTimeout(clock)
      release?.()
      release = budget.take(message.pixels, () => {
        send({ type: 'admitted' })
        watchWork()
      })
    } else if (message.type === 'failed') {
      const finished = finish()
      finished?.reject(named(new ModalignError(message.error), finished))
      freed()
    } else {
      // Before another picture takes the room.
      const image = received(message.image, room)
      if (image === undefined) kill(crashedError('fewer pixels than it says'))
      else {
        finish()?.resolve(image)
        freed()
      }
    }
  }
  child.on('message', (raw) => {
    const message = fromChildSchema.safeParse(raw)
    if (message.success) heard(message.data)
    else kill(crashedError('an answer that makes no sense'))
  })
  child.stderr?.on('data', (chunk: Buffer) => {
    words = (words + chunk.toString('utf8')).slice(-2_000)
  })
  child.once('error', (error) => {
    reason ??= error
  })
  child.once('close', (code, signal) => {
    over = true
    room?.close()
    const finished = finish()
    // The process may have been ill from the picture before, or the machine short of memory: each picture gets a second process before it is blamed.
    const mayRetry = reason === undefined && ready && finished?.isRetry === false
    if (!mayRetry && finished !== undefined) {
      const ending = `${signal ?? `exit status ${code}`}${words.trim() === '' ? '' : `: ${words.trim()}`}`
      finished.reject(named(reason ?? (ready ? crashedError(ending) : startError(ending)), finished))
    }
    ended(mayRetry ? finished : undefined)
  })
  setReferenced(child, false)
  send({ type: 'configure', formats, roomBytes: room?.bytes ?? 0 })

  return {
    pid: child.pid,
    isIdle: () => !over && job === undefined && reason === undefined,
    run(next) {
      job = next
      setReferenced(child, true)
      next.signal?.addEventListener('abort', abort, { once: true })
      if (ready) begin()
      else watch(startTimeoutMs, () => startError(`nothing after ${startTimeoutMs} ms`))
    },
    async kill(error) {
      const end = awaited()
      kill(error)
      await end
    },
  }
}

/** The image with its pixels; undefined where it has none. */
function received({ data, ...image }: SentResult, room: SharedRoom | undefined): ChildResult | undefined {
  if (data !== undefined) return { ...image, data }
  const length = 3 * image.width * image.height
  if (room === undefined || length > room.bytes) return undefined
  try {
    return { ...image, data: room.read(length) }
  } catch (error) {
    if (error instanceof ModalignError) return undefined
    throw error
  }
}

/** Idle processes must not keep the program alive; working ones must. */
function setReferenced(child: ChildProcess, referenced: boolean): void {
  const change = referenced ? 'ref' : 'unref'
  child[change]()
  child.channel?.[change]()
  if (child.stderr instanceof Socket) child.stderr[change]()
}

/** The error with the picture's name, where it has one. */
function named(error: unknown, { name }: Job): unknown {
  return error instanceof ModalignError && name !== undefined
    ? new ModalignError({ ...error.details, file: name, cause: error.cause })
    : error
}

function crashedError(ending: string): ModalignError {
  return new ModalignError({
    code: 'IMAGE_DECODER_CRASHED',
    got: `two decoding processes that died, the last with ${ending}`,
    expected: 'a picture that decodes',
    hint: ending.startsWith('SIGKILL')
      ? 'something killed it, most likely for want of memory'
      : 'the file may be hostile: do not open it elsewhere',
  })
}

function startError(ending: string): ModalignError {
  return new ModalignError({
    code: 'IMAGE_DECODER_START',
    got: `a decoding process that did not start (${ending})`,
    expected: 'sharp and Node.js at work',
  })
}

function timeoutError(timeoutMs: number): ModalignError {
  return new ModalignError({ code: 'IMAGE_TIMEOUT', got: `no picture after ${timeoutMs} ms`, expected: 'a picture that decodes in time' })
}
