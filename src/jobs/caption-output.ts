import { stat } from 'node:fs/promises'
import { basename, dirname, resolve } from 'node:path'
import { ModalignError } from '../errors.ts'
import { removeTemporaries } from '../io/atomic.ts'
import { errnoOf, fileError } from '../io/file-error.ts'
import { type FsOps, nodeFs } from '../io/fs-ops.ts'
import type { JsonObject } from '../io/json.ts'
import { acquireLock, type Lock } from '../io/lock.ts'
import { type CaptionRow, openRowLog, type RowFormatName, type RowLog, rewriteRows } from './caption-rows.ts'
import { type JobSpec, readJobSpec, requireSameSpec, writeJobSpec } from './job-spec.ts'
import type { RowIndex, RowPlace } from './row-index.ts'
import { type TextFiles, textFiles } from './text-files.ts'

/**
 * - `jsonl`, `csv`: `path` is a file of rows.
 * - `txt`: `path` is a folder of one text file an item (the folder of the pictures puts each beside its picture); the rows are kept in `<path>.rows.jsonl`.
 *
 * Beside it lie `<path>.job.json` (what the job is) and, while it runs, `<path>.lock`.
 */
export interface CaptionOutput {
  readonly path: string
  readonly format: CaptionFormat
}
export type CaptionFormat = RowFormatName | 'txt'

/** A job's results on disk, held by this process alone. */
export interface OpenOutput {
  readonly rows: RowIndex
  readonly tornBytes: number
  read(row: number): Promise<CaptionRow>
  /** To be called before the work on these items begins. */
  reserve(ids: readonly string[]): Promise<void>
  append(rows: readonly CaptionRow[]): Promise<readonly number[]>
  /** Makes everything durable and gives the lock back. `order`: rewrite the rows so. */
  close(order?: Iterable<number>): Promise<void>
}

export interface OutputOptions {
  readonly fs?: FsOps | undefined
  readonly syncIntervalMs?: number | undefined
  /** Forget the rows that are errors. */
  readonly retryBad?: boolean | undefined
}

/**
 * Opens the output before any work is done, so that a full disk, a wrong folder or another job's results show at once.
 *
 * @throws ModalignError `OUTPUT_LOCKED`, `JOB_SPEC_CHANGED`, `JOB_OUTPUT_EXISTS`, `JOB_ROW_MALFORMED`, `JOB_ROW_TWICE`, and what the disk says
 */
export async function openOutput(
  { path, format }: CaptionOutput,
  spec: JsonObject,
  { fs = nodeFs, syncIntervalMs, retryBad = false }: OutputOptions,
): Promise<OpenOutput> {
  const target = resolve(path)
  const rowsPath = format === 'txt' ? `${target}.rows.jsonl` : target
  const rowFormat = format === 'txt' ? 'jsonl' : format
  await makeFolder(fs, format === 'txt' ? target : dirname(target))
  const lock = await acquireLock(`${target}.lock`, { fs })
  let log: RowLog | undefined
  try {
    const specPath = `${target}.job.json`
    for (const file of [rowsPath, specPath]) await removeTemporaries(file, { fs })
    await agreeOnSpec(specPath, rowsPath, { job: 'caption', spec: { format, ...spec } }, fs)
    // A text file must never be there before its row is on stable storage: after a power cut it would look like somebody else's.
    const options = { fs, ...(format === 'txt' ? { syncIntervalMs: 0 } : syncIntervalMs === undefined ? {} : { syncIntervalMs }) }
    log = await openRowLog(rowsPath, rowFormat, options)
    if (retryBad && log.rows.bad > 0) {
      await log.close()
      await rewriteRows(rowsPath, rowFormat, placesOf(log.rows, goodRows(log.rows)), { fs })
      log = await openRowLog(rowsPath, rowFormat, options)
    }
    const texts = format === 'txt' ? textFiles(target, { fs }) : undefined
    if (texts !== undefined) await completeTexts(log, texts)
    return openedOutput(log, texts, lock, { rowsPath, rowFormat, fs })
  } catch (error) {
    await log?.close()
    await lock.release()
    throw error
  }
}

async function makeFolder(fs: FsOps, folder: string): Promise<void> {
  try {
    await fs.mkdir(folder)
  } catch (error) {
    throw fileError(error, folder, 'a folder')
  }
}

async function agreeOnSpec(specPath: string, rowsPath: string, wanted: JobSpec, fs: FsOps): Promise<void> {
  const recorded = await readJobSpec(specPath)
  if (recorded !== undefined) return requireSameSpec(specPath, recorded, wanted)
  if ((await sizeOf(rowsPath)) > 0) {
    const hint = 'choose another output, or delete the file'
    throw new ModalignError({
      code: 'JOB_OUTPUT_EXISTS',
      file: rowsPath,
      got: `a file without ${basename(specPath)}`,
      expected: 'no file, or the results of an earlier run',
      hint,
    })
  }
  await writeJobSpec(specPath, wanted, { fs })
}

async function sizeOf(path: string): Promise<number> {
  try {
    const found = await stat(path)
    if (!found.isFile())
      throw new ModalignError({
        code: 'FILE_NOT_REGULAR',
        file: path,
        got: found.isDirectory() ? 'a folder' : 'no regular file',
        expected: 'a file of rows',
      })
    return found.size
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return 0
    throw fileError(error, path)
  }
}

function* goodRows(rows: RowIndex): Generator<number, void, undefined> {
  for (const [, row] of rows.entries()) if (rows.code(row) === null) yield row
}

function* placesOf(rows: RowIndex, numbers: Iterable<number>): Generator<RowPlace, void, undefined> {
  for (const row of numbers) yield rows.place(row)
}

/** A row says what its text file holds, so a run that was killed between the two is made good here. */
async function completeTexts(log: RowLog, texts: TextFiles): Promise<void> {
  for (const [id, row] of log.rows.entries()) {
    if (log.rows.code(row) !== null || (await texts.has(id))) continue
    const { caption } = await log.read(row)
    if (caption !== null) await texts.write(id, caption)
  }
}

function openedOutput(
  log: RowLog,
  texts: TextFiles | undefined,
  lock: Lock,
  { rowsPath, rowFormat, fs }: { readonly rowsPath: string; readonly rowFormat: RowFormatName; readonly fs: FsOps },
): OpenOutput {
  return {
    rows: log.rows,
    tornBytes: log.tornBytes,
    read: (row) => log.read(row),
    async reserve(ids) {
      if (texts !== undefined) for (const id of ids) await texts.reserve(id)
    },
    async append(rows) {
      const numbers = await log.append(rows)
      if (texts !== undefined) for (const { id, caption } of rows) if (caption !== null) await texts.write(id, caption)
      return numbers
    },
    async close(order) {
      try {
        await log.close()
        if (order !== undefined) await rewriteRows(rowsPath, rowFormat, placesOf(log.rows, order), { fs })
      } finally {
        await lock.release()
      }
    },
  }
}
