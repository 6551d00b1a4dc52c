/** Which records a step takes. Pure functions of (seed, epoch, position): a run resumes anywhere without replaying or storing an order. */
import { ModalignError } from '../errors.ts'
import { type Permutation, permutation } from '../random.ts'

export interface SamplerOptions {
  readonly seed: number
  /** From 0. Each epoch has its own order. */
  readonly epoch: number
  readonly batchSize: number
  /** Default true; false keeps the order of the file. */
  readonly shuffle?: boolean
  /** Leave out the last batch if it is smaller than the others; default false. */
  readonly dropLast?: boolean
}

/** The batches of one epoch. */
export interface Sampler {
  /** Number of batches. */
  readonly length: number
  /** The record indices of batch `position`, 0 ... length - 1. */
  batch(position: number): readonly number[]
}

/**
 * Shuffled batches over `length` records, without a buffer: any batch is computed in time that does not depend on its position.
 *
 * @throws ModalignError `SAMPLER_EMPTY`, `SAMPLER_BATCH_SIZE`, `SEED_RANGE`
 * @example
 * const { batch } = sampler(665_298, { seed: 0, epoch: 0, batchSize: 8 })
 * batch(50_000) // the eight records of step 50,000
 */
export function sampler(length: number, { seed, epoch, batchSize, shuffle = true, dropLast = false }: SamplerOptions): Sampler {
  checkSizes(length, batchSize, dropLast)
  const order: Permutation = shuffle ? permutation(length, { seed, stream: `order/${epoch}` }) : (position) => position
  const batches = dropLast ? Math.floor(length / batchSize) : Math.ceil(length / batchSize)
  return {
    length: batches,
    batch(position) {
      checkPosition(position, batches)
      const start = position * batchSize
      return Array.from({ length: Math.min(batchSize, length - start) }, (_, i) => order(start + i))
    },
  }
}

export interface GroupedSamplerOptions extends Omit<SamplerOptions, 'shuffle'> {
  /** Tokens of each record. */
  readonly lengths: ArrayLike<number>
  /** Which records may share a batch, one key a record, for example its modality; default: all. */
  readonly groups?: ArrayLike<string | number>
  /** Lengths are sorted within this many batches at a time: more means less padding and less randomness. Default 50. */
  readonly window?: number
  /** Begin with the batch that holds the most tokens when padded, so that a machine too small for it says so at once. Default true. */
  readonly longestFirst?: boolean
}

/**
 * Batches of records of one group and of similar length, as LLaVA's modality-length-grouped sampler makes them: the group's records are shuffled, cut into windows,
 * sorted by length inside each window, cut into batches; the batches of all groups are shuffled together. Unlike there, no record is dropped and no batch is mixed:
 * each group's last batch may be smaller, unless `dropLast`.
 *
 * @throws ModalignError `SAMPLER_EMPTY`, `SAMPLER_BATCH_SIZE`, `SAMPLER_LENGTHS`, `SEED_RANGE`
 * @example
 * groupedSampler({ lengths: [12, 90, 14, 88], groups: ['image', 'text', 'image', 'text'], seed: 0, epoch: 0, batchSize: 2 }).batch(0)
 */
export function groupedSampler(options: GroupedSamplerOptions): Sampler {
  const { lengths, groups, seed, epoch, batchSize, dropLast = false, window = 50, longestFirst = true } = options
  checkSizes(lengths.length, batchSize, false)
  if (groups !== undefined && groups.length !== lengths.length) {
    throw new ModalignError({ code: 'SAMPLER_LENGTHS', got: `${groups.length} groups`, expected: `${lengths.length}, one for each length` })
  }
  const members = new Map<string | number, number[]>()
  for (let record = 0; record < lengths.length; record++) {
    const group = groups?.[record] ?? ''
    const list = members.get(group)
    if (list === undefined) members.set(group, [record])
    else list.push(record)
  }
  const batches: number[][] = []
  for (const [group, records] of members) {
    const order = permutation(records.length, { seed, stream: `order/${epoch}/${group}` })
    const shuffled = records.map((_, position) => records[order(position)] ?? 0)
    for (let start = 0; start < shuffled.length; start += window * batchSize) {
      const sorted = shuffled.slice(start, start + window * batchSize).sort((a, b) => (lengths[b] ?? 0) - (lengths[a] ?? 0))
      for (let i = 0; i < sorted.length; i += batchSize) {
        const batch = sorted.slice(i, i + batchSize)
        if (batch.length === batchSize || !dropLast) batches.push(batch)
      }
    }
  }
  if (batches.length === 0)
    throw new ModalignError({ code: 'SAMPLER_EMPTY', got: 'no full batch', expected: `at least ${batchSize} records of one group` })
  const order = permutation(batches.length, { seed, stream: `order/${epoch}/batches` })
  const shuffled = batches.map((_, position) => batches[order(position)] ?? [])
  if (longestFirst) moveLongestFirst(shuffled, lengths)
  return {
    length: shuffled.length,
    batch(position) {
      checkPosition(position, shuffled.length)
      return shuffled[position] ?? []
    },
  }
}

function moveLongestFirst(batches: number[][], lengths: ArrayLike<number>): void {
  const padded = (batch: readonly number[]) => batch.length * batch.reduce((longest, record) => Math.max(longest, lengths[record] ?? 0), 0)
  let longest = 0
  let most = -1
  batches.forEach((batch, position) => {
    const tokens = padded(batch)
    if (tokens > most) [longest, most] = [position, tokens]
  })
  const [first, other] = [batches[0], batches[longest]]
  if (first !== undefined && other !== undefined) [batches[0], batches[longest]] = [other, first]
}

/**
 * Where step `step` of a run lies: its epoch and its position in that epoch.
 *
 * @example
 * epochOf(250, 100) // { epoch: 2, position: 50 }
 */
export function epochOf(step: number, stepsPerEpoch: number): { readonly epoch: number; readonly position: number } {
  return { epoch: Math.floor(step / stepsPerEpoch), position: step % stepsPerEpoch }
}

function checkSizes(length: number, batchSize: number, dropLast: boolean): void {
  if (!Number.isInteger(batchSize) || batchSize < 1) {
    throw new ModalignError({ code: 'SAMPLER_BATCH_SIZE', got: String(batchSize), expected: 'a whole number of at least 1' })
  }
  const least = dropLast ? batchSize : 1
  if (length < least) throw new ModalignError({ code: 'SAMPLER_EMPTY', got: `${length} records`, expected: `at least ${least}` })
}

function checkPosition(position: number, length: number): void {
  if (!Number.isInteger(position) || position < 0 || position >= length)
    throw new RangeError(`batch must be in [0, ${length}), got ${position}`)
}
