/** Where a command writes: results on stdout, words for people on stderr; with `--json` one JSON object a line on stdout. */
import { excerpt } from '../errors.ts'

export interface InputStream extends NodeJS.ReadableStream {
  readonly isTTY?: boolean
}
export interface OutputStream extends NodeJS.WritableStream {
  readonly isTTY?: boolean
  readonly columns?: number
}

/** What a command line needs of a process. */
export interface CliIo {
  readonly stdin: InputStream
  readonly stdout: OutputStream
  readonly stderr: OutputStream
  readonly env: Readonly<Record<string, string | undefined>>
  /** Where SIGINT and SIGTERM come from. Default: this process. */
  readonly signals?: SignalSource
  /** Ends the process at once. Default: `process.exit`. */
  readonly exit?: (code: number) => void
}
export interface SignalSource {
  on(event: 'SIGINT' | 'SIGTERM', listener: () => void): unknown
  off(event: 'SIGINT' | 'SIGTERM', listener: () => void): unknown
}

const styles = {
  bold: ['1', '22'],
  dim: ['2', '22'],
  red: ['31', '39'],
  green: ['32', '39'],
  yellow: ['33', '39'],
  cyan: ['36', '39'],
} as const
export type Style = keyof typeof styles

const narrowest = 20
const widest = 120

export class Terminal {
  readonly io: CliIo
  readonly json: boolean
  #closed = false

  constructor(io: CliIo, { json }: { readonly json: boolean }) {
    this.io = io
    this.json = json
    // A reader that has gone away (`| head`) is no failure. The listeners stay: the error may come after the last write.
    io.stdout.on('error', (error: Error) => this.#lost(error))
    io.stderr.on('error', () => undefined)
  }

  /** Nobody reads stdout any more: commands whose product is that text may stop. */
  get closed(): boolean {
    return this.#closed
  }

  /** Text on stdout as it is; nothing with `--json`. */
  text(text: string): void {
    if (!this.json) this.#write(text)
  }

  /** A line on stdout; nothing with `--json`. */
  line(text = ''): void {
    this.text(`${text}\n`)
  }

  /** With `--json`, one object on a line of stdout. */
  record(value: object): void {
    if (this.json) this.#write(`${JSON.stringify(value)}\n`)
  }

  /** A line for people on stderr. */
  note(text: string): void {
    this.io.stderr.write(`${text}\n`)
  }

  /** Columns for text on stdout. */
  get columns(): number {
    return Math.min(widest, Math.max(narrowest, this.io.stdout.columns ?? 100))
  }

  /** Whether stdout (or stderr) shows colours: a terminal that is not dumb, and no NO_COLOR. */
  colors(stream: OutputStream = this.io.stdout): boolean {
    return stream.isTTY === true && (this.io.env.NO_COLOR ?? '') === '' && this.io.env.TERM !== 'dumb'
  }

  /** Paints text for stdout where it shows colours. */
  paint(style: Style, text: string): string {
    const [on, off] = styles[style]
    return this.colors() ? `\u001b[${on}m${text}\u001b[${off}m` : text
  }

  #write(text: string): void {
    if (!this.#closed) this.io.stdout.write(text)
  }

  #lost(error: Error): void {
    this.#closed = true
    if (!('code' in error) || error.code !== 'EPIPE') this.note(`stdout: ${excerpt(error.message)}`)
  }
}

/**
 * Words in lines of at most `width` characters; later lines are indented. A word that is longer stands alone.
 *
 * @example
 * wrapped('install the driver', 12, '  ') // 'install the\n  driver'
 */
export function wrapped(text: string, width: number, indent = ''): string {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(/\s+/)) {
    const room = lines.length === 0 ? width : width - indent.length
    if (line !== '' && line.length + 1 + word.length > room) {
      lines.push(line)
      line = word
    } else line = line === '' ? word : `${line} ${word}`
  }
  lines.push(line)
  return lines.join(`\n${indent}`)
}
