/** How far a long job is: one line that redraws itself on a terminal, plain lines now and then in a pipe. */
import { excerpt } from '../errors.ts'

export interface ProgressState {
  /** What is being done, for example `tune`. */
  readonly label: string
  readonly done: number
  readonly total: number
  /** Items of earlier sessions among `done`: they took no time of this one. Default 0. */
  readonly skipped?: number
  readonly elapsedMs: number
  /** Plural name of what is counted, for example `steps`. */
  readonly unit: string
  /** Figures to show, the most important first: `[['loss', '2.31'], ['lr', '1e-3']]`. On a narrow terminal the last go first. */
  readonly facts?: readonly (readonly [name: string, value: string])[]
  /** Recent items per second; default: the average of this session. */
  readonly rate?: number
}

export interface ProgressStyle {
  /** Width of the terminal; Infinity in a pipe. */
  readonly columns: number
  readonly color?: boolean
  /** Draw the bar with box characters instead of ASCII. Default true. */
  readonly unicode?: boolean
}

const longestBar = 30
const shortestBar = 8

/**
 * The line of a terminal: never wider than `columns - 1`, so that it never wraps. What does not fit is left out, the least important first: figures from the last on,
 * then speed, bar, remaining time, count.
 *
 * @example
 * renderProgress({ label: 'tune', done: 25, total: 100, elapsedMs: 5000, unit: 'steps', facts: [['loss', '2.31']] }, { columns: 80 })
 * // 'tune ━━━━━━━╺━━━━━━━━━━━━━━━━━━━━━━  25%  25/100  loss 2.31  5.0 steps/s  15s left'
 */
export function renderProgress(state: ProgressState, { columns, color = false, unicode = true }: ProgressStyle): string {
  const room = Math.max(0, columns - 1)
  const paint = (code: string, text: string) => (color && text !== '' ? `\u001b[${code}m${text}\u001b[0m` : text)
  const label = excerpt(state.label)
  const percent = `${Math.floor(100 * fraction(state))}%`.padStart(4)
  const count = `${state.done}/${state.total}`
  const facts = (state.facts ?? []).map(([name, value]) => ({ name: excerpt(name), value: excerpt(value) }))
  const [speed, remaining] = [speedText(state), remainingText(state)]
  // Each try leaves more out than the one before.
  const tries = [
    ...facts.map((_, i) => ({ facts: facts.length - i, speed: true, bar: true, remaining: true, count: true })),
    { facts: 0, speed: true, bar: true, remaining: true, count: true },
    { facts: 0, speed: false, bar: true, remaining: true, count: true },
    { facts: 0, speed: false, bar: false, remaining: true, count: true },
    { facts: 0, speed: false, bar: false, remaining: false, count: true },
    { facts: 0, speed: false, bar: false, remaining: false, count: false },
  ]
  for (const shown of tries) {
    const parts: (readonly [plain: string, painted: string])[] = [[percent, percent]]
    if (shown.count) parts.push([count, paint('2', count)])
    for (const { name, value } of facts.slice(0, shown.facts)) parts.push([`${name} ${value}`, `${paint('2', name)} ${value}`])
    if (shown.speed && speed !== '') parts.push([speed, paint('2', speed)])
    if (shown.remaining && remaining !== '') parts.push([remaining, paint('36', remaining)])
    const rest = parts.map(([plain]) => plain).join('  ')
    const used = displayWidth(label) + 1 + displayWidth(rest)
    const width = Math.min(longestBar, room - used - 1)
    const painted = parts.map(([, text]) => text).join('  ')
    if (shown.bar && width >= shortestBar) return `${paint('1', label)} ${bar(state, width, unicode, paint)} ${painted}`
    if (!shown.bar && used <= room) return `${paint('1', label)} ${painted}`
  }
  return percent.trim().length <= room ? percent.trim() : ''
}

/**
 * The same as a plain line for a pipe or a log file.
 *
 * @example
 * renderProgressPlain({ label: 'tune', done: 25, total: 100, elapsedMs: 5000, unit: 'steps' }) // 'tune: 25/100 steps (25%), 5.0 steps/s, 15s left'
 */
export function renderProgressPlain(state: ProgressState): string {
  const facts = (state.facts ?? []).map(([name, value]) => `${excerpt(name)} ${excerpt(value)}`)
  const place = `${state.done}/${state.total} ${state.unit} (${Math.floor(100 * fraction(state))}%)`
  return `${excerpt(state.label)}: ${[place, ...facts, speedText(state), remainingText(state)].filter((part) => part !== '').join(', ')}`
}

const fraction = ({ done, total }: ProgressState): number => (total <= 0 ? 1 : Math.min(1, Math.max(0, done / total)))

function speedOf({ done, skipped = 0, elapsedMs, rate }: ProgressState): number {
  return rate ?? (elapsedMs > 0 ? (1000 * (done - skipped)) / elapsedMs : 0)
}

function speedText(state: ProgressState): string {
  const speed = speedOf(state)
  if (!(speed > 0 && Number.isFinite(speed))) return ''
  if (speed >= 1) return `${speed >= 100 ? Math.round(speed) : speed.toFixed(1)} ${state.unit}/s`
  return `${(1 / speed).toFixed(1)} s/${state.unit.replace(/s$/, '')}`
}

function remainingText(state: ProgressState): string {
  if (state.done >= state.total) return `in ${durationText(state.elapsedMs / 1000)}`
  const speed = speedOf(state)
  return speed > 0 && Number.isFinite(speed) ? `${durationText((state.total - state.done) / speed)} left` : ''
}

/**
 * A duration for people: two units at most.
 *
 * @example
 * durationText(3725) // '1h 02m'
 */
export function durationText(seconds: number): string {
  const whole = Math.round(seconds)
  const two = (value: number) => String(value).padStart(2, '0')
  if (whole < 60) return `${whole}s`
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`
  const minutes = Math.round(seconds / 60)
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)}h ${two(minutes % 60)}m`
  const hours = Math.round(seconds / 3600)
  return `${Math.floor(hours / 24)}d ${two(hours % 24)}h`
}

function bar(state: ProgressState, width: number, unicode: boolean, paint: (code: string, text: string) => string): string {
  const inside = unicode ? width : width - 2
  const filled = Math.floor(inside * fraction(state))
  const rest = inside - filled
  if (!unicode) return `[${paint('32', '='.repeat(filled))}${' '.repeat(rest)}]`
  return paint('32', '━'.repeat(filled)) + paint('2', rest > 0 ? `╺${'━'.repeat(rest - 1)}` : '')
}

/** Columns that a text takes: two for East Asian wide characters and emoji, none for combining marks. */
function displayWidth(text: string): number {
  let width = 0
  for (const character of text) {
    if (/^[\p{M}\p{Cf}]$/u.test(character)) continue
    width += /^[\p{Emoji_Presentation}\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]$/u.test(
      character,
    )
      ? 2
      : 1
  }
  return width
}
