import { ModalignError } from '../../errors.ts'
import { defineComposite, required } from '../operator.ts'
import { add } from '../operators/add.ts'
import { concat } from '../operators/concat.ts'
import { exp } from '../operators/exp.ts'
import { expand } from '../operators/expand.ts'
import { gatherElements } from '../operators/gather-elements.ts'
import { logSoftmax } from '../operators/log-softmax.ts'
import { matmul } from '../operators/matmul.ts'
import { mul } from '../operators/mul.ts'
import { neg } from '../operators/neg.ts'
import { reduceSum } from '../operators/reduce-sum.ts'
import { scatterNd } from '../operators/scatter-nd.ts'
import { split } from '../operators/split.ts'
import { squeeze } from '../operators/squeeze.ts'
import { sub } from '../operators/sub.ts'
import { tanh } from '../operators/tanh.ts'
import { swapLastAxes } from '../operators/transpose.ts'
import { unsqueeze } from '../operators/unsqueeze.ts'
import { fixedDim, scalar, type Tensor } from '../tensor.ts'
import { gatherRows, matmulWeight } from './block-quantised.ts'
import { matmulTransposed } from './linear.ts'

/** Negative log-likelihood of one label per row.  logits [rows, classes], labels int64 [rows] -> [rows]. */
export function tokenCrossEntropy(logits: Tensor, labels: Tensor): Tensor {
  return neg(squeeze(gatherElements(logSoftmax(logits), unsqueeze(labels, [1]), 1), [1]))
}

/**
 * Outputs: the weighted sum of the rows' losses, the rows' losses, and the sum's gradients with respect to hidden states and weight.
 * The gradients are made in the same pass as the loss, chunk by chunk, so that no two chunks' logits need to be alive at once. Whoever does not ask for a gradient
 * does not pay for it. With p = softmax(h W^T):  dh = r (p W - W[label]),  dW = p^T (r h) - onehot(label)^T (r h), r the row's weight. With a soft cap c on the
 * logits, p and the label's row are multiplied by the cap's slope, 1 - tanh(h W^T / c)^2.
 */
const apply = defineComposite<{ readonly softcap?: number }>({
  name: 'LinearCrossEntropy',
  expand(inputs, { softcap }) {
    const name = 'LinearCrossEntropy'
    const [hidden, weight, labels, rowWeights] = [
      required(inputs, 0, name),
      required(inputs, 1, name),
      required(inputs, 2, name),
      required(inputs, 3, name),
    ]
    const pieces = zip(chunksOf(hidden), chunksOf(labels), chunksOf(rowWeights)).map(([h, l, r]) => {
      const t = softcap === undefined ? undefined : tanh(mul(matmulTransposed(h, weight), 1 / softcap))
      const logits = t === undefined || softcap === undefined ? matmulTransposed(h, weight) : mul(t, softcap)
      const logProbabilities = logSoftmax(logits)
      const losses = neg(squeeze(gatherElements(logProbabilities, unsqueeze(l, [1]), 1), [1]))
      const perRow = unsqueeze(r, [1])
      const weighted = mul(h, perRow)
      // The cap's slope scales every class's part, the label's among them.
      const slope = t === undefined ? undefined : sub(1, mul(t, t))
      const p = slope === undefined ? exp(logProbabilities) : mul(exp(logProbabilities), slope)
      const atLabel = (x: Tensor): Tensor => (slope === undefined ? x : mul(x, gatherElements(slope, unsqueeze(l, [1]), 1)))
      return {
        losses: unsqueeze(losses, [0]),
        sum: reduceSum(mul(losses, r), [0]),
        dHidden: unsqueeze(mul(sub(matmulWeight(p, weight), atLabel(gatherRows(weight, l))), perRow), [0]),
        dWeight: sub(
          matmul(swapLastAxes(p), weighted),
          scatterNd(expand(scalar(0), weight.shape), unsqueeze(l, [1]), atLabel(weighted), 'add'),
        ),
      }
    })
    return [
      pieces.map(({ sum }) => sum).reduce(add),
      concat(
        pieces.map(({ losses }) => losses),
        0,
      ),
      concat(
        pieces.map(({ dHidden }) => dHidden),
        0,
      ),
      pieces.map(({ dWeight }) => dWeight).reduce(add),
    ]
  },
  gradient({ outputs: [, , dHidden, dWeight], upstream: [g, other], needs }) {
    if (other !== undefined)
      throw new ModalignError({
        code: 'GRAPH_NO_GRADIENT',
        field: 'LinearCrossEntropy',
        got: 'a gradient for the losses of single rows',
        expected: 'a gradient for their weighted sum',
      })
    if (g === undefined || dHidden === undefined || dWeight === undefined) return []
    return [needs[0] ? mul(g, dHidden) : undefined, needs[1] ? mul(g, dWeight) : undefined]
  },
})

export interface LinearCrossEntropy {
  /** Sum over rows of weight x loss: a scalar. */
  readonly sum: Tensor
  /** Each row's loss [chunks, rows]: a metric, not differentiable. */
  readonly losses: Tensor
}

/**
 * The language-model head and its loss in one: -sum_i r_i log softmax(h_i W^T)[label_i].
 * hidden [chunks, rows, C], weight [V, C], labels int64 [chunks, rows], rowWeights float32 [chunks, rows] (0: padding). `chunks` is a number; memory holds the logits
 * of one chunk. With `softcap` c the logits are c tanh(h W^T / c).
 */
export function linearCrossEntropy(
  hidden: Tensor,
  weight: Tensor,
  labels: Tensor,
  rowWeights: Tensor,
  { softcap }: { readonly softcap?: number | undefined } = {},
): LinearCrossEntropy {
  const [sum, losses] = apply([hidden, weight, labels, rowWeights], softcap === undefined ? {} : { softcap })
  if (sum === undefined || losses === undefined) throw new Error('internal: no output')
  return { sum, losses }
}

function chunksOf(x: Tensor): readonly Tensor[] {
  const chunks = fixedDim(x.shape, 0, 'LinearCrossEntropy chunks')
  return split(
    x,
    Array.from({ length: chunks }, () => 1),
    0,
  ).map((piece) => squeeze(piece, [0]))
}

function zip<A, B, C>(a: readonly A[], b: readonly B[], c: readonly C[]): readonly (readonly [A, B, C])[] {
  return a.map((x, index) => {
    const [y, z] = [b[index], c[index]]
    if (y === undefined || z === undefined) throw new Error('internal: lists of unequal length')
    return [x, y, z]
  })
}
