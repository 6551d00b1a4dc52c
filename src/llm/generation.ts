/** Generation: prompts in, tokens out, for a batch whose rows end when they end. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { abortError } from '../runtime/abort.ts'
import type { Session } from '../runtime/session.ts'
import { int64Tensor, type NamedTensors, type TensorValue } from '../tensors.ts'
import type { Decoder } from './decoder.ts'
import { cacheNames, generationInputs } from './generation-graph.ts'
import { chooseToken, samplingSchema } from './sampling.ts'

export const generationOptionsSchema = samplingSchema.extend({
  /** Default 256. */
  maxNewTokens: z.int().min(1).max(1_000_000).optional(),
  /** Generation stops after one of these; default: the model's end-of-turn tokens. */
  stopTokenIds: z.array(z.int().min(0)).readonly().optional(),
  /** Default 0. The random numbers of an answer depend on it and on the request's key alone, never on the place in a batch. */
  seed: z.int().min(0).optional(),
})
export type GenerationOptions = z.infer<typeof generationOptionsSchema>

export interface GenerationRequest {
  /** Prompt ids; negative ones are places of media, filled from `media` in order. */
  readonly ids: ArrayLike<number>
  /** float32, one row of hiddenSize for every negative id. */
  readonly media?: Float32Array
}

export type FinishReason = 'stop' | 'length' | 'context'
export type GenerationEvent =
  | { readonly type: 'token'; readonly row: number; readonly id: number }
  | { readonly type: 'end'; readonly row: number; readonly reason: FinishReason }

/** Uniform random numbers of one request: number `index` decides its token `index`. */
export type Draw = (row: number, index: number) => number

export interface GeneratorModel {
  readonly session: Session
  readonly decoder: Pick<Decoder, 'layers' | 'kvHeads' | 'headDim' | 'hiddenSize' | 'maxPositions'>
}

/**
 * Generates for every row of a batch; rows that have ended take no further part in what is yielded.
 *
 * @param options `maxNewTokens`, sampling, `stopTokenIds` (required here: the caller knows the model's).
 * @throws GENERATION_EMPTY, GENERATION_TOO_LONG, GENERATION_MEDIA, GENERATION_NOT_FINITE, and an AbortError between tokens.
 */
export async function* generateTokens(
  { session, decoder }: GeneratorModel,
  requests: readonly GenerationRequest[],
  options: GenerationOptions & { readonly stopTokenIds: readonly number[]; readonly draw: Draw; readonly signal?: AbortSignal },
): AsyncGenerator<GenerationEvent> {
  const { maxNewTokens = 256, stopTokenIds, draw, signal } = options
  const runOptions = { fetch: ['logits'], carry: carryOf(decoder.layers), ...(signal === undefined ? {} : { signal }) }
  for (const request of requests) checkRequest(request, decoder)
  const stops = new Set(stopTokenIds)
  const histories = requests.map(({ ids }) => ({ prompt: Array.from(ids), answer: new Array<number>() }))
  const lengths = requests.map(({ ids }) => ids.length)
  const open = new Set(requests.keys())
  const latest = new Array<number>(requests.length).fill(0)

  await session.setCarried(emptyCache(decoder, requests.length))
  let feeds: NamedTensors = promptFeeds(requests, decoder.hiddenSize)
  for (let step = 0; open.size > 0; step++) {
    if (signal?.aborted) throw abortError(signal)
    const { logits } = await session.run(feeds, runOptions)
    if (logits?.dtype !== 'float32') throw new Error('internal: logits are float32')
    const width = logits.data.length / requests.length
    for (const row of [...open]) {
      const scores = logits.data.subarray(row * width, (row + 1) * width)
      const id = chooseToken(scores, options, histories[row], draw(row, step))
      latest[row] = id
      if (stops.has(id)) {
        open.delete(row)
        yield { type: 'end', row, reason: 'stop' }
        continue
      }
      histories[row]?.answer.push(id)
      yield { type: 'token', row, id }
      const reason = step + 1 >= maxNewTokens ? 'length' : (lengths[row] ?? 0) + 1 >= decoder.maxPositions ? 'context' : undefined
      if (reason !== undefined) {
        open.delete(row)
        yield { type: 'end', row, reason }
      }
    }
    feeds = tokenFeeds(latest, lengths, decoder.hiddenSize)
    // Rows that have ended go on writing to their own next place, which nobody reads; the place stays inside the cache.
    for (const row of open) lengths[row] = (lengths[row] ?? 0) + 1
  }
}

