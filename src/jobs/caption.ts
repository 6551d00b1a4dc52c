import { type ErrorData, ModalignError, unreachable } from '../errors.ts'
import type { FsOps } from '../io/fs-ops.ts'
import type { JsonObject } from '../io/json.ts'
import { type CaptionOutput, type OpenOutput, openOutput } from './caption-output.ts'
import type { CaptionRow } from './caption-rows.ts'

export type { CaptionFormat, CaptionOutput } from './caption-output.ts'
export type { CaptionRow } from './caption-rows.ts'

/** Something to caption. Whatever else an item carries is passed on to `caption`. */
export interface CaptionItem {
  /** Unique among the items, and the same from run to run. */
  readonly id: string
  /** Where the medium is, as a person would name it: goes into the row. */
  readonly source: string
  /** The item is known to be bad before any work is done on it (a malformed line, a missing file). */
  readonly error?: ErrorData
}

export type CaptionOutcome = { readonly caption: string } | { readonly error: ErrorData }

export interface CaptionJobOptions<I extends CaptionItem> {
  /** In the same order on every run. */
  readonly items: AsyncIterable<I>
  /**
   * One outcome an item, in order. What an item gets must not depend on the others of its batch. A bad item is an outcome; a rejection ends the job.
   * `signal`: give up at once, nothing of this batch will be kept.
   */
  readonly caption: (batch: readonly I[], options: { readonly signal: AbortSignal }) => Promise<readonly CaptionOutcome[]>
  readonly output: CaptionOutput
  /** Everything that the captions depend on (prompt, fingerprint of the model, input, sampling): another run may go on with the results only if it is the same. */
  readonly spec: JsonObject
  /** Items in one call of `caption`. */
  readonly batchSize: number
  /** `fail`: the first bad item ends the job with its error; `skip`: it becomes a row. */
  readonly onBad: 'fail' | 'skip'
  /** Try items again that an earlier run recorded as bad. Default false. */
  readonly retryBad?: boolean | undefined
  /** Stop in good order: the batch at work is finished and kept. */
  readonly signal?: AbortSignal | undefined
  /** Stop now: the batch at work is dropped. */
  readonly abort?: AbortSignal | undefined
  readonly onProgress?: ((progress: CaptionProgress) => void) | undefined
  readonly fs?: FsOps | undefined
  /** How much a power cut may lose, in milliseconds of work; default 1000. A killed process loses at most the batch at work. */
  readonly syncIntervalMs?: number | undefined
}

/** Counts of items, so far. `captioned + bad` are the rows; `resumed` of them are of earlier runs. */
export interface CaptionProgress {
  readonly captioned: number
  readonly bad: number
  readonly resumed: number
}

export interface CaptionSummary extends CaptionProgress {
  readonly status: 'finished' | 'stopped'
  /** Items in the input; after `abort`, items seen. */
  readonly total: number
  /** Items without a row: 0 unless stopped. */
  readonly left: number
  /** Rows of items that the input does not have any more. They are kept. */
  readonly missing: number
  /** The first 100 of them. */
  readonly missingIds: readonly string[]
  /** Bad items by error code. */
  readonly byCode: Readonly<Record<string, number>>
  /** Bytes of a half-written row that an earlier run left and this one cut off. */
  readonly tornBytes: number
}

/** Half of this many items being bad is no accident of the data: a wrong folder, a missing decoder. */
const breakerItems = 500
/** Items that are waited for behind a batch that does not fill. */
const longestQueue = 4096
const listedMissing = 100

/**
 * Captions items in batches and writes a row an item as it goes: `{"id", "source", "caption", "error"}`, in the order of the items. Run again after any end, be it a
 * kill in the middle of a write, it goes on where it stopped, and the file ends up as if nothing had happened.
 *
 * Items that are new since the last run are added in their place; rows whose items are gone are kept and counted.
 *
 * @throws ModalignError `JOB_SPEC_CHANGED`, `JOB_OUTPUT_EXISTS`, `OUTPUT_LOCKED` before any work; `JOB_ITEM_TWICE`; `JOB_MOSTLY_BAD` once half of the first 500 items
 * are bad; with `onBad: 'fail'` the first bad item's error; disk errors. What was done before is kept in each case.
 * @example
 * const { items } = await inputItems('photos')
 * const summary = await captionJob({
 *   items,
 *   caption: async (batch) => Promise.all(batch.map(async ({ path }) => ({ caption: await describe(path) }))),
 *   output: { path: 'captions.jsonl', format: 'jsonl' },
 *   spec: { prompt: 'Describe the picture.', input: 'photos' },
 *   batchSize: 8,
 *   onBad: 'skip',
 * })
 */
