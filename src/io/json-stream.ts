/**
 * JSON files of any size, one record at a time. A record is an element of a top-level array, or a line of JSON Lines. Record boundaries are found on the bytes
 * and each record is parsed by itself, so a file may exceed the longest string of the engine (512 Mi characters) and memory stays near one record and one chunk.
 */
import { isUtf8 } from 'node:buffer'
import { type ErrorDetails, ModalignError } from '../errors.ts'
import { fileSource } from './byte-source.ts'
import type { JsonValue } from './json.ts'
import {
  braceClose,
  braceOpen,
  bracketClose,
  bracketOpen,
  comma,
  countNewlines,
  countPairs,
  freshScan,
  invalidUtf8,
  isSpace,
  newline,
  quote,
  scanNested,
  scanScalar,
  shownByte,
} from './json-scan.ts'
import { findJsonFault, type JsonFault } from './json-syntax.ts'

export interface JsonRecord {
  /** What `JSON.parse` gives; checked to hold no duplicate keys, lone surrogates or numbers that overflow. */
  readonly value: JsonValue
  /** The record as written. */
  readonly text: string
  /** Position among the records of the file, bad ones included, from 0. */
  readonly record: number
  /** Line of the record's first byte, from 1. */
  readonly line: number
  /** Where the record's bytes lie in the file, a byte order mark included. */
  readonly byteOffset: number
  readonly byteLength: number
}

export interface JsonStreamOptions {
  /** Name for error messages. */
  readonly file?: string
  /** `auto` (default) decides by the first byte: `[` is an array, `{` is one record a line. */
  readonly format?: 'auto' | 'array' | 'lines'
  /** Longest record, default 64 MiB. Longer ones are bad records. */
  readonly maxRecordBytes?: number
  /** Deepest nesting inside a record, default 64. */
  readonly maxDepth?: number
  /** Called for each bad record, which is then left out. Without it the first bad record throws. Faults after which record boundaries are unknown always throw. */
  readonly onBad?: (error: ModalignError) => void
  readonly signal?: AbortSignal
}

/**
 * Reads the records of a file.
 *
 * @throws ModalignError `FILE_MISSING`, `FILE_NOT_REGULAR`, ... of {@link fileSource}, and everything that {@link jsonRecords} throws.
 * @example
 * for await (const { record, value } of jsonFileRecords('llava_instruct_150k.json')) console.log(record, value)
 */
export async function* jsonFileRecords(path: string, options: JsonStreamOptions = {}): AsyncGenerator<JsonRecord, void, undefined> {
  yield* jsonRecords(fileChunks(path), { file: path, ...options })
}

async function* fileChunks(path: string): AsyncGenerator<Uint8Array, void, undefined> {
  const source = await fileSource(path)
  for (let offset = 0; offset < source.size; offset += mebibyte) yield await source.read(offset, Math.min(mebibyte, source.size - offset))
}

/**
 * Reads records from chunks of bytes. The result does not depend on where the chunks are cut.
 *
 * @throws ModalignError `JSON_ENCODING` (UTF-16, UTF-32), `JSON_ROOT` (neither an array nor one object a line), `JSON_SYNTAX`, `JSON_TRUNCATED`,
 * `JSON_TRAILING_COMMA`, `JSON_TRAILING_DATA`, `JSON_UTF8`, `JSON_NAN`, `JSON_NUMBER_OVERFLOW`, `JSON_DUPLICATE_KEY`, `JSON_SURROGATE`, `JSON_ESCAPE`,
 * `JSON_CONTROL_CHARACTER`, `JSON_DEPTH`, `JSON_RECORD_SIZE`. Each names file, record and line; `field` points into the record.
 */
export async function* jsonRecords(
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  options: JsonStreamOptions = {},
): AsyncGenerator<JsonRecord, void, undefined> {
  const splitter = new RecordSplitter(options)
  for await (const chunk of chunks) {
    options.signal?.throwIfAborted()
    splitter.append(chunk)
    yield* splitter.records(false)
  }
  options.signal?.throwIfAborted()
  yield* splitter.records(true)
}

const mebibyte = 1 << 20

type Phase = 'start' | 'before' | 'inside' | 'after' | 'closed' | 'lines'

