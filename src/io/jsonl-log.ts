import { excerpt, ModalignError } from '../errors.ts'
import { type AppendLog, type AppendLogOptions, openAppendLog } from './append-log.ts'
import { type ByteSource, fileSource } from './byte-source.ts'
import type { JsonValue } from './json.ts'

const newline = 0x0a
const carriageReturn = 0x0d
const chunkBytes = 2 ** 20
const longestLineBytes = 64 * 2 ** 20

/** An append-only file of one JSON value a line. */
export interface JsonlLog extends AsyncDisposable {
  readonly path: string
  readonly length: number
  readonly tornBytes: number
  /** Adds one line a value, all with a single write. */
  append(values: readonly JsonValue[]): Promise<void>
  sync(): Promise<void>
  close(): Promise<void>
}

/**
 * Opens a JSONL file for appending. A last line without its newline is what a killed process leaves: it is cut off, and `tornBytes` says how much went.
 * Readers never see half a line after that.
 *
 * @throws ModalignError `FILE_MISSING` (the folder), `FILE_PERMISSION`, `FILE_NOT_REGULAR`, `DISK_FULL`, ...
 * @example
 * await using log = await openJsonlLog('metrics.jsonl')
 * await log.append([{ step: 1, loss: 2.5 }])
 */
export async function openJsonlLog(path: string, options?: AppendLogOptions): Promise<JsonlLog> {
  const log = await openAppendLog(path, completeLines, options)
  return jsonlLog(log)
}

function jsonlLog(log: AppendLog): JsonlLog {
  return {
    path: log.path,
    tornBytes: log.tornBytes,
    get length() {
      return log.length
    },
    append: (values) => log.append(new TextEncoder().encode(values.map((value) => `${JSON.stringify(value)}\n`).join(''))),
    sync: () => log.sync(),
    close: () => log.close(),
    [Symbol.asyncDispose]: () => log.close(),
  }
}

/** Where the last complete line ends. */
export async function completeLines(source: ByteSource): Promise<number> {
  for (let end = source.size; end > 0; end -= Math.min(end, chunkBytes)) {
    const start = Math.max(0, end - chunkBytes)
    const last = (await source.read(start, end - start)).lastIndexOf(newline)
    if (last >= 0) return start + last + 1
  }
  return 0
}

export interface JsonlLine {
  /** Counted from 1. */
  readonly line: number
  /** Counted from 0; blank lines do not count. */
  readonly record: number
  readonly value: JsonValue
  /** Where the line begins in the file, and its bytes with the newline. */
  readonly offset: number
  readonly byteLength: number
}

/** A line that is no JSON. */
export interface BadLine extends Omit<JsonlLine, 'value'> {
  readonly error: ModalignError
}

/**
 * Reads a JSONL file line by line, in constant memory. Blank lines, CRLF, a byte order mark at the beginning and a last line without newline are fine.
 * Bad lines throw, or with `onBad` are reported and left out.
 *
 * @throws ModalignError `JSONL_MALFORMED`, `JSONL_UTF8`, `JSONL_LINE_TOO_LONG` (64 MiB), each with file, line and record; what {@link fileSource} throws
 * @example
 * for await (const { line, value } of readJsonl('data.jsonl')) console.log(line, value)
 */
export async function* readJsonl(
  path: string,
  options: { readonly onBad?: (bad: BadLine) => void } = {},
): AsyncGenerator<JsonlLine, void, undefined> {
  const source = await fileSource(path)
  let line = 0
  let record = 0
  for await (const { bytes, offset, byteLength } of lines(source)) {
    line++
    const at = { line, record, offset, byteLength }
    const parsed = parseLine(bytes, { file: path, line, record })
    if (parsed === undefined) continue
    record++
    if ('value' in parsed) yield { ...at, value: parsed.value }
    else if (options.onBad === undefined) throw parsed.error
    else options.onBad({ ...at, error: parsed.error })
  }
}

/** Undefined for a blank line. `bytes` undefined: the line was too long to be kept. */
function parseLine(
  bytes: Uint8Array | undefined,
  place: { readonly file: string; readonly line: number; readonly record: number },
): { readonly value: JsonValue } | { readonly error: ModalignError } | undefined {
  if (bytes === undefined) {
    return { error: new ModalignError({ code: 'JSONL_LINE_TOO_LONG', ...place, expected: `at most ${longestLineBytes} bytes a line` }) }
  }
  let text: string
  try {
    // A fatal decoder also takes a byte order mark away, which is wanted for the first line and an error of the JSON elsewhere.
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: place.line !== 1 }).decode(bytes)
  } catch (cause) {
    return {
      error: new ModalignError({
        code: 'JSONL_UTF8',
        ...place,
        got: utf16(bytes) ? 'UTF-16' : 'bytes that are no UTF-8',
        expected: 'UTF-8',
        cause,
      }),
    }
  }
  if (/^[ \t\r]*$/.test(text)) return undefined
  try {
    const value: JsonValue = JSON.parse(text)
    return { value }
  } catch (cause) {
    const hint = /\b(NaN|Infinity)\b/.test(text)
      ? 'JSON has no NaN and no Infinity: write null'
      : cause instanceof Error
        ? excerpt(cause.message)
        : undefined
    return { error: new ModalignError({ code: 'JSONL_MALFORMED', ...place, got: text, expected: 'one JSON value', hint, cause }) }
  }
}

function utf16(bytes: Uint8Array): boolean {
  return (bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff)
}

interface RawLine {
  /** Without the line's end. */
  readonly bytes: Uint8Array | undefined
  readonly offset: number
  readonly byteLength: number
}

async function* lines(source: ByteSource): AsyncGenerator<RawLine, void, undefined> {
  let parts: Uint8Array[] = []
  let held = 0
  let start = 0
  function take(end: number, hasNewline: boolean): RawLine {
    const bytes = held > longestLineBytes ? undefined : join(parts, held)
    const line = {
      bytes: bytes?.at(-1) === carriageReturn ? bytes.subarray(0, -1) : bytes,
      offset: start,
      byteLength: end - start + (hasNewline ? 1 : 0),
    }
    parts = []
    held = 0
    start = end + 1
    return line
  }
  for (let position = 0; position < source.size; position += chunkBytes) {
    const chunk = await source.read(position, Math.min(chunkBytes, source.size - position))
    let from = 0
    for (let at = chunk.indexOf(newline); at >= 0; at = chunk.indexOf(newline, from)) {
      parts.push(chunk.subarray(from, at))
      held += at - from
      yield take(position + at, true)
      from = at + 1
    }
    held += chunk.length - from
    // A line past the limit is measured, not kept.
    if (held > longestLineBytes) parts = []
    else if (from < chunk.length) parts.push(chunk.subarray(from))
  }
  if (start < source.size) yield take(source.size, false)
}

function join(parts: readonly Uint8Array[], length: number): Uint8Array {
  const [only] = parts
  if (parts.length === 1 && only !== undefined) return only
  const whole = new Uint8Array(length)
  let filled = 0
  for (const part of parts) {
    whole.set(part, filled)
    filled += part.length
  }
  return whole
}
