import { scaledDotProductAttention } from '../graph/composites/attention.ts'
import { rotaryEmbedding } from '../graph/composites/rotary-embedding.ts'
import { addDims } from '../graph/dim.ts'
import { type Apply, defineComposite, required } from '../graph/operator.ts'
import { add } from '../graph/operators/add.ts'
import { cast } from '../graph/operators/cast.ts'
import { concat } from '../graph/operators/concat.ts'
import { equal } from '../graph/operators/equal.ts'
import { expand } from '../graph/operators/expand.ts'
import { matmul } from '../graph/operators/matmul.ts'
import { mul } from '../graph/operators/mul.ts'
import { reduceSum } from '../graph/operators/reduce-sum.ts'
import { reshape } from '../graph/operators/reshape.ts'
import { sub } from '../graph/operators/sub.ts'
import { transpose } from '../graph/operators/transpose.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import { dimAt, fixedDim, scalar, type Tensor } from '../graph/tensor.ts'
import { cacheMask, indices } from './attention-mask.ts'
import type { RotaryTables } from './rotary.ts'

export interface CachedAttentionAttributes {
  readonly heads: number
  readonly kvHeads: number
  readonly scale: number
  /** A token sees so many tokens, itself the last of them. Absent: all. */
  readonly window?: number
  /** Scores are bent into (-softcap, softcap). Absent: they are not. */
  readonly softcap?: number
}

/**
 * Attention over a cache in which every row of the batch has its own length. New token i of row b goes to place positions[b, i] of the cache, over whatever stands there
 * (padding of an earlier call), and sees the places up to its own. Outputs: O, the new keys, the new values.
 *
 * The formula is plain ONNX; ONNX Runtime's GroupQueryAttention is the same thing as one operator, for calls that start at position 0 or add one token to each row and
 * have no biases of positions.
 */
const apply: Apply<CachedAttentionAttributes> = defineComposite<CachedAttentionAttributes>({
  name: 'CachedAttention',
  expand(inputs, { heads, kvHeads, scale, window, softcap }) {
    const name = 'CachedAttention'
    const [q, k, v, pastKey, pastValue] = [
      required(inputs, 0, name),
      required(inputs, 1, name),
      required(inputs, 2, name),
      required(inputs, 3, name),
      required(inputs, 4, name),
    ]
    const positions = required(inputs, 5, name)
    const [cos, sin, bias] = [inputs[6], inputs[7], inputs[10]]
    const headDim = fixedDim(pastKey.shape, 3, name)
    const [batch, tokens] = [dimAt(q.shape, 0), dimAt(q.shape, 1)]
    const byHead = (x: Tensor, count: number): Tensor => transpose(reshape(x, [batch, tokens, count, headDim]), [0, 2, 1, 3])
    const turned = (x: Tensor): Tensor => (cos === undefined || sin === undefined ? x : rotaryEmbedding(x, positions, cos, sin))
    const length = addDims(dimAt(pastKey.shape, 2), tokens)
    // 1 where place j of the cache is where new token i goes: [batch, 1, length, tokens].
    const places = cast(equal(unsqueeze(positions, [1, 2]), unsqueeze(indices(length), [0, 1, 3])), 'float32')
    const kept = sub(1, reduceSum(places, [-1], { keepdims: true }))
    const extend = (past: Tensor, fresh: Tensor): Tensor => {
      const longer = concat([past, expand(scalar(0), [batch, kvHeads, tokens, headDim])], 2)
      return add(mul(longer, kept), matmul(places, fresh))
    }
    const key = extend(pastKey, turned(byHead(k, kvHeads)))
    const value = extend(pastValue, byHead(v, kvHeads))
    const mask = cacheMask(positions, length, window)
    const o = scaledDotProductAttention(turned(byHead(q, heads)), key, value, {
      scale,
      mask: bias === undefined ? mask : add(mask, bias),
      ...(softcap === undefined ? {} : { softcap }),
    })
    return [reshape(transpose(o, [0, 2, 1, 3]), q.shape), key, value]
  },
  gradient: 'by-expansion',
})

export interface CachedAttentionInputs {
  /** [batch, tokens, heads*headDim], not yet rotated if `rotary` is given. */
  readonly query: Tensor
  /** [batch, tokens, kvHeads*headDim], not yet rotated if `rotary` is given. */
  readonly key: Tensor
  readonly value: Tensor
  /** [batch, kvHeads, past, headDim], rotated. */
  readonly pastKey: Tensor
  readonly pastValue: Tensor
  /** int64 [batch, tokens]. */
  readonly positions: Tensor
  /** int32 [batch]: the last place in use after this call (positions of the row's last real token). */
  readonly lastPlaces: Tensor
  /** int32, rank 0: places of the cache that the longest row uses after this call. */
  readonly totalLength: Tensor
  /** Angles for whole heads. */
  readonly rotary?: Pick<RotaryTables, 'cos' | 'sin'> | undefined
  /** Added to the scores: [batch or 1, heads, tokens, past + tokens]. Heads must not be grouped. */
  readonly bias?: Tensor | undefined
}

/** @returns the attention's output [batch, tokens, heads*headDim] and the longer cache [batch, kvHeads, at least totalLength, headDim]. */
export function cachedAttention(
  inputs: CachedAttentionInputs,
  attributes: CachedAttentionAttributes,
): { readonly output: Tensor; readonly key: Tensor; readonly value: Tensor } {
  const { query, key, value, pastKey, pastValue, positions, rotary, lastPlaces, totalLength, bias } = inputs
  const [output, presentKey, presentValue] = apply(
    [query, key, value, pastKey, pastValue, positions, rotary?.cos, rotary?.sin, lastPlaces, totalLength, bias],
    attributes,
  )
  if (output === undefined || presentKey === undefined || presentValue === undefined) throw new Error('internal: three outputs')
  return { output, key: presentKey, value: presentValue }
}
