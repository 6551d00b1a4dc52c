/** Causal self-attention as every family has it, over a whole sequence or over a cache. */
import { scaledDotProductAttention } from '../graph/composites/attention.ts'
import { addDims, type Dim } from '../graph/dim.ts'
import { add } from '../graph/operators/add.ts'
import { cast } from '../graph/operators/cast.ts'
import { mul } from '../graph/operators/mul.ts'
import { reshape } from '../graph/operators/reshape.ts'
import { split } from '../graph/operators/split.ts'
import { transpose } from '../graph/operators/transpose.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import { constant, dimAt, type Tensor } from '../graph/tensor.ts'
import { causalMask, indices } from './attention-mask.ts'
import { cachedAttention } from './cached-attention.ts'
import type { DecodeContext, LayerCache } from './decoder.ts'
import type { Rotary } from './rope-scaling.ts'
import { rotaryTables, rotate, turnsWholeHeads } from './rotary.ts'

export interface Heads {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
}

export interface AttentionSpec extends Heads {
  readonly scale: number
  /** Absent: no rotary positions. */
  readonly rotary?: Rotary | undefined
  /** A token sees so many tokens, itself the last of them. Absent: all before it. */
  readonly window?: number | undefined
  /** Scores are bent into (-softcap, softcap). */
  readonly softcap?: number | undefined
  /** One number for each head: score += slope x the key's position.   Press, Smith & Lewis 2022. */
  readonly alibiSlopes?: readonly number[] | undefined
}

export interface Projected {
  /** [batch, tokens, heads*headDim]. */
  readonly query: Tensor
  /** [batch, tokens, kvHeads*headDim]. */
  readonly key: Tensor
  readonly value: Tensor
}

/** @returns [batch, tokens, heads*headDim], and the keys and values that later tokens need. */
export function selfAttention(
  { query, key, value }: Projected,
  spec: AttentionSpec,
  context: DecodeContext,
  past: LayerCache | undefined,
): { readonly output: Tensor; readonly cache: LayerCache } {
  const { heads, kvHeads, headDim, scale, rotary, window, softcap, alibiSlopes } = spec
  const cap = softcap === undefined ? {} : { softcap }
  const tokens = dimAt(query.shape, 1)
  const places = past === undefined ? tokens : addDims(dimAt(past.key.shape, 2), tokens)
  const turned = (x: Tensor): Tensor => (rotary === undefined ? x : rotate(x, rotary, context, places))
  if (past !== undefined && context.cache !== undefined) {
    const { lastPlaces, totalLength } = context.cache
    const inside = rotary !== undefined && turnsWholeHeads(rotary, headDim) ? rotaryTables(rotary, places) : undefined
    const before = (x: Tensor, count: number): Tensor =>
      rotary === undefined || inside !== undefined ? x : joinHeads(turned(splitHeads(x, count, headDim)))
    const attended = cachedAttention(
      {
        query: before(query, heads),
        key: before(key, kvHeads),
        value,
        pastKey: past.key,
        pastValue: past.value,
        positions: context.positions,
        lastPlaces,
        totalLength,
        rotary: inside,
        bias: alibiSlopes && alibiBias(alibiSlopes, places),
      },
      { heads, kvHeads, scale, ...cap, ...(window === undefined ? {} : { window }) },
    )
    return { output: attended.output, cache: { key: attended.key, value: attended.value } }
  }
  const [q, k, v] = [
    turned(splitHeads(query, heads, headDim)),
    turned(splitHeads(key, kvHeads, headDim)),
    splitHeads(value, kvHeads, headDim),
  ]
  const mask = causalMask(tokens, { segments: context.segments, window })
  const biased = alibiSlopes === undefined ? mask : add(mask, alibiBias(alibiSlopes, tokens))
  return { output: joinHeads(scaledDotProductAttention(q, k, v, { scale, mask: biased, ...cap })), cache: { key: k, value: v } }
}

/** [batch, tokens, count*headDim] -> [batch, count, tokens, headDim]. */
export function splitHeads(x: Tensor, count: number, headDim: number): Tensor {
  return transpose(reshape(x, [dimAt(x.shape, 0), dimAt(x.shape, 1), count, headDim]), [0, 2, 1, 3])
}

/** [batch, count, tokens, headDim] -> [batch, tokens, count*headDim]. */
export function joinHeads(x: Tensor): Tensor {
  const [count, headDim] = [dimAt(x.shape, 1), dimAt(x.shape, 3)]
  if (typeof count !== 'number' || typeof headDim !== 'number') throw new Error('internal: heads have numbers as sizes')
  return reshape(transpose(x, [0, 2, 1, 3]), [dimAt(x.shape, 0), dimAt(x.shape, 2), count * headDim])
}

/** Projections fused head by head, [batch, tokens, heads*3*headDim]: each head's query, key and value lie together. */
export function splitFusedHeads(fused: Tensor, heads: number, headDim: number): Projected {
  const [batch, tokens] = [dimAt(fused.shape, 0), dimAt(fused.shape, 1)]
  const parts = split(reshape(fused, [batch, tokens, heads, 3 * headDim]), [headDim, headDim, headDim], -1)
  const [query, key, value] = parts.map((part) => reshape(part, [batch, tokens, heads * headDim]))
  if (query === undefined || key === undefined || value === undefined) throw new Error('internal: three parts')
  return { query, key, value }
}

/** [1, heads, 1, keys]. A constant along a query's keys changes nothing, so the key's own position stands for its distance. */
function alibiBias(slopes: readonly number[], keys: Dim): Tensor {
  const slope = constant({ dtype: 'float32', dims: [1, slopes.length, 1, 1], data: Float32Array.from(slopes) })
  return mul(slope, unsqueeze(cast(indices(keys), 'float32'), [0, 1, 2]))
}
