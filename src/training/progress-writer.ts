import { type ProgressState, renderProgress, renderProgressPlain } from './progress.ts'

/** What the writer needs of `process.stderr`. */
export interface ProgressStream {
  readonly isTTY?: boolean
  readonly columns?: number
  write(text: string): unknown
  on(event: 'error', listener: (error: Error) => void): unknown
}

export interface ProgressOptions {
  readonly label: string
  readonly total: number
  /** Items that earlier sessions did; default 0. */
  readonly skipped?: number
  /** Default `steps`. */
  readonly unit?: string
  /** Default `process.stderr`. */
  readonly stream?: ProgressStream
  /** Default `process.env`; `NO_COLOR`, `TERM`, `LC_ALL`, `LC_CTYPE` and `LANG` are read. */
  readonly env?: Readonly<Record<string, string | undefined>>
  /** Milliseconds, monotonic; default `performance.now`. */
  readonly now?: () => number
  /** Shortest time between two lines in a pipe; default 10 s. */
  readonly plainIntervalMs?: number
}

export interface Progress {
  /** `facts`: figures to show, the most important first. */
  update(done: number, facts?: ProgressState['facts']): void
  /** A line of its own that stays, for example a warning. */
  message(text: string): void
  /** Draws the last state and ends the line. Nothing is written afterwards. */
  finish(): void
}

/** Redrawing more often only flickers. */
const redrawIntervalMs = 80
/** How quickly the speed shown follows the speed of now: the time constant of its average. */
const smoothingMs = 15_000

/**
 * Shows progress on stderr. On a terminal one line is redrawn; elsewhere (pipe, file, `TERM=dumb`) plain lines appear at intervals. Writing to a stream that has gone away
 * (EPIPE) ends the display, never the job.
 *
 * @example
 * const progress = showProgress({ label: 'tune', total: 100 })
 * progress.update(1, [['loss', '2.31']])
 * progress.finish()
 */
export function showProgress(options: ProgressOptions): Progress {
  const {
    label,
    total,
    skipped = 0,
    unit = 'steps',
    stream = process.stderr,
    env = process.env,
    now = () => performance.now(),
    plainIntervalMs = 10_000,
  } = options
  const live = stream.isTTY === true && env.TERM !== 'dumb'
  const color = live && (env.NO_COLOR ?? '') === ''
  const unicode = speaksUnicode(env)
  const started = now()
  let state: ProgressState = { label, done: skipped, total, skipped, elapsedMs: 0, unit }
  let drawnAt = Number.NEGATIVE_INFINITY
  let finished = false
  const speed = smoothedSpeed(skipped, started)

  const broken = watchErrors(stream)
  const write = (text: string): void => {
    if (broken.has(stream)) return
    try {
      stream.write(text)
    } catch {
      broken.add(stream)
    }
  }
  const draw = (): void => {
    if (live) write(`\r\u001b[2K${renderProgress(state, { columns: stream.columns ?? 80, color, unicode })}`)
    else write(`${renderProgressPlain(state)}\n`)
  }
  return {
    update(done, facts) {
      if (finished) return
      const time = now()
      const rate = speed(done, time)
      state = { label, done, total, skipped, unit, elapsedMs: time - started, ...(facts && { facts }), ...(rate !== undefined && { rate }) }
      if (time - drawnAt < (live ? redrawIntervalMs : plainIntervalMs)) return
      drawnAt = time
      draw()
    },
    message(text) {
      if (!live || finished) write(`${text}\n`)
      else {
        write(`\r\u001b[2K${text}\n`)
        draw()
      }
    },
    finish() {
      if (finished) return
      finished = true
      const elapsedMs = now() - started
      const { rate: _, ...rest } = state
      // The last line tells the average of the whole session.
      state = { ...rest, elapsedMs }
      draw()
      if (live) write('\n')
    },
  }
}

const watched = new WeakSet<ProgressStream>()
const brokenStreams = new WeakSet<ProgressStream>()

/**
 * The streams that broke. One listener a stream, for good: an EPIPE may come after the last write, and an error that nobody listens to ends the process. The display is a
 * courtesy: when its stream breaks there is nowhere left to say so, and the job must go on.
 */
function watchErrors(stream: ProgressStream): WeakSet<ProgressStream> {
  if (!watched.has(stream)) {
    watched.add(stream)
    stream.on('error', () => brokenStreams.add(stream))
  }
  return brokenStreams
}

function speaksUnicode(env: Readonly<Record<string, string | undefined>>): boolean {
  const locale = env.LC_ALL || env.LC_CTYPE || env.LANG || ''
  if (env.TERM === 'linux') return false
  return /utf-?8/i.test(locale) || (locale === '' && process.platform !== 'linux')
}

/** Items per second as an exponential average over time; undefined before the first measurement. */
function smoothedSpeed(skipped: number, started: number): (done: number, time: number) => number | undefined {
  let last = { done: skipped, time: started }
  let items = 0
  let milliseconds = 0
  return (done, time) => {
    const passed = time - last.time
    if (passed > 0) {
      const kept = Math.exp(-passed / smoothingMs)
      items = items * kept + (done - last.done)
      milliseconds = milliseconds * kept + passed
      last = { done, time }
    }
    return milliseconds > 0 ? (1000 * items) / milliseconds : undefined
  }
}