class RecordSplitter {
  private readonly options: JsonStreamOptions
  private readonly maxBytes: number
  private readonly maxDepth: number
  private held = Buffer.alloc(0)
  private start = 0
  private end = 0
  /** How far the bytes from `start` have been looked at. */
  private seen = 0
  /** Place of `held[0]` in the file. */
  private base = 0
  private line = 1
  private record = 0
  private phase: Phase = 'start'
  private afterComma = false
  private kind: 'nested' | 'scalar' = 'nested'
  private scan = freshScan()
  /** The bytes of a record that is too long are dropped as they come. */
  private dropping = false
  private lastGood: { readonly record: number; readonly end: number } | undefined

  constructor(options: JsonStreamOptions) {
    this.options = options
    this.maxBytes = options.maxRecordBytes ?? 64 * mebibyte
    this.maxDepth = options.maxDepth ?? 64
  }

  append(chunk: Uint8Array): void {
    const kept = this.end - this.start
    if (this.end + chunk.length > this.held.length) {
      const room = kept + chunk.length > this.held.length ? Buffer.allocUnsafe(Math.max(2 * (kept + chunk.length), 1024)) : this.held
      room.set(this.held.subarray(this.start, this.end), 0)
      this.held = room
      this.base += this.start
      this.seen -= this.start
      this.start = 0
      this.end = kept
    }
    this.held.set(chunk, this.end)
    this.end += chunk.length
  }

  *records(final: boolean): Generator<JsonRecord, void, undefined> {
    if (this.phase === 'start' && !this.begin(final)) return
    if (this.phase === 'lines') yield* this.lines(final)
    else yield* this.elements(final)
  }

  /** Byte order mark, encoding, format. False while too few bytes have come. */
  private begin(final: boolean): boolean {
    if (this.end - this.start < 4 && !final) return false
    const head = this.held.subarray(this.start, Math.min(this.start + 4, this.end))
    if (this.base + this.start === 0) {
      this.refuseOtherFormats(head)
      if (head[0] === 0xef && head[1] === 0xbb && head[2] === 0xbf) this.start += 3
    }
    this.skipSpace()
    this.seen = this.start
    const first = this.held[this.start]
    const { format = 'auto' } = this.options
    if (this.start === this.end && !final) return false
    if (this.start === this.end || format === 'lines' || (format === 'auto' && first === braceOpen)) {
      this.phase = 'lines'
      return true
    }
    if (first !== bracketOpen) {
      if (this.end - this.start < 40 && !final) return false
      const text = this.held.toString('utf8', this.start, Math.min(this.start + 40, this.end))
      const expected = format === 'array' ? 'a JSON array of records' : 'a JSON array of records, or one JSON object a line'
      throw this.error({ code: 'JSON_ROOT', got: text, expected, line: this.line })
    }
    this.seen = ++this.start
    this.phase = 'before'
    return true
  }

  private refuseOtherFormats(head: Uint8Array): void {
    const hex = Buffer.from(head).toString('hex')
    const utf32 = hex === 'fffe0000' || hex === '0000feff'
    const utf16 = hex.startsWith('fffe') || hex.startsWith('feff') || (head[0] === 0) !== (head[1] === 0)
    if (utf32 || utf16) {
      const hint = 'convert it, for example with: iconv -f UTF-16 -t UTF-8'
      throw this.error({ code: 'JSON_ENCODING', got: utf32 ? 'UTF-32' : 'UTF-16', expected: 'UTF-8', hint })
    }
    const magic: readonly (readonly [string, string, string])[] = [
      ['1f8b', 'a gzip file', 'unpack it with gunzip'],
      ['28b52ffd', 'a Zstandard file', 'unpack it with zstd -d'],
      ['504b0304', 'a zip file', 'unpack it first'],
      ['50415231', 'a Parquet file', 'it needs a Parquet reader, not a JSON reader'],
    ]
    const other = magic.find(([prefix]) => hex.startsWith(prefix))
    if (other) throw this.error({ code: 'JSON_ENCODING', got: other[1], expected: 'JSON text in UTF-8', hint: other[2] })
  }

  private skipSpace(): void {
    while (this.start < this.end) {
      const byte = this.held[this.start]
      if (byte === undefined || !isSpace(byte)) return
      if (byte === newline) this.line++
      this.start++
    }
  }

