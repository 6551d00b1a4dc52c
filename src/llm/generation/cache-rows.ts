/** Rows of keys and values beside a session, each with a length of its own: prompts are read into them, tokens added, rows moved. */
import type { AppendedOutput, Session } from '../../runtime/session.ts'
import { float32Tensor, int64Tensor, type NamedTensors, type TensorValue } from '../../tensors.ts'
import type { Decoder } from '../decoder.ts'
import { continuedSourceFeeds, sourceFeeds } from '../source-tokens.ts'
import { cacheNames, freshCache, freshPlaces, generationInputs } from './graph-names.ts'
import { slice } from './prefix.ts'

export interface GeneratorModel {
  readonly session: Session
  readonly decoder: Pick<Decoder, 'layers' | 'kvHeads' | 'headDim' | 'hiddenSize' | 'maxPositions' | 'hasEncoder' | 'longAfter'>
  /** The graph gives new places of the cache alone, and they are written where they belong: see `appendingCache`. Default false: every call gives a longer cache. */
  readonly appends?: boolean
  /** Calls may add several tokens to a row that has some. Default false: only whole prompts are read, and single tokens added. */
  readonly continues?: boolean
}

/** What a row reads at once. */
export interface Tokens {
  /** Negative ones are places of media, filled from `media` in order. */
  readonly ids: ArrayLike<number>
  /** float32, one row of hiddenSize for every negative id. */
  readonly media?: Float32Array
}

export interface MovedRow {
  readonly from: CacheRows
  readonly row: number
  /** How many of its tokens stay. Default: all. */
  readonly length?: number
}

/**
 * A cache that is written in place grows in steps of so many tokens, and has no more room than that: GroupQueryAttention writes zeros over all of it at every call, and a step of growth
 * moves it once in so many tokens.
 */
const growth = 64
/** A set of one row without places: what empty caches are made of. */
const emptySet = 'empty'
let serial = 0

/** One batch of rows. Its calls must not overlap; different batches of one session may. */
export class CacheRows {
  readonly #model: GeneratorModel
  readonly #set = `rows ${serial++}`
  #lengths: readonly number[] = []
  /** Tokens of the source, where the model has an encoder. */
  #sources: readonly number[] = []
  /** What each row has read, where it may have to be read again: see `Decoder.longAfter`. */
  #read: readonly Tokens[] = []
  /** Places that each row has room for, where the cache is written in place. */
  #capacity = 0
  readonly #carry: Readonly<Record<string, string>>
  readonly #cacheInputs: readonly string[]

  constructor(model: GeneratorModel) {
    this.#model = model
    this.#carry = carryOf(model.decoder.layers)
    this.#cacheInputs = Object.values(this.#carry)
  }

  /** Tokens in each row. */
  get lengths(): readonly number[] {
    return this.#lengths
  }

  /**
   * Reads prompts, one for each row, in place of what was here.
   *
   * @returns for each row the logits of the token after it: float32 [vocabularySize].
   */
  async read(prompts: readonly Tokens[], signal?: AbortSignal): Promise<readonly Float32Array[]> {
    const { session, decoder } = this.#model
    const tokens = Math.max(...prompts.map(({ ids }) => ids.length))
    await session.setCarried(emptyCache(decoder), emptySet)
    this.#capacity = this.#model.appends === true ? this.#rounded(tokens) : 0
    await session.arrangeCarried(
      this.#set,
      prompts.map(() => ({ set: emptySet, row: 0 })),
      this.#capacity,
    )
    this.#lengths = prompts.map(() => 0)
    this.#sources = prompts.map(({ ids }) => ids.length)
    this.#read = prompts.map(() => ({ ids: [] }))
    return this.#run(prompts, signal)
  }

  /** Reads more tokens into the only row. For models without an encoder. */
  async extend(tokens: Tokens, signal?: AbortSignal): Promise<Float32Array> {
    const [logits] = await this.#run([tokens], signal)
    if (logits === undefined) throw new Error('internal: one row')
    return logits
  }

