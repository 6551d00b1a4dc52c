/** The graph that generates: one call reads a prompt or adds one token to every row, over a cache of keys and values. */

import { size } from '../../graph/dim.ts'
import { gatherNd } from '../../graph/operators/gather-nd.ts'
import { scatterNd } from '../../graph/operators/scatter-nd.ts'
import { input } from '../../graph/tensor.ts'
import { type LoweredModel, lower } from '../../onnx/lower.ts'
import type { Device } from '../../runtime/session.ts'
import { type Decoder, type LayerCache, logitsOf } from '../decoder.ts'
import { sourceContext } from '../source-tokens.ts'
import { appendingCache } from './appending-cache.ts'
import { fuseGeneration } from './fusion.ts'
import { cacheContinues, cacheNames, freshCache, generationInputs } from './graph-names.ts'
import { singleRow } from './single-row.ts'
import { uncopiedAttention } from './uncopied-attention.ts'

export interface GenerationGraphOptions {
  /** See `lower`. */
  readonly fused?: boolean
  /** Give only the new places of the cache, where its operators allow that: see `appendingCache`. For devices that share the caller's memory. Default false. */
  readonly appends?: boolean
  /** Add a graph for calls with one token of one row, where weights in blocks are worth it: see `singleRow`. Default false. */
  readonly oneRow?: boolean
}

/** Output `logits` float32 [batch, vocabularySize] and the longer cache. What is trained has its present values. */
export function generationGraph(
  model: Decoder,
  { appends = false, oneRow = false, ...options }: GenerationGraphOptions = {},
): LoweredModel {
  const decoder = model.trained?.present().decoder ?? model
  const [batch, tokens, past, mediaTokens] = [size('batch'), size('tokens'), size('past'), size('media_tokens')]
  const ids = input(generationInputs.ids, 'int64', [batch, tokens])
  const positions = input(generationInputs.positions, 'int64', [batch, tokens])
  const media = input(generationInputs.media, 'float32', [mediaTokens, decoder.hiddenSize])
  const mediaRows = input(generationInputs.mediaRows, 'int64', [mediaTokens, 2])
  const outputRows = input(generationInputs.outputRows, 'int64', [batch, 2])
  const lastPlaces = input(generationInputs.lastPlaces, 'int32', [batch])
  const totalLength = input(generationInputs.totalLength, 'int32', [])
  const source = sourceContext(decoder, batch)
  const layers: readonly LayerCache[] = Array.from({ length: decoder.layers }, (_, layer) => {
    const names = cacheNames(layer).past
    // An encoder-decoder's second, fourth, ... pair is of the source.
    const places = decoder.hasEncoder === true && layer % 2 === 1 ? size('past_source') : past
    const cacheShape = [batch, decoder.kvHeads, places, decoder.headDim]
    return { key: input(names.key, 'float32', cacheShape), value: input(names.value, 'float32', cacheShape) }
  })
  const embeds = scatterNd(decoder.embed(ids), mediaRows, media)
  const { hidden, cache } = decoder.decode(embeds, { positions, ...source, cache: { layers, lastPlaces, totalLength } })
  const logits = logitsOf(decoder, gatherNd(hidden, outputRows))
  const present = cache.flatMap(({ key, value }, layer) => {
    const names = cacheNames(layer).present
    return [
      [names.key, key],
      [names.value, value],
    ] as const
  })
  // Every input stays an input, whether a provider's fused attention reads it or not: callers feed one set of names.
  const inputs = [
    ids,
    positions,
    media,
    mediaRows,
    outputRows,
    lastPlaces,
    totalLength,
    ...Object.values(source.source ?? {}),
    ...layers.flatMap(({ key, value }) => [key, value]),
  ]
  const lowered = lower({ outputs: Object.fromEntries([['logits', logits], ...present]), inputs, ...options })
  if (options.fused === false) return lowered
  const merged = fuseGeneration(lowered)
  const appending = appends ? appendingCache(merged, decoder) : undefined
  if (appending === undefined) return merged
  const general = uncopiedAttention(appending, decoder)
  return (oneRow ? singleRow(appending, general) : undefined) ?? general
}

/** What a generation's session can do with its cache: see `GeneratorModel`. */
export function cacheAbilities(
  lowered: LoweredModel,
  decoder: Pick<Decoder, 'hasEncoder' | 'longAfter'>,
  device: Device,
): { readonly appends: boolean; readonly continues: boolean } {
  return { appends: lowered.outputs.includes(freshCache), continues: cacheContinues(decoder, device) }
}