export async function captionJob<I extends CaptionItem>(options: CaptionJobOptions<I>): Promise<CaptionSummary> {
  if (!Number.isSafeInteger(options.batchSize) || options.batchSize < 1) {
    throw new ModalignError({ code: 'JOB_BATCH_SIZE', got: `${options.batchSize}`, expected: 'a whole number of at least 1' })
  }
  const output = await openOutput(options.output, options.spec, options)
  let order: readonly number[] | undefined
  try {
    const run = new CaptionRun(options, output)
    await run.work()
    order = run.finalOrder()
    return run.summary()
  } finally {
    await output.close(order)
  }
}

/** `row`: its number, if an earlier run has written it. */
type Entry<I> = { readonly item: I; readonly row: number | undefined }

class CaptionRun<I extends CaptionItem> {
  private readonly options: CaptionJobOptions<I>
  private readonly output: OpenOutput
  private readonly earlier: number
  private readonly abort: AbortSignal
  /** Items seen that have no row. */
  private readonly unwritten = new Set<string>()
  /** Rows of items seen: by number, and in the order of the items. */
  private met: Uint8Array
  private readonly order: number[] = []
  private readonly byCode = new Map<string, number>()
  private stopped = false
  private captioned = 0
  private bad = 0
  private resumed = 0
  private left = 0
  private total = 0

  constructor(options: CaptionJobOptions<I>, output: OpenOutput) {
    this.options = options
    this.output = output
    this.earlier = output.rows.size
    this.met = new Uint8Array(Math.max(1024, output.rows.size))
    this.abort = options.abort ?? new AbortController().signal
  }

  async work(): Promise<void> {
    let queue: Entry<I>[] = []
    let waiting = 0
    for await (const item of this.options.items) {
      const row = this.admit(item)
      if (this.isStopping()) {
        if (this.abort.aborted) break
        // Only counted from here on, to say what is left.
        if (row === undefined) this.left++
        else await this.settle(row)
        continue
      }
      if (row !== undefined && queue.length === 0) {
        await this.settle(row)
        continue
      }
      queue.push({ item, row })
      if (row === undefined && item.error === undefined) waiting++
      if (waiting === this.options.batchSize || queue.length >= longestQueue) {
        await this.flush(queue)
        queue = []
        waiting = 0
      }
    }
    if (this.isStopping()) await this.leave(queue)
    else await this.flush(queue)
  }

  /** In the order of the input, unless the file has it already; then the rows of items that are gone. */
  finalOrder(): readonly number[] | undefined {
    if (this.stopped) return undefined
    const inOrder = this.order.every((row, i) => i === 0 || (this.order[i - 1] ?? 0) < row)
    if (inOrder) return undefined
    for (const [, row] of this.output.rows.entries()) if (this.met[row] !== 1) this.order.push(row)
    return this.order
  }

  summary(): CaptionSummary {
    const missingIds: string[] = []
    let missing = 0
    if (!this.abort.aborted) {
      for (const [id, row] of this.output.rows.entries()) {
        if (this.met[row] === 1) continue
        missing++
        if (missing <= listedMissing) missingIds.push(id)
      }
    }
    return {
      status: this.stopped ? 'stopped' : 'finished',
      total: this.total,
      ...this.progress(),
      left: this.left,
      missing,
      missingIds,
      byCode: Object.fromEntries([...this.byCode].sort(([a], [b]) => (a < b ? -1 : 1))),
      tornBytes: this.output.tornBytes,
    }
  }

  private progress(): CaptionProgress {
    return { captioned: this.captioned, bad: this.bad, resumed: this.resumed }
  }

  private isStopping(): boolean {
    if (this.options.signal?.aborted === true || this.abort.aborted) this.stopped = true
    return this.stopped
  }

  private admit(item: I): number | undefined {
    const row = this.output.rows.numberOf(item.id)
    if (row === undefined ? this.unwritten.has(item.id) : this.met[row] === 1) {
      throw new ModalignError({
        code: 'JOB_ITEM_TWICE',
        field: '/id',
        got: item.id,
        expected: 'an id of its own for every item',
        hint: 'rows are told apart by their ids',
      })
    }
    this.total++
    if (row === undefined) this.unwritten.add(item.id)
    else this.meet(row)
    return row
  }

