/** One process that decodes pictures for this one: its life, its clock, and what its end means for the pictures it had. */
import { type ChildProcess, fork } from 'node:child_process'
import { Socket } from 'node:net'
import { ModalignError } from '../errors.ts'
import { openSharedRoom, type SharedRoom } from '../io/shared-room.ts'
import type { MediaSource } from '../model/contracts.ts'
import {
  type ChildDecodeOptions,
  type ChildResult,
  type FromChild,
  fromChildSchema,
  type SentImage,
  type SentResult,
  type ToChild,
} from './child-protocol.ts'
import type { PixelBudget } from './pixel-budget.ts'
import type { ImagePreprocessing } from './preprocess.ts'
import type { ImageFormat } from './sniff.ts'

/** One picture to be decoded. */
export interface PictureJob {
  readonly source: MediaSource
  readonly preprocessing: ImagePreprocessing | undefined
  readonly name: string | undefined
  readonly resolve: (image: ChildResult) => void
  readonly reject: (error: unknown) => void
  readonly signal: AbortSignal | undefined
  readonly unhurried: boolean
  /** A process came to an end with it and others in hand: it goes alone, so that nobody is blamed for another. */
  readonly alone: boolean
  /** A process died over it once already. */
  readonly isRetry: boolean
}

export interface DecodingProcess {
  readonly pid: number | undefined
  isIdle(): boolean
  /** @param jobs at least one; all with the same preprocessing */
  run(jobs: readonly PictureJob[]): void
  /** Kills it; what it has in hand rejects with `reason`. */
  kill(reason: unknown): Promise<void>
}

export interface DecodingSettings {
  readonly formats: readonly ImageFormat[]
  readonly options: ChildDecodeOptions
  readonly timeoutMs: number
  readonly budget: PixelBudget
  /** What it takes of the budget before it knows the picture. */
  readonly ownPixels: number
  /** The process can take other pictures. */
  freed(): void
  /** The process is gone; `interrupted` deserve another one. */
  ended(interrupted: readonly PictureJob[]): void
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

export function startDecodingProcess({ formats, options, timeoutMs, budget, ownPixels, freed, ended }: DecodingSettings): DecodingProcess {
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
  let jobs: readonly PictureJob[] = []
  /** Of the room, by the results of these jobs so far. */
  let used = 0
  let clock: NodeJS.Timeout | undefined
  let release: (() => void) | undefined
  /** Why it was killed, and whether that is a matter of the pictures in hand. */
  let killed: { readonly reason: unknown; readonly overPictures: boolean } | undefined
  let words = ''

  const send = (message: ToChild): void => {
    // A process that has just died cannot be told anything; its end is reported by `close`.
    if (child.connected) child.send(message, () => {})
  }
  const kill = (reason: unknown, overPictures = true): void => {
    killed ??= { reason, overPictures }
    child.kill('SIGKILL')
  }
  const watch = (limitMs: number, error: () => ModalignError): void => {
    clearTimeout(clock)
    clock = setTimeout(() => kill(error()), limitMs)
  }
  const watchWork = (): void => watch(timeoutMs + graceMs, () => timeoutError(timeoutMs))
  const abort = (): void => {
    if (jobs.every(({ signal }) => signal?.aborted === true)) kill(jobs[0]?.signal?.reason)
  }
  // A caller waits for this end: with nothing else to do, Node would leave the wait unsettled and exit with status 13.
  const awaited = (): Promise<void> => {
    if (!over) setReferenced(child, true)
    return gone
  }
  /** Takes the first jobs out of hand. */
  const finish = (count: number): readonly PictureJob[] => {
    const finished = jobs.slice(0, count)
    jobs = jobs.slice(count)
    for (const { signal } of finished) signal?.removeEventListener('abort', abort)
    // Those left may share a signal with them.
    for (const { signal } of jobs) signal?.addEventListener('abort', abort, { once: true })
    if (jobs.length === 0) {
      clearTimeout(clock)
      release?.()
      release = undefined
      setReferenced(child, false)
    }
    return finished
  }
  const begin = (): void => {
    const [first] = jobs
    if (first === undefined || !ready) return
    const { preprocessing } = first
    const sources = jobs.map(({ source }) => source)
    release = budget.take(ownPixels, () => {
      send({ type: 'decode', sources, preprocessing, admittedPixels: ownPixels })
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
    } else {
      // Before other pictures take the room.
      const arrived = message.results.length <= jobs.length ? received(message.results, room, used) : undefined
      if (arrived === undefined) {
        kill(crashedError('fewer pixels than it says'))
        return
      }
      used = arrived.used
      for (const [index, job] of finish(arrived.results.length).entries()) {
        const result = arrived.results[index]
        if (result === undefined) continue
        if ('error' in result) job.reject(named(new ModalignError(result.error), job))
        else job.resolve(result.image)
      }
      if (jobs.length === 0) freed()
      else watchWork()
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
    killed ??= { reason: error, overPictures: false }
  })
  child.once('close', (code, signal) => {
    over = true
    room?.close()
    const ending = `${signal ?? `exit status ${code}`}${words.trim() === '' ? '' : `: ${words.trim()}`}`
    const finished = finish(jobs.length)
    const diedOfItself = killed === undefined && ready
    const again: PictureJob[] = []
    for (const job of finished) {
      if (job.signal?.aborted === true) continue
      // The process may have been ill from a picture before, or the machine short of memory: each picture gets a second process before it is blamed, and none is for another.
      if (diedOfItself && !job.isRetry) again.push({ ...job, alone: true, isRetry: true })
      else if (finished.length > 1 && killed?.overPictures === true) again.push({ ...job, alone: true })
      else job.reject(named(killed?.reason ?? (ready ? crashedError(ending) : startError(ending)), job))
    }
    ended(again)
  })
  setReferenced(child, false)
  send({ type: 'configure', formats, options, roomBytes: room?.bytes ?? 0 })

  return {
    pid: child.pid,
    isIdle: () => !over && jobs.length === 0 && killed === undefined,
    run(next) {
      jobs = next
      used = 0
      setReferenced(child, true)
      for (const { signal } of next) signal?.addEventListener('abort', abort, { once: true })
      if (ready) begin()
      else watch(startTimeoutMs, () => startError(`nothing after ${startTimeoutMs} ms`))
    },
    async kill(reason) {
      const end = awaited()
      kill(reason, false)
      await end
    },
  }
}

interface Received {
  readonly results: readonly ({ readonly image: ChildResult } | Extract<SentResult, { readonly error: unknown }>)[]
  readonly used: number
}

/** The results with their pixels, of which those in the room begin where `before` ends; undefined where some are not there. */
function received(results: readonly SentResult[], room: SharedRoom | undefined, before: number): Received | undefined {
  let used = before
  const pixels = ({ data, width, height }: SentImage): Uint8Array | undefined => {
    if (data !== undefined) return data
    const [offset, length] = [used, 3 * width * height]
    used += length
    return room === undefined || used > room.bytes ? undefined : room.read(offset, length)
  }
  try {
    const whole = results.map((result) => {
      if ('error' in result) return result
      const data = pixels(result.image)
      return data && { image: { ...result.image, data } }
    })
    return whole.includes(undefined) ? undefined : { results: whole.filter((result) => result !== undefined), used }
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
function named(error: unknown, { name }: PictureJob): unknown {
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
