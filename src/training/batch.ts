/** Collation: labelled samples and their features become the inputs of one step. */
import { ModalignError } from '../errors.ts'
import { sourceFeeds } from '../llm/source-tokens.ts'
import type { EncoderUnit } from '../model/contracts.ts'
import type { MediumFeatures } from '../model/media-features.ts'
import { stackFeatures } from '../model/media-feeds.ts'
import type { MediaPath } from '../model/splice.ts'
import { stackUnits } from '../model/trained-media.ts'
import { int64Tensor, type NamedTensors, type TensorValue } from '../tensors.ts'
import type { LabelledIds } from '../text/label-spans.ts'
import { stepInputs } from './step-graph.ts'

export interface BatchItem extends LabelledIds {
  /** One for each medium of `ids`, in order: float32 [tokens, width], or the units of a trained encoder. */
  readonly features: readonly Pick<MediumFeatures, 'modality' | 'data' | 'separators' | 'texts' | 'units'>[]
}

export interface Batch {
  readonly feeds: NamedTensors
  /** Sum of the targets' weights: what the loss's sum is divided by. */
  readonly weight: number
  /** Tokens of all samples, without padding. */
  readonly tokens: number
  readonly targets: number
  /** Rows, and places of each, padding and soft prompts included. */
  readonly dims: readonly [number, number]
}

export interface CollateOptions {
  /** The graph's ways in, of which batches without any such medium need inputs too. */
  readonly media: readonly MediaPath[]
  readonly headChunks: number
  /** Lengths are padded to a multiple of this, so that few different shapes occur. Default 16. */
  readonly lengthMultiple?: number
  /** Places at every sample's front that a soft prompt fills. Default 0. */
  readonly softPrompt?: number
  /** For encoder-decoders: what stands before a sample's first target is the encoder's. Default false. */
  readonly source?: boolean
}

/**
 * Right padding: causal attention hides it from every real token, and no padding is a target.
 *
 * @example
 * const { feeds, weight } = collate([{ ...labelSpans(sample, options), features: [] }], { media: [], headChunks: 4 })
 */
export function collate(
  samples: readonly BatchItem[],
  { media, headChunks, lengthMultiple = 16, softPrompt = 0, source = false }: CollateOptions,
): Batch {
  if (samples.length === 0) throw new ModalignError({ code: 'BATCH_EMPTY', got: 'no samples', expected: 'at least one' })
  const items = softPrompt === 0 ? samples : samples.map((sample) => afterPlaces(sample, softPrompt))
  const tokens = roundUp(Math.max(...items.map(({ ids }) => ids.length)), lengthMultiple)
  const ids = new BigInt64Array(items.length * tokens)
  const rows: number[] = []
  const labels: number[] = []
  const weights: number[] = []
  for (const [row, item] of items.entries()) {
    for (const [place, id] of item.ids.entries()) {
      if (id >= 0) ids[row * tokens + place] = BigInt(id)
      const weight = item.weights[place] ?? 0
      if (weight === 0) continue
      // The state at one place predicts the token at the next.
      rows.push(row, place - 1)
      labels.push(id)
      weights.push(weight)
    }
  }
  const perChunk = roundUp(Math.ceil(labels.length / headChunks), 4)
  const fill = perChunk * headChunks - labels.length
  const padded = (values: readonly number[], count: number): readonly number[] => [...values, ...new Array<number>(count).fill(0)]
  return {
    feeds: {
      [stepInputs.ids]: int64Tensor(ids, [items.length, tokens]),
      [stepInputs.positions]: int64Tensor(
        BigInt64Array.from({ length: ids.length }, (_, index) => BigInt(index % tokens)),
        [items.length, tokens],
      ),
      [stepInputs.supervisedRows]: int64Tensor(padded(rows, 2 * fill), [headChunks, perChunk, 2]),
      [stepInputs.labels]: int64Tensor(padded(labels, fill), [headChunks, perChunk]),
      [stepInputs.rowWeights]: { dtype: 'float32', dims: [headChunks, perChunk], data: Float32Array.from(padded(weights, fill)) },
      ...Object.assign({}, ...media.map((path) => mediaFeeds(items, path))),
      ...(softPrompt > 0 && { [stepInputs.softPromptRows]: frontRows(items.length, softPrompt) }),
      ...(source && sourceFeeds(items.map(firstTarget), tokens)),
    },
    weight: weights.reduce((sum, weight) => sum + weight, 0),
    tokens: items.reduce((sum, item) => sum + item.ids.length, 0),
    targets: labels.length,
    dims: [items.length, tokens],
  }
}