  private *elements(final: boolean): Generator<JsonRecord, void, undefined> {
    for (;;) {
      if (this.phase !== 'inside') {
        this.skipSpace()
        this.seen = this.start
        const byte = this.held[this.start]
        if (this.start === this.end || byte === undefined) {
          if (final && this.phase !== 'closed') this.truncated()
          return
        }
        this.between(byte)
        continue
      }
      const end =
        this.kind === 'nested' ? scanNested(this.held, this.seen, this.end, this.scan) : scanScalar(this.held, this.seen, this.end)
      this.seen = end < 0 ? this.end : end
      if (end < 0 && !final) {
        if (this.seen - this.start > this.maxBytes && !this.dropping) this.tooLong(this.end)
        if (this.dropping) this.start = this.seen
        return
      }
      if (end < 0) {
        this.truncated()
        return
      }
      if (!this.dropping && end - this.start > this.maxBytes) this.tooLong(end)
      const startLine = this.line
      this.line += this.scan.newlines
      if (!this.dropping) {
        const parsed = this.parse(this.start, end, startLine, false)
        if (parsed) yield parsed
      }
      this.start = end
      this.phase = 'after'
      this.dropping = false
      this.record++
    }
  }

  /** One byte between records: a separator, or the first byte of the next record. */
  private between(byte: number): void {
    const place = { record: this.record, line: this.line }
    if (this.phase === 'closed') {
      const hint = byte === bracketOpen ? 'several arrays in one file: join them into one' : undefined
      throw this.error({
        code: 'JSON_TRAILING_DATA',
        line: this.line,
        got: this.at(shownByte(byte), this.base + this.start),
        expected: 'nothing after the array',
        hint,
      })
    }
    if (byte === bracketClose) {
      this.start++
      this.phase = 'closed'
      if (this.afterComma)
        this.report({ code: 'JSON_TRAILING_COMMA', ...place, got: 'a comma before ]', expected: 'no comma after the last record' })
      return
    }
    if (byte === comma) {
      this.start++
      if (this.phase === 'before') this.report({ code: 'JSON_SYNTAX', ...place, got: 'a comma', expected: 'a record' })
      this.phase = 'before'
      this.afterComma = true
      return
    }
    if (byte === braceClose) {
      throw this.error({ code: 'JSON_SYNTAX', ...place, got: this.at('}', this.base + this.start), expected: 'a record or ]' })
    }
    if (this.phase === 'after') {
      this.report({
        code: 'JSON_SYNTAX',
        ...place,
        got: this.at(shownByte(byte), this.base + this.start),
        expected: ', or ] after a record',
        hint: 'a comma is missing',
      })
    }
    this.phase = 'inside'
    this.afterComma = false
    this.kind = byte === braceOpen || byte === bracketOpen || byte === quote ? 'nested' : 'scalar'
    this.scan = freshScan()
  }

  private *lines(final: boolean): Generator<JsonRecord, void, undefined> {
    while (this.start < this.end || (final && this.dropping)) {
      const found = this.held.subarray(this.seen, this.end).indexOf(newline)
      const ended = found >= 0
      const end = ended ? this.seen + found : this.end
      this.seen = end
      if (!this.dropping && end - this.start > this.maxBytes) this.tooLong(end)
      if (!ended && !final) {
        if (this.dropping) this.start = end
        return
      }
      if (!this.dropping && !this.isBlank(this.start, end)) {
        const parsed = this.parse(this.start, end, this.line, !ended)
        if (parsed) yield parsed
        this.record++
      } else if (this.dropping) this.record++
      this.dropping = false
      this.line++
      this.start = this.seen = ended ? end + 1 : end
    }
  }

  private isBlank(start: number, end: number): boolean {
    for (let i = start; i < end; i++) {
      const byte = this.held[i]
      if (byte !== undefined && !isSpace(byte)) return false
    }
    return true
  }