/** The whole prompts, padded at the right: rows keep their own positions, and later tokens overwrite the padding's places. */
function promptFeeds(requests: readonly GenerationRequest[], hiddenSize: number): NamedTensors {
  const tokens = Math.max(...requests.map(({ ids }) => ids.length))
  const ids = new BigInt64Array(requests.length * tokens)
  const positions = BigInt64Array.from({ length: ids.length }, (_, index) => BigInt(index % tokens))
  const rows: number[] = []
  const media: Float32Array[] = []
  for (const [row, request] of requests.entries()) {
    for (let place = 0; place < request.ids.length; place++) {
      const id = request.ids[place] ?? 0
      if (id < 0) rows.push(row, place)
      else ids[row * tokens + place] = BigInt(id)
    }
    if (request.media !== undefined) media.push(request.media)
  }
  return {
    [generationInputs.ids]: int64Tensor(ids, [requests.length, tokens]),
    [generationInputs.positions]: int64Tensor(positions, [requests.length, tokens]),
    [generationInputs.media]: {
      dtype: 'float32',
      dims: [rows.length / 2, hiddenSize],
      data: joined(media, (rows.length / 2) * hiddenSize),
    },
    [generationInputs.mediaRows]: int64Tensor(rows, [rows.length / 2, 2]),
    [generationInputs.outputRows]: int64Tensor(
      requests.flatMap(({ ids: own }, row) => [row, own.length - 1]),
      [requests.length, 2],
    ),
    [generationInputs.lastPlaces]: int32Tensor(
      requests.map(({ ids: own }) => own.length - 1),
      [requests.length],
    ),
    [generationInputs.totalLength]: int32Tensor([tokens], []),
  }
}

/** One token for every row, at the row's own next place. */
function tokenFeeds(latest: readonly number[], lengths: readonly number[], hiddenSize: number): NamedTensors {
  const batch = latest.length
  return {
    [generationInputs.ids]: int64Tensor(latest, [batch, 1]),
    [generationInputs.positions]: int64Tensor(lengths, [batch, 1]),
    [generationInputs.media]: { dtype: 'float32', dims: [0, hiddenSize], data: new Float32Array(0) },
    [generationInputs.mediaRows]: int64Tensor([], [0, 2]),
    [generationInputs.outputRows]: int64Tensor(
      latest.flatMap((_, row) => [row, 0]),
      [batch, 2],
    ),
    [generationInputs.lastPlaces]: int32Tensor(lengths, [batch]),
    [generationInputs.totalLength]: int32Tensor([Math.max(...lengths) + 1], []),
  }
}

function emptyCache({ layers, kvHeads, headDim }: GeneratorModel['decoder'], batch: number): NamedTensors {
  const empty: TensorValue = { dtype: 'float32', dims: [batch, kvHeads, 0, headDim], data: new Float32Array(0) }
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

function checkRequest({ ids, media }: GenerationRequest, { hiddenSize, maxPositions }: GeneratorModel['decoder']): void {
  if (ids.length === 0) throw new ModalignError({ code: 'GENERATION_EMPTY', got: 'a prompt without tokens', expected: 'at least one' })
  if (ids.length >= maxPositions) {
    throw new ModalignError({
      code: 'GENERATION_TOO_LONG',
      got: `${ids.length} tokens`,
      expected: `fewer than the model's ${maxPositions} positions`,
    })
  }
  const places = Array.from(ids).filter((id) => id < 0).length
  const rows = (media?.length ?? 0) / hiddenSize
  if (places !== rows)
    throw new ModalignError({
      code: 'GENERATION_MEDIA',
      got: `${rows} media tokens`,
      expected: `${places}, one for each place in the prompt`,
    })
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