  private meet(row: number): void {
    if (row >= this.met.length) {
      const grown = new Uint8Array(2 * row)
      grown.set(this.met)
      this.met = grown
    }
    this.met[row] = 1
  }

  private async leave(queue: readonly Entry<I>[]): Promise<void> {
    for (const { row } of queue) {
      if (row === undefined) this.left++
      else await this.settle(row)
    }
  }

  /** Takes over a row of an earlier run. */
  private async settle(row: number): Promise<void> {
    this.resumed++
    this.order.push(row)
    const code = this.output.rows.code(row)
    if (code !== null && this.options.onBad === 'fail') {
      const { error } = await this.output.read(row)
      if (error !== null) throw new ModalignError(error)
    }
    if (this.count(code)) throw this.mostlyBad()
    if (this.resumed % 1000 === 0 || this.resumed === this.earlier) this.options.onProgress?.(this.progress())
  }

  /** One call of `caption`, one write. Rows that an end of the job cuts off are those after the item that ended it. */
  private async flush(queue: readonly Entry<I>[]): Promise<void> {
    const fresh = queue.flatMap(({ item, row }) => (row === undefined && item.error === undefined ? [item] : []))
    await this.output.reserve(fresh.map(({ id }) => id))
    const outcomes = await this.captions(fresh)
    if (outcomes === undefined) return this.leave(queue)
    const rows: CaptionRow[] = []
    const remaining = outcomes.values()
    for (const { item, row: written } of queue) {
      if (written !== undefined) {
        await this.write(rows)
        await this.settle(written)
        continue
      }
      const outcome =
        item.error === undefined ? (remaining.next().value ?? unreachable('fewer outcomes than items')) : { error: item.error }
      const row = rowOf(item, outcome)
      if (row.error !== null && this.options.onBad === 'fail') {
        await this.write(rows)
        throw new ModalignError(row.error)
      }
      rows.push(row)
      if (this.count(row.error?.code ?? null)) {
        await this.write(rows)
        throw this.mostlyBad()
      }
    }
    await this.write(rows)
    if (queue.length > 0) this.options.onProgress?.(this.progress())
  }

  /** Undefined: aborted meanwhile. */
  private async captions(batch: readonly I[]): Promise<readonly CaptionOutcome[] | undefined> {
    if (batch.length === 0) return []
    const { abort } = this
    if (abort.aborted) return undefined
    let stop: (() => void) | undefined
    const aborted = new Promise<undefined>((resolve) => {
      stop = () => resolve(undefined)
      abort.addEventListener('abort', stop, { once: true })
    })
    try {
      const outcomes = await Promise.race([aborted, this.options.caption(batch, { signal: abort })])
      if (outcomes === undefined || abort.aborted) return undefined
      if (outcomes.length !== batch.length) unreachable(`${outcomes.length} captions for ${batch.length} items`)
      return outcomes
    } catch (error) {
      if (abort.aborted) return undefined
      throw error
    } finally {
      if (stop !== undefined) abort.removeEventListener('abort', stop)
      if (abort.aborted) this.stopped = true
    }
  }

  private async write(rows: CaptionRow[]): Promise<void> {
    if (rows.length === 0) return
    for (const row of await this.output.append(rows)) {
      this.meet(row)
      this.order.push(row)
    }
    for (const { id } of rows) this.unwritten.delete(id)
    rows.length = 0
  }

  /** True once too many of the first items are bad. Counted in the order of the items over all runs, so that a restart changes nothing. */
  private count(code: string | null): boolean {
    if (code === null) {
      this.captioned++
      return false
    }
    this.bad++
    this.byCode.set(code, (this.byCode.get(code) ?? 0) + 1)
    return this.bad * 2 >= breakerItems && this.captioned + this.bad <= breakerItems
  }

  private mostlyBad(): ModalignError {
    const [[code, count] = ['', 0]] = [...this.byCode].sort(([, a], [, b]) => b - a)
    return new ModalignError({
      code: 'JOB_MOSTLY_BAD',
      file: this.options.output.path,
      got: `${this.bad} bad items among the first ${this.captioned + this.bad}, ${count} of them ${code}`,
      expected: `fewer than ${breakerItems / 2} among the first ${breakerItems}`,
      hint: 'the input, its root folder or the model is probably the wrong one',
    })
  }
}

function rowOf({ id, source }: CaptionItem, outcome: CaptionOutcome): CaptionRow {
  return 'error' in outcome ? { id, source, caption: null, error: outcome.error } : { id, source, caption: outcome.caption, error: null }
}