/** The sample with so many places before it, which predict nothing. */
function afterPlaces(sample: BatchItem, places: number): BatchItem {
  const ids = new Int32Array(places + sample.ids.length).fill(-1)
  ids.set(sample.ids, places)
  const weights = new Float32Array(places + sample.weights.length)
  weights.set(sample.weights, places)
  return { ...sample, ids, weights, media: sample.media.map((span) => ({ ...span, start: span.start + places })) }
}

/** The place of a sample's first target; of one without targets, all that it has comes before. */
function firstTarget({ ids, weights }: BatchItem): number {
  const place = weights.findIndex((weight) => weight !== 0)
  return place < 0 ? ids.length : place
}

/** int64 [rows, places, 2]: the first places of every row. */
function frontRows(rows: number, places: number): TensorValue {
  const values = Array.from({ length: rows * places }, (_, index) => [Math.floor(index / places), index % places])
  return int64Tensor(values.flat(), [rows, places, 2])
}

/** Where the tokens of one medium stand among those of a batch. */
interface Span {
  readonly row: number
  readonly start: number
  readonly length: number
  /** Which of them are separators. */
  readonly separators: ReadonlySet<number>
  /** Which are text, and none of the medium's. */
  readonly texts: ReadonlySet<number>
}

/** For each token of a medium, which projected token it is: the next of its own, or the separator. */
function placesOf(span: Span, first: number, separator: number): readonly number[] {
  let next = first
  return ownTokens(span).map((token) => (span.separators.has(token) ? separator : next++))
}

/** The tokens of a medium that are no text. */
function ownTokens({ length, texts }: Span): readonly number[] {
  return Array.from({ length }, (_, token) => token).filter((token) => !texts.has(token))
}

/** Where the projected tokens of one modality go, and the features that they are made of. */
function mediaFeeds(items: readonly BatchItem[], path: MediaPath): NamedTensors {
  const { modality, grid } = path
  const { trained } = path
  const features: Float32Array[] = []
  const units: (readonly EncoderUnit[])[] = []
  const spans: Span[] = []
  for (const [row, item] of items.entries()) {
    for (const [index, { part, start, length }] of item.media.entries()) {
      const own = item.features[index]
      if (part.type !== modality) continue
      features.push(own?.data ?? new Float32Array(0))
      units.push(own?.units ?? [])
      spans.push({
        row,
        start,
        length,
        separators: new Set(own?.separators?.filter((place) => place < length)),
        texts: new Set(own?.texts?.map(({ place }) => place)),
      })
    }
  }
  const { feeds, tokensOut } = trained === undefined ? stackFeatures(path, features) : stackUnits(path, trained, units)
  const wrong = spans.find(({ length, separators, texts }) =>
    grid === undefined ? length - separators.size - texts.size > tokensOut : length !== tokensOut,
  )
  if (wrong !== undefined)
    throw new ModalignError({
      code: 'BATCH_FEATURES',
      field: modality,
      got: `${wrong.length} places for a medium`,
      expected: `${tokensOut}${grid === undefined ? ' at most' : ''}`,
    })
  const rows = spans.flatMap((span) => ownTokens(span).flatMap((token) => [span.row, span.start + token]))
  if (grid !== undefined) return { ...feeds, [`${modality}.rows`]: int64Tensor(rows, [spans.length, tokensOut, 2]) }
  const places = spans.flatMap((span, medium) => placesOf(span, medium * tokensOut, spans.length * tokensOut))
  return {
    ...feeds,
    [`${modality}.places`]: int64Tensor(places, [places.length]),
    [`${modality}.rows`]: int64Tensor(rows, [places.length, 2]),
  }
}

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple
}
