import { divideDims, multiplyDims } from '../dim.ts'
import { defineComposite, required } from '../operator.ts'
import { add } from '../operators/add.ts'
import { matmul } from '../operators/matmul.ts'
import { mul } from '../operators/mul.ts'
import { reduceSum } from '../operators/reduce-sum.ts'
import { reshape } from '../operators/reshape.ts'
import { softmax } from '../operators/softmax.ts'
import { sub } from '../operators/sub.ts'
import { tanh } from '../operators/tanh.ts'
import { swapLastAxes } from '../operators/transpose.ts'
import { dimAt, fixedDim, type Tensor } from '../tensor.ts'

interface Attributes {
  readonly scale: number
  readonly softcap?: number
}

/**
 * Outputs: O = P V and P = softmax(cap(scale Q K^T) + mask), with cap(s) = c tanh(s / c) where there is a soft cap c.
 * The gradient uses rowsum(dP P) = rowsum(dO O) (Dao et al. 2022, appendix B.2): a sum over head channels instead of over all keys.
 */
const apply = defineComposite<Attributes>({
  name: 'ScaledDotProductAttention',
  expand(inputs, { scale, softcap }) {
    const [q, k, v] = [required(inputs, 0, 'attention'), required(inputs, 1, 'attention'), required(inputs, 2, 'attention')]
    const mask = inputs[3]
    const scores = softcap === undefined ? mul(matmul(q, swapLastAxes(k)), scale) : mul(bent(q, k, scale, softcap), softcap)
    const probabilities = softmax(mask === undefined ? scores : masked(scores, mask, q))
    return [matmul(probabilities, v), probabilities]
  },
  gradient({ inputs: [q, k, v], outputs: [o, p], upstream: [g], needs, attributes: { scale, softcap } }) {
    if (q === undefined || k === undefined || v === undefined || o === undefined || p === undefined || g === undefined) return []
    const scoresNeeded = needs[0] === true || needs[1] === true
    const dCapped = scoresNeeded ? mul(p, sub(matmul(g, swapLastAxes(v)), reduceSum(mul(g, o), [-1], { keepdims: true }))) : undefined
    const dScores = dCapped !== undefined && softcap !== undefined ? throughCap(dCapped, bent(q, k, scale, softcap)) : dCapped
    return [
      needs[0] && dScores ? mul(matmul(dScores, k), scale) : undefined,
      needs[1] && dScores ? mul(matmul(swapLastAxes(dScores), q), scale) : undefined,
      needs[2] ? matmul(swapLastAxes(p), g) : undefined,
      undefined,
    ]
  },
})

/** tanh(scale Q K^T / c). */
function bent(q: Tensor, k: Tensor, scale: number, softcap: number): Tensor {
  return tanh(mul(matmul(q, swapLastAxes(k)), scale / softcap))
}

/** d cap(s) / ds = 1 - tanh(s / c)^2. */
function throughCap(gradient: Tensor, t: Tensor): Tensor {
  return mul(gradient, sub(1, mul(t, t)))
}

export interface AttentionOptions {
  /** Default 1/sqrt(d). */
  readonly scale?: number
  /** Scores are bent into (-softcap, softcap) before the mask: softcap tanh(s / softcap).   Gemma Team 2024, section 2. */
  readonly softcap?: number
  /**
   * Added to the scores: [..., queries, keys], broadcast over batch and heads; 0 where a query may look, very negative where it may not. An axis of heads other than 1
   * (biases of positions) needs as many key heads as heads.
   */
  readonly mask?: Tensor
}

/**
 * Attention with grouped heads.  q [batch, heads, queries, d], k and v [batch, kvHeads, keys, d] -> [batch, heads, queries, d].
 * The heads of one group are folded into rows, so that a group costs one product and the sum over the group falls out of it.
 * Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 (grouped queries).
 */
export function scaledDotProductAttention(q: Tensor, k: Tensor, v: Tensor, { scale, softcap, mask }: AttentionOptions = {}): Tensor {
  const [heads, kvHeads, d] = [
    fixedDim(q.shape, 1, 'attention heads'),
    fixedDim(k.shape, 1, 'attention kv heads'),
    fixedDim(q.shape, 3, 'attention head size'),
  ]
  const [batch, queries] = [dimAt(q.shape, 0), dimAt(q.shape, 2)]
  const folded = reshape(q, [batch, kvHeads, multiplyDims(heads / kvHeads, queries), d])
  const [o] = apply(mask === undefined ? [folded, k, v] : [folded, k, v, mask], {
    scale: scale ?? 1 / Math.sqrt(d),
    ...(softcap === undefined ? {} : { softcap }),
  })
  if (o === undefined) throw new Error('internal: no output')
  return reshape(o, q.shape)
}

/** Adds a mask [..., queries, keys] to scores [batch, kvHeads, group*queries, keys]. */
function masked(scores: Tensor, mask: Tensor, q: Tensor): Tensor {
  const queries = dimAt(mask.shape, -2)
  const rows = dimAt(q.shape, 2)
  if (String(rows) === String(queries)) return add(scores, mask)
  const [batch, kvHeads, keys] = [dimAt(scores.shape, 0), fixedDim(scores.shape, 1, 'kv heads'), dimAt(scores.shape, 3)]
  const group = groupSize(rows, queries)
  const unfolded = reshape(scores, [batch, kvHeads, group, queries, keys])
  // A mask of rank 4 has the heads' axis as size 1: the group's axis goes beside it.
  const lifted = mask.shape.length === 4 ? reshape(mask, [dimAt(mask.shape, 0), 1, 1, queries, keys]) : mask
  return reshape(add(unfolded, lifted), scores.shape)
}

function groupSize(rows: ReturnType<typeof dimAt>, queries: ReturnType<typeof dimAt>): number {
  const group = divideDims(rows, queries)
  if (typeof group !== 'number') throw new Error('internal: rows are whole groups of queries')
  return group
}