  /** The record whose bytes are `held[start, end)`; undefined if it was bad and has been reported. */
  private parse(start: number, end: number, line: number, atEnd: boolean): JsonRecord | undefined {
    const bytes = this.held.subarray(start, end)
    const byteOffset = this.base + start
    if (!isUtf8(bytes)) {
      const invalid = invalidUtf8(bytes)
      const got = this.at(shownByte(bytes[invalid] ?? 0), byteOffset + invalid)
      this.report({
        code: 'JSON_UTF8',
        record: this.record,
        line: line + countNewlines(bytes.subarray(0, invalid)),
        got,
        expected: 'UTF-8',
      })
      return undefined
    }
    const scan = this.phase === 'lines' ? freshScan() : this.scan
    if (this.phase === 'lines') scanNested(bytes, 0, bytes.length, scan)
    const text = bytes.toString('utf8')
    if (scan.deepest <= this.maxDepth) {
      try {
        const value: JsonValue = JSON.parse(text)
        if (countPairs(value, text.includes('\\u')) === scan.pairs) {
          this.lastGood = { record: this.record, end: byteOffset + bytes.length }
          return { value, text, record: this.record, line, byteOffset, byteLength: bytes.length }
        }
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error
      }
    }
    const fault = findJsonFault(text, { maxDepth: this.maxDepth })
    if (fault === undefined) throw new Error(`internal: no fault found in a record that JSON.parse refused (byte ${byteOffset})`)
    this.reportFault(fault, text, byteOffset, line, atEnd)
    return undefined
  }

  private reportFault(fault: JsonFault, text: string, byteOffset: number, line: number, atEnd: boolean): void {
    const before = Buffer.from(text.slice(0, fault.index))
    const place = { record: this.record, line: line + countNewlines(before), field: fault.pointer }
    const lines = this.phase === 'lines'
    if (fault.ended && lines && atEnd) {
      this.report({ code: 'JSON_TRUNCATED', ...place, ...this.cut(byteOffset + before.length) })
      return
    }
    if (fault.ended && lines && this.record === 0) {
      throw this.error({
        code: 'JSON_ROOT',
        ...place,
        got: 'an object over several lines',
        expected: 'a JSON array of records, or one JSON object a line',
        hint: 'put the records into one array',
      })
    }
    const hint = fault.hint ?? (fault.ended && lines ? 'a record must lie on one line' : undefined)
    const details = { code: fault.code, ...place, got: this.at(fault.got, byteOffset + before.length), expected: fault.expected, hint }
    if (fault.lost && !lines) throw this.error(details)
    this.report(details)
  }

  private truncated(): void {
    const place = { record: this.record, line: this.line + (this.phase === 'inside' ? this.scan.newlines : 0) }
    if (this.phase === 'inside' && !this.dropping) this.throwEarlierFault(this.end)
    this.report({ code: 'JSON_TRUNCATED', ...place, ...this.cut(this.base + this.end) })
  }

  private cut(offset: number): Pick<ErrorDetails, 'got' | 'expected' | 'hint'> {
    const last = this.lastGood
    const complete = last ? `the last complete record is ${last.record}, which ends at byte ${last.end}` : 'no record is complete'
    return {
      got: `the end of the file at byte ${offset}`,
      expected: 'the rest of the record',
      hint: `${complete}; copy or download the file again`,
    }
  }

  /** `end`: where the record ends, or where its known bytes do. */
  private tooLong(end: number): void {
    if (this.phase === 'inside') this.throwEarlierFault(Math.min(end, this.start + this.maxBytes))
    this.dropping = true
    this.report({
      code: 'JSON_RECORD_SIZE',
      record: this.record,
      line: this.line,
      got: `more than ${this.maxBytes} bytes from byte ${this.base + this.start}`,
      expected: 'a shorter record',
      hint: this.phase === 'lines' ? 'one record a line' : 'a quote or a bracket may be missing',
    })
  }

  /** A record that seems never to end usually has a quote or bracket missing near its start: say that instead. */
  private throwEarlierFault(end: number): void {
    const text = this.held.toString('utf8', this.start, Math.min(end, this.start + mebibyte))
    const fault = findJsonFault(text, { maxDepth: this.maxDepth })
    if (fault?.lost && !fault.ended) this.reportFault(fault, text, this.base + this.start, this.line, false)
  }

  private at(what: string, byte: number): string {
    return `${what} at byte ${byte}`
  }

  private report(details: ErrorDetails): void {
    const error = this.error(details)
    if (this.options.onBad === undefined) throw error
    this.options.onBad(error)
  }

  private error(details: ErrorDetails): ModalignError {
    return new ModalignError({ file: this.options.file, ...details })
  }
}