  /** Adds one token to every row. */
  async append(ids: readonly number[], signal?: AbortSignal): Promise<readonly Float32Array[]> {
    const { longAfter } = this.#model.decoder
    const turning = this.#lengths.flatMap((length, row) => (length === longAfter ? [row] : []))
    const logits = await this.#run(
      ids.map((id) => ({ ids: [id] })),
      signal,
    )
    return turning.length === 0 ? logits : this.#readAgain(turning, logits, signal)
  }

  /** Rows that have just become longer than `longAfter`: all of their tokens have other angles now. */
  async #readAgain(turning: readonly number[], logits: readonly Float32Array[], signal?: AbortSignal): Promise<readonly Float32Array[]> {
    const again = new CacheRows(this.#model)
    const fresh = await again.read(
      turning.map((row) => this.#read[row] ?? { ids: [] }),
      signal,
    )
    await this.arrange(
      this.#lengths.map((_, row) => (turning.includes(row) ? { from: again, row: turning.indexOf(row) } : { from: this, row })),
    )
    await again.clear()
    return logits.map((own, row) => fresh[turning.indexOf(row)] ?? own)
  }

  /** Puts this batch together anew, out of rows of any batches of the session. A row that stays where it is costs nothing. */
  async arrange(rows: readonly MovedRow[]): Promise<void> {
    const lengths = rows.map(({ from, row, length }) => Math.min(from.#lengths[row] ?? 0, length ?? Number.POSITIVE_INFINITY))
    this.#sources = rows.map(({ from, row }) => from.#sources[row] ?? 0)
    const { appends = false, decoder } = this.#model
    if (decoder.longAfter !== undefined)
      this.#read = rows.map(({ from, row }, index) => slice(from.#read[row] ?? { ids: [] }, 0, lengths[index] ?? 0, decoder.hiddenSize))
    const needed = Math.max(0, ...lengths)
    const fits = this.#capacity > needed && this.#capacity <= needed + growth
    if (appends && !fits) this.#capacity = this.#rounded(needed)
    // An encoder's part of the cache has lengths of its own: all of it is kept.
    const trimmed = decoder.hasEncoder !== true
    await this.#model.session.arrangeCarried(
      this.#set,
      rows.map(({ from, row }, index) => ({ set: from.#set, row, ...(trimmed && { places: lengths[index] ?? 0 }) })),
      appends ? this.#capacity : trimmed ? needed : undefined,
    )
    this.#lengths = lengths
  }

  /** Gives the memory back. */
  async clear(): Promise<void> {
    ;[this.#lengths, this.#sources, this.#read, this.#capacity] = [[], [], [], 0]
    await this.#model.session.setCarried({}, this.#set)
  }

  #rounded(length: number): number {
    return Math.min(this.#model.decoder.maxPositions, (Math.floor(length / growth) + 1) * growth)
  }

  async #run(rows: readonly Tokens[], signal: AbortSignal | undefined): Promise<readonly Float32Array[]> {
    const { session, decoder, appends = false } = this.#model
    const tokens = Math.max(...rows.map(({ ids }) => ids.length))
    const longest = Math.max(...this.#lengths) + tokens
    if (appends && longest > this.#capacity) await this.#grow(longest)
    const feeds = tokenFeeds(rows, this.#lengths, tokens, decoder.hiddenSize)
    const source = decoder.hasEncoder === true ? this.#sourceFeeds(tokens) : {}
    const { logits } = await session.run(
      { ...feeds, ...source, ...(appends && { [freshPlaces]: placesFeed(this.#lengths, tokens, decoder.kvHeads) }) },
      {
        fetch: ['logits'],
        ...(appends ? { append: this.#appended(rows) } : { carry: this.#carry }),
        carrySet: this.#set,
        ...(signal && { signal }),
      },
    )
    if (logits?.dtype !== 'float32') throw new Error('internal: logits are float32')
    this.#lengths = this.#lengths.map((length, row) => length + (rows[row]?.ids.length ?? 0))
    if (decoder.longAfter !== undefined) this.#read = rows.map((own, row) => together(this.#read[row], own))
    const { data } = logits
    const width = data.length / rows.length
    return rows.map((_, row) => data.subarray(row * width, (row + 1) * width))
  }

  #appended(rows: readonly Tokens[]): AppendedOutput {
    return {
      output: freshCache,
      inputs: this.#cacheInputs,
      starts: this.#lengths,
      tokens: rows.map(({ ids }) => ids.length),
    }
  }

  #sourceFeeds(tokens: number): NamedTensors {
    return this.#lengths.every((length) => length === 0) ? sourceFeeds(this.#sources, tokens) : continuedSourceFeeds(this.#sources, tokens)
  }

  async #grow(length: number): Promise<void> {
    this.#capacity = this.#rounded(length)
    await this.#model.session.arrangeCarried(
      this.#set,
      this.#lengths.map((places, row) => ({ set: this.#set, row, places })),
      this.#capacity,
    )
  }
}

/** One sequence after another. */
function together(first: Tokens = { ids: [] }, { ids, media }: Tokens): Tokens {
  const both = [first.media, media].filter((one) => one !== undefined)
  return {
    ids: [...Array.from(first.ids), ...Array.from(ids)],
    ...(both.length > 0 && {
      media: joined(
        both,
        both.reduce((sum, { length }) => sum + length, 0),
      ),
    }),
  }
}

/** Rows padded at the right: each keeps its own positions, and later tokens overwrite the padding's places. */
function tokenFeeds(rows: readonly Tokens[], starts: readonly number[], tokens: number, hiddenSize: number): NamedTensors {
  const ids = new BigInt64Array(rows.length * tokens)
  const positions = new BigInt64Array(ids.length)
  const mediaRows: number[] = []
  const media: Float32Array[] = []
  for (const [row, own] of rows.entries()) {
    const start = starts[row] ?? 0
    for (let place = 0; place < tokens; place++) {
      positions[row * tokens + place] = BigInt(start + place)
      const id = own.ids[place] ?? 0
      if (id < 0) mediaRows.push(row, place)
      else ids[row * tokens + place] = BigInt(id)
    }
    if (own.media !== undefined) media.push(own.media)
  }
  const mediaTokens = mediaRows.length / 2
  return {
    [generationInputs.ids]: int64Tensor(ids, [rows.length, tokens]),
    [generationInputs.positions]: int64Tensor(positions, [rows.length, tokens]),
    [generationInputs.media]: float32Tensor(joined(media, mediaTokens * hiddenSize), [mediaTokens, hiddenSize]),
    [generationInputs.mediaRows]: int64Tensor(mediaRows, [mediaTokens, 2]),
    [generationInputs.outputRows]: int64Tensor(
      rows.flatMap(({ ids: own }, row) => [row, own.length - 1]),
      [rows.length, 2],
    ),
    [generationInputs.lastPlaces]: int32Tensor(
      rows.map(({ ids: own }, row) => (starts[row] ?? 0) + own.length - 1),
      [rows.length],
    ),
    [generationInputs.totalLength]: int32Tensor([Math.max(...starts) + tokens], []),
  }
}

/** Row, head and place of the next tokens' keys and values. */
function placesFeed(starts: readonly number[], tokens: number, heads: number): TensorValue {
  const places = starts.flatMap((start, row) =>
    Array.from({ length: heads }, (_, head) => Array.from({ length: tokens }, (_, place) => [row, head, start + place])).flat(2),
  )
  return int64Tensor(places, [starts.length, heads, tokens, 3])
}

function emptyCache({ layers, kvHeads, headDim }: GeneratorModel['decoder']): NamedTensors {
  const empty = float32Tensor(new Float32Array(0), [1, kvHeads, 0, headDim])
  return Object.fromEntries(
    Array.from({ length: layers }, (_, layer) => cacheNames(layer).past).flatMap(({ key, value }) => [
      [key, empty],
      [value, empty],
    ]),
  )
}

function carryOf(layers: number): Readonly<Record<string, string>> {
  return Object.fromEntries(
    Array.from({ length: layers }, (_, layer) => cacheNames(layer)).flatMap(({ past, present }) => [
      [present.key, past.key],
      [present.value, past.value],
    ]),
  )
}

function joined(parts: readonly Float32Array[], length: number): Float32Array {
  const whole = new Float32Array(length)
  let offset = 0
  for (const part of parts) {
    whole.set(part, offset)
    offset += part.length
  }
  return whole
}

function int32Tensor(values: readonly number[], dims: readonly number[]): TensorValue {
  return { dtype: 'int32', dims, data: Int32Array.from(values) }
}
