import type { ByteSource } from '../io/memory-source.ts'

/** CSV as RFC 4180 has it: fields with commas, quotes or line ends in quotes, quotes doubled, records ended by CRLF. UTF-8, no byte order mark. */

const quote = 0x22
const newline = 0x0a
const chunkBytes = 2 ** 20

/**
 * One record with its CRLF. The text is quoted where needed and never altered.
 *
 * @example
 * csvRecord(['a', 'say "hi", twice']) // 'a,"say ""hi"", twice"\r\n'
 */
export function csvRecord(fields: readonly string[]): string {
  return `${fields.map((field) => (/[",\r\n]|^\s|\s$/.test(field) ? `"${field.replaceAll('"', '""')}"` : field)).join(',')}\r\n`
}

export interface CsvRecord {
  readonly fields: readonly string[]
  /** Of the record's first line, counted from 1. */
  readonly line: number
  readonly offset: number
  /** With the record's end. */
  readonly byteLength: number
}

/** The complete records of a file, in constant memory. What follows the last record's end is left out: a record cut off anywhere has no end outside quotes. */
export async function* readCsv(source: ByteSource): AsyncGenerator<CsvRecord, void, undefined> {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  let held: Uint8Array[] = []
  let start = 0
  let line = 1
  let lines = 0
  let quoted = false
  for (let position = 0; position < source.size; position += chunkBytes) {
    const chunk = await source.read(position, Math.min(chunkBytes, source.size - position))
    let from = 0
    for (let i = 0; i < chunk.length; i++) {
      const byte = chunk[i]
      // A doubled quote inside quotes switches twice, which leaves the state as it should be.
      if (byte === quote) quoted = !quoted
      if (byte !== newline) continue
      lines++
      if (quoted) continue
      const end = position + i + 1
      const text = [...held, chunk.subarray(from, i + 1)].map((part) => decoder.decode(part, { stream: true })).join('') + decoder.decode()
      yield { fields: splitFields(text.replace(/\r?\n$/, '')), line, offset: start, byteLength: end - start }
      held = []
      from = i + 1
      start = end
      line += lines
      lines = 0
    }
    held.push(chunk.subarray(from))
  }
}

/** Where the last complete record ends. */
export async function completeRecords(source: ByteSource): Promise<number> {
  let end = 0
  for await (const { offset, byteLength } of readCsv(source)) end = offset + byteLength
  return end
}

function splitFields(record: string): readonly string[] {
  const fields: string[] = []
  let at = 0
  for (;;) {
    let field = ''
    if (record[at] === '"') {
      for (at++; ; at++) {
        const end = record.indexOf('"', at)
        field += record.slice(at, end < 0 ? undefined : end)
        at = end < 0 ? record.length : end + 1
        if (record[at] !== '"') break
        field += '"'
      }
    }
    const comma = record.indexOf(',', at)
    field += record.slice(at, comma < 0 ? undefined : comma)
    fields.push(field)
    if (comma < 0) return fields
    at = comma + 1
  }
}
