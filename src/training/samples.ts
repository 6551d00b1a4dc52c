/** A dataset made ready: every sample labelled and kept on disk, its media known by where they lie. */
import { createHash } from 'node:crypto'
import { deserialize, serialize } from 'node:v8'
import { z } from 'zod'
import { ModalignError, unreachable } from '../errors.ts'
import { openRecordStore, type RecordStore } from '../io/record-store.ts'
import { modalities } from '../model/branches.ts'
import type { DatasetSource, Sample } from '../model/contracts.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'
import { type LabelledIds, labelSpans, type MediaSpan } from '../text/label-spans.ts'

export interface PreparedSample extends LabelledIds {
  readonly id: string
  readonly file: string | undefined
  readonly record: number | undefined
}

export interface PrepareOptions {
  /** Where the samples are kept until they are disposed of: a file that nothing else writes. */
  readonly store: string
  /** Longest sample in tokens, media included. Default: the language model's positions. */
  readonly maxLength?: number
  /** Samples longer than that: an error (default), or cut at the end. */
  readonly overflow?: 'error' | 'truncate'
  /** Bad records: the first one throws (default), or each is given here and left out. */
  readonly onBad?: (error: ModalignError) => void
  /** As many samples at most, spread over the dataset as evenly as can be told while it is read. Default: all. */
  readonly limit?: number
  readonly signal?: AbortSignal
}

export interface PreparedSamples extends AsyncDisposable {
  readonly length: number
  /** Numbered in the order of the dataset. */
  at(index: number): Promise<PreparedSample>
}

export interface Prepared extends AsyncDisposable {
  readonly samples: PreparedSamples
  /** The dataset's root. */
  readonly root: string | undefined
  readonly bad: number
  /** SHA-256 over the samples: ids, weights, and where the media lie. */
  readonly fingerprint: string
}

/**
 * Reads and labels a whole dataset, before any of it is trained on. Samples go to a file as they come, 4 bytes a text token; in memory stay 8 bytes a sample.
 *
 * @throws DATASET_NO_SAMPLES if nothing usable is left, and what the dataset and `labelSpans` throw.
 */
export async function prepareSamples(model: MultimodalModel, dataset: DatasetSource, options: PrepareOptions): Promise<Prepared> {
  const { onBad, signal, overflow } = options
  const maxLength = options.maxLength ?? model.llm.decoder.maxPositions
  const hash = createHash('sha256')
  let bad = 0
  const report = (error: ModalignError): void => {
    bad++
    if (onBad === undefined) throw error
    onBad(error)
  }
  const store = await openRecordStore(options.store)
  try {
    for await (const sample of dataset.samples({ onBad: report, ...(signal && { signal }) })) {
      try {
        const prepared = prepare(model, sample, maxLength, overflow)
        hash.update(prepared.ids).update(prepared.weights)
        for (const { part } of prepared.media) hash.update(part.type).update(part.source)
        await store.append(encodeSample(prepared))
      } catch (error) {
        if (!(error instanceof ModalignError)) throw error
        report(error)
      }
    }
    if (store.length === 0) throw noSamples(dataset.name, bad)
  } catch (error) {
    await store.dispose()
    throw error
  }
  return {
    samples: storedSamples(store, options.limit),
    root: dataset.root,
    bad,
    fingerprint: hash.digest('hex'),
    [Symbol.asyncDispose]: () => store.dispose(),
  }
}

function storedSamples(store: RecordStore, limit = Number.POSITIVE_INFINITY): PreparedSamples {
  const length = Math.min(store.length, limit)
  return {
    length,
    async at(index) {
      return decodeSample(await store.read(Math.floor((index * store.length) / length)))
    },
    [Symbol.asyncDispose]: () => store.dispose(),
  }
}

export function noSamples(dataset: string, bad: number): ModalignError {
  return new ModalignError({
    code: 'DATASET_NO_SAMPLES',
    file: dataset,
    got: `${bad} bad records and no good one`,
    expected: 'at least one sample',
  })
}

function prepare(model: MultimodalModel, sample: Sample, maxLength: number, overflow: 'error' | 'truncate' | undefined): PreparedSample {
  const labelled = labelSpans(sample, {
    tokenizer: model.llm.tokenizer,
    template: model.llm.template,
    mediaTokens: (part) => model.plannedTokens(part),
    maxLength,
    ...(overflow && { overflow }),
  })
  return { ...labelled, id: sample.id, file: sample.origin?.file, record: sample.origin?.record }
}

/** Weights as runs: a weight, and for how many ids it stands. */
function runsOf(weights: Float32Array): Float64Array {
  const runs: number[] = []
  for (let start = 0; start < weights.length; ) {
    const weight = weights[start] ?? 0
    let end = start + 1
    while (end < weights.length && weights[end] === weight) end++
    runs.push(weight, end - start)
    start = end
  }
  return Float64Array.from(runs)
}

/** Only the text's ids are written: the media's follow from their spans. */
function encodeSample({ ids, weights, targets, media, id, file, record }: PreparedSample): Uint8Array {
  return serialize([id, file, record, targets, media, ids.filter((one) => one >= 0), runsOf(weights)])
}

const regionSchema = z.discriminatedUnion('type', [
  z.object({ type: z.literal('box'), x: z.number(), y: z.number(), width: z.number(), height: z.number() }),
  z.object({ type: z.literal('span'), startSeconds: z.number(), endSeconds: z.number() }),
])
const spanSchema = z.object({
  part: z
    .object({ type: z.enum(modalities), source: z.union([z.string(), z.instanceof(Uint8Array)]), region: regionSchema.optional() })
    .transform(({ region, ...part }) => ({ ...part, ...(region !== undefined && { region }) })),
  turn: z.number(),
  start: z.number(),
  length: z.number(),
})
const recordSchema = z.tuple([
  z.string(),
  z.string().optional(),
  z.number().optional(),
  z.number(),
  z.array(spanSchema),
  z.instanceof(Int32Array),
  z.instanceof(Float64Array),
])

function decodeSample(bytes: Uint8Array): PreparedSample {
  const [id, file, record, targets, media, text, runs] = recordSchema.parse(deserialize(bytes))
  const weights: number[] = []
  for (let run = 0; run < runs.length; run += 2) {
    const [weight, length] = [runs[run] ?? 0, runs[run + 1] ?? 0]
    for (let i = 0; i < length; i++) weights.push(weight)
  }
  return { id, file, record, targets, media, ids: withMedia(text, media, weights.length), weights: Float32Array.from(weights) }
}

/** The ids of a text with those of its media between them: `-(i + 1)` at each place of medium `i`. */
function withMedia(text: Int32Array, media: readonly MediaSpan[], length: number): Int32Array {
  const ids = new Int32Array(length)
  let [place, taken] = [0, 0]
  const takeText = (end: number): void => {
    ids.set(text.subarray(taken, taken + end - place), place)
    taken += end - place
    place = end
  }
  for (const [index, { start, length: tokens }] of media.entries()) {
    takeText(start)
    ids.fill(-(index + 1), start, start + tokens)
    place += tokens
  }
  takeText(length)
  return taken === text.length ? ids : unreachable('a sample of another length than it was stored with')
}
