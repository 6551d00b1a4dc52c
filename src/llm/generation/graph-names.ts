/**
 * What whoever runs a generation's graph must know of it: the names of what goes in and comes out, and what calls may do. Apart from the graph itself, so that the thread that runs
 * it need not load everything that builds graphs.
 */
import type { Device } from '../../runtime/session.ts'
import type { Decoder } from '../decoder.ts'

export const generationInputs = {
  /** int64 [batch, tokens]; anything valid at media places. */
  ids: 'ids',
  /** int64 [batch, tokens]. */
  positions: 'positions',
  /** float32 [mediaTokens, hiddenSize]. */
  media: 'media.embeddings',
  /** int64 [mediaTokens, 2]: batch row and place among this call's tokens. */
  mediaRows: 'media.rows',
  /** int64 [batch, 2]: batch row and place of the token whose successor is asked for. */
  outputRows: 'output.rows',
  /** int32 [batch]: the last place of the cache in use after this call. */
  lastPlaces: 'last_places',
  /** int32, rank 0: places of the cache that the longest row uses after this call. */
  totalLength: 'total_length',
} as const

/** Names of one layer's cache: inputs `past`, outputs `present`. */
export function cacheNames(layer: number): { readonly past: LayerNames; readonly present: LayerNames } {
  return {
    past: { key: `past.${layer}.key`, value: `past.${layer}.value` },
    present: { key: `present.${layer}.key`, value: `present.${layer}.value` },
  }
}
interface LayerNames {
  readonly key: string
  readonly value: string
}

/** int64 [batch, kvHeads, tokens, 3]: row, head and place of every new key and value. */
export const freshPlaces = 'cache.places'
/** float32 [layers x 2 x batch, kvHeads, tokens, headDim]: the new keys and values of all layers, in the order of the cache's inputs. */
export const freshCache = 'cache.fresh'

/** Whether calls may add several tokens to a row: pieces of one prompt must have the angles of the whole. */
export function cacheContinues({ hasEncoder, longAfter }: Pick<Decoder, 'hasEncoder' | 'longAfter'>, device: Device): boolean {
  return (device === 'cpu' || device === 'wasm') && hasEncoder !== true && longAfter === undefined
}
