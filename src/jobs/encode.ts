import { availableParallelism } from 'node:os'
import { type ErrorData, errorData, ModalignError, unreachable } from '../errors.ts'
import { release } from '../io/release.ts'
import type { Encoder } from '../model/contracts.ts'
import { encodeInputs, type PreparedInputs, prepareInputs } from '../model/media-features.ts'
import type { MediaReader } from '../model/media-reader.ts'
import { contentDigest } from '../training/content-digest.ts'
import type { FeatureKey, FeatureStore } from '../training/feature-store.ts'
import type { InputItem } from './inputs.ts'

export interface EncodeJobOptions {
  readonly items: AsyncIterable<InputItem>
  readonly encoder: Encoder
  readonly reader: MediaReader
  readonly store: FeatureStore
  /** Media in one run of the encoder. */
  readonly batchSize: number
  /** Batches that go through the encoder at once: two more than it has sessions keep each of them busy while others are packed and stored. Default 2. */
  readonly batchesAtOnce?: number | undefined
  /** `fail`: the first bad item ends the job with its error; `skip`: it is counted and given to `onBadItem`. */
  readonly onBad: 'fail' | 'skip'
  readonly onBadItem?: ((item: InputItem, error: ErrorData) => void) | undefined
  readonly onProgress?: ((progress: EncodeProgress) => void) | undefined
  /** Stop in good order: what is under way is finished and kept. */
  readonly signal?: AbortSignal | undefined
}

/** Counts of items, so far. */
export interface EncodeProgress {
  readonly encoded: number
  /** In the store already. */
  readonly known: number
  readonly bad: number
}

export interface EncodeSummary extends EncodeProgress {
  readonly status: 'finished' | 'stopped'
  /** Items that the job met. */
  readonly total: number
  /** Bad items by error code. */
  readonly byCode: Readonly<Record<string, number>>
}

interface Ready {
  readonly key: FeatureKey
  readonly inputs: PreparedInputs
}

/** Of small batches more than two are prepared ahead: decoding processes take several pictures at a time. */
const leastAhead = 16
/** More sessions than this cost more memory than they bring speed. */
const mostSessions = 4

/**
 * How an encoder shares the CPU's threads with decoding: in several sessions, so that batches overlap, and none waits for another's slowest thread.
 *
 * @param threads of all sessions together; default: the cores
 * @example
 * const encoder = await mobilenetV2({ device: 'cpu', ...encoderThreads() })
 */
export function encoderThreads(threads = availableParallelism()): { readonly sessions: number; readonly threads: number } {
  const sessions = Math.min(mostSessions, threads)
  return { sessions, threads: Math.floor(threads / sessions) }
}

/**
 * Encodes media into a feature store. What the store has already is not decoded again, so that a job that was interrupted, or killed, goes on where it stopped.
 *
 * @throws with `onBad: 'fail'` the first bad item's error; FEATURE_STORE_WRITE, and what encoding throws. What was stored before is kept in each case.
 * @example
 * const { items } = await inputItems('photos')
 * await using store = await openFeatureStore('cache')
 * const { encoded, known } = await encodeJob({ items, encoder: await mobilenetV2(), reader: localReader, store, batchSize: 16, onBad: 'skip' })
 */
export async function encodeJob(options: EncodeJobOptions): Promise<EncodeSummary> {
  const { encoder, store, batchSize, batchesAtOnce = 2, signal } = options
  for (const number of [batchSize, batchesAtOnce])
    if (!Number.isSafeInteger(number) || number < 1)
      throw new ModalignError({ code: 'JOB_BATCH_SIZE', got: `${number}`, expected: 'a whole number of at least 1' })
  const ahead = Math.max(leastAhead, 2 * batchSize)
  const counts = { encoded: 0, known: 0, bad: 0 }
  const byCode = new Map<string, number>()
  const preparing = new Set<Promise<void>>()
  const waiting = new Map<string, Ready[]>()
  const encoding = new Set<Promise<void>>()
  let total = 0
  let failure: { readonly error: unknown } | undefined
  const failWith = (error: unknown): void => {
    failure ??= { error }
  }

  const bad = (item: InputItem, error: ErrorData): void => {
    counts.bad++
    byCode.set(error.code, (byCode.get(error.code) ?? 0) + 1)
    options.onBadItem?.(item, error)
    options.onProgress?.(counts)
    if (options.onBad === 'fail') failWith(new ModalignError(error))
  }
  const encode = async (batch: readonly Ready[]): Promise<void> => {
    try {
      const features = await encodeInputs(
        encoder,
        batch.map(({ inputs }) => inputs),
      )
      const records = batch.map(({ key, inputs }, index) =>
        store.pack(key, { size: inputs.size, data: features[index] ?? unreachable('fewer features than media') }),
      )
      await store.put(records)
      const pixels = batch.flatMap(({ inputs }) => inputs.pixels?.data.buffer ?? [])
      const isOurs = encoder.preparation?.encodePictures !== undefined && pixels.length === batch.length
      release([
        ...records.map(({ bytes }) => bytes.buffer),
        ...(isOurs ? new Set([...pixels, ...features.map(({ buffer }) => buffer)]) : []),
      ])
      counts.encoded += batch.length
      options.onProgress?.(counts)
    } catch (error) {
      failWith(error)
    }
  }
  const begin = (batch: readonly Ready[]): void => {
    if (failure !== undefined) return
    const task: Promise<void> = encode(batch).finally(() => encoding.delete(task))
    encoding.add(task)
  }
  const take = (ready: Ready): void => {
    const { layout } = ready.inputs
    const alike = [...(waiting.get(layout) ?? []), ready]
    if (alike.length === batchSize) begin(alike)
    waiting.set(layout, alike.length === batchSize ? [] : alike)
  }
  const prepare = async (item: InputItem): Promise<void> => {
    if (item.error !== undefined) {
      bad(item, item.error)
      return
    }
    try {
      const { modality, fingerprint, width } = encoder
      const key: FeatureKey = { modality, content: await contentDigest(item.path, {}), encoder: fingerprint, width }
      if (store.get(key) !== undefined) {
        counts.known++
        options.onProgress?.(counts)
      } else {
        // With a batch waiting beside those that run, the encoder has the cores, and enough to do.
        const unhurried = encoding.size > batchesAtOnce - 2
        take({ key, inputs: await prepareInputs(encoder, options.reader, { type: modality, source: item.path }, { unhurried }) })
      }
    } catch (error) {
      const data = errorData(error)
      if (data.code === 'INTERNAL') failWith(error)
      else bad(item, data)
    }
  }

  for await (const item of options.items) {
    if (signal?.aborted === true || failure !== undefined) break
    total++
    const task: Promise<void> = prepare(item).finally(() => preparing.delete(task))
    preparing.add(task)
    // So many are prepared while others are encoded; where decoding is the faster of the two, it waits, so that memory does not grow.
    while (preparing.size >= ahead) await Promise.race(preparing)
    while (encoding.size >= batchesAtOnce) await Promise.race(encoding)
  }
  await Promise.all(preparing)
  for (const batch of waiting.values()) if (batch.length > 0) begin(batch)
  await Promise.all(encoding)
  if (failure !== undefined) throw failure.error
  return {
    status: signal?.aborted === true ? 'stopped' : 'finished',
    total,
    ...counts,
    byCode: Object.fromEntries([...byCode].sort(([a], [b]) => (a < b ? -1 : 1))),
  }
}
