import { z } from 'zod'
import { type ErrorData, ModalignError } from '../errors.ts'
import { type AppendLog, type AppendLogOptions, openAppendLog } from '../io/append-log.ts'
import { writeFileAtomic } from '../io/atomic.ts'
import { fileSource } from '../io/byte-source.ts'
import { completeLines, readJsonl } from '../io/jsonl-log.ts'
import { completeRecords, csvRecord, readCsv } from './csv.ts'
import { RowIndex, type RowPlace } from './row-index.ts'

/** One item's result: a caption, or the error's data, never both. */
export interface CaptionRow {
  readonly id: string
  /** Where the medium came from, as the input names it. */
  readonly source: string
  readonly caption: string | null
  readonly error: ErrorData | null
}

/** The rows of a job on disk: what is in it is done. */
export interface RowLog {
  readonly path: string
  readonly rows: RowIndex
  readonly tornBytes: number
  /** Adds rows with a single write and returns their numbers. */
  append(rows: readonly CaptionRow[]): Promise<readonly number[]>
  read(row: number): Promise<CaptionRow>
  sync(): Promise<void>
  close(): Promise<void>
}

const errorSchema: z.ZodType<ErrorData> = z.object({
  code: z.string(),
  file: z.string().optional(),
  record: z.number().optional(),
  line: z.number().optional(),
  field: z.string().optional(),
  got: z.string().optional(),
  expected: z.string().optional(),
  hint: z.string().optional(),
})
const rowSchema = z.union([
  z.object({ id: z.string(), source: z.string(), caption: z.string(), error: z.null() }),
  z.object({ id: z.string(), source: z.string(), caption: z.null(), error: errorSchema }),
])

/** How rows look in a file. */
interface RowFormat {
  readonly header: string
  encode(row: CaptionRow): string
  completeLength: typeof completeLines
  /** Complete rows in file order. `row` undefined: it is no row of ours. */
  read(path: string): AsyncIterable<{ readonly row: unknown; readonly line: number; readonly offset: number; readonly byteLength: number }>
  decode(text: string): Promise<unknown>
}

const jsonl: RowFormat = {
  header: '',
  encode: ({ id, source, caption, error }) => `${JSON.stringify({ id, source, caption, error })}\n`,
  completeLength: completeLines,
  async *read(path) {
    for await (const { value, line, offset, byteLength } of readJsonl(path)) yield { row: value, line, offset, byteLength }
  },
  decode: async (text) => JSON.parse(text),
}

const csvColumns = ['id', 'source', 'caption', 'error']
const csv: RowFormat = {
  header: csvRecord(csvColumns),
  encode: ({ id, source, caption, error }) => csvRecord([id, source, caption ?? '', error === null ? '' : JSON.stringify(error)]),
  completeLength: completeRecords,
  async *read(path) {
    for await (const { fields, line, offset, byteLength } of readCsv(await fileSource(path))) {
      if (offset === 0) {
        if (fields.join() !== csvColumns.join()) yield { row: undefined, line, offset, byteLength }
      } else yield { row: csvRow(fields), line, offset, byteLength }
    }
  },
  async decode(text) {
    const bytes = new TextEncoder().encode(text)
    for await (const { fields } of readCsv({ size: bytes.length, read: async (offset, length) => bytes.slice(offset, offset + length) }))
      return csvRow(fields)
    return undefined
  },
}

function csvRow([id, source, caption, error, ...more]: readonly string[]): unknown {
  if (error === undefined || more.length > 0) return undefined
  if (error === '') return { id, source, caption, error: null }
  try {
    return { id, source, caption: null, error: JSON.parse(error) }
  } catch {
    return undefined
  }
}

export const rowFormats = { jsonl, csv } as const satisfies Readonly<Record<string, RowFormat>>
export type RowFormatName = keyof typeof rowFormats

/**
 * Opens the rows of a job, cuts off a torn last one and finds out what is done.
 *
 * @throws ModalignError `JOB_ROW_MALFORMED` (a row that this program did not write), `JOB_ROW_TWICE`, and what `openAppendLog` throws
 */
export async function openRowLog(path: string, formatName: RowFormatName, options: AppendLogOptions): Promise<RowLog> {
  const format: RowFormat = rowFormats[formatName]
  const log = await openAppendLog(path, format.completeLength, options)
  try {
    if (log.length === 0) await log.append(new TextEncoder().encode(format.header))
    return rowLog(log, format, await rowsIn(path, format))
  } catch (error) {
    await log.close()
    throw error
  }
}

async function rowsIn(path: string, format: RowFormat): Promise<RowIndex> {
  const rows = new RowIndex()
  for await (const { row, line, offset, byteLength } of format.read(path)) {
    const parsed = rowSchema.safeParse(row)
    if (!parsed.success) {
      const hint = 'the file was changed, or is not of this job: choose another output'
      throw new ModalignError({
        code: 'JOB_ROW_MALFORMED',
        file: path,
        line,
        got: JSON.stringify(row) ?? 'other columns',
        expected: 'id, source, caption, error',
        hint,
      })
    }
    const { id, error } = parsed.data
    if (rows.numberOf(id) !== undefined)
      throw new ModalignError({
        code: 'JOB_ROW_TWICE',
        file: path,
        line,
        got: `a second row of ${id}`,
        expected: 'one row an item',
        hint: 'delete one of the two',
      })
    rows.add(id, { offset, byteLength }, error?.code ?? null)
  }
  return rows
}

function rowLog(log: AppendLog, format: RowFormat, rows: RowIndex): RowLog {
  return {
    path: log.path,
    rows,
    tornBytes: log.tornBytes,
    async append(added) {
      const encoded = added.map((row) => new TextEncoder().encode(format.encode(row)))
      let offset = log.length
      await log.append(Buffer.concat(encoded))
      return added.map(({ id, error }, i) => {
        const place = { offset, byteLength: encoded[i]?.length ?? 0 }
        offset += place.byteLength
        return rows.add(id, place, error?.code ?? null)
      })
    },
    async read(row) {
      const { offset, byteLength } = rows.place(row)
      const source = await fileSource(log.path)
      return rowSchema.parse(
        await format.decode(new TextDecoder('utf-8', { ignoreBOM: true }).decode(await source.read(offset, byteLength))),
      )
    },
    sync: () => log.sync(),
    close: () => log.close(),
  }
}

/** Rewrites a closed file of rows in one atomic step so that it holds exactly these rows, in this order. */
export async function rewriteRows(
  path: string,
  formatName: RowFormatName,
  places: Iterable<RowPlace>,
  options: Pick<AppendLogOptions, 'fs'>,
): Promise<void> {
  const source = await fileSource(path)
  async function* content(): AsyncGenerator<Uint8Array, void, undefined> {
    yield new TextEncoder().encode(rowFormats[formatName].header)
    // Neighbours are copied together: after a few insertions most of the file is a few long runs.
    let run: { offset: number; byteLength: number } | undefined
    for (const { offset, byteLength } of places) {
      if (run !== undefined && run.offset + run.byteLength === offset && run.byteLength < 2 ** 20) {
        run.byteLength += byteLength
        continue
      }
      if (run !== undefined) yield await source.read(run.offset, run.byteLength)
      run = { offset, byteLength }
    }
    if (run !== undefined) yield await source.read(run.offset, run.byteLength)
  }
  await writeFileAtomic(path, content(), options)
}
