import { defineComposite, only, required } from '../operator.ts'
import { add } from '../operators/add.ts'
import { asRows, matmul } from '../operators/matmul.ts'
import { swapLastAxes } from '../operators/transpose.ts'
import { type ParameterScope, uniform } from '../parameters.ts'
import { fixedDim, type Tensor } from '../tensor.ts'
import { blocksOf, matmulBlocks, matmulWeight } from './block-quantised.ts'

/**
 * Its own gradient, because the weight stays as checkpoints keep it, [out, in]: forward multiplies by its transpose, backward by the same array as it lies,
 * and no provider is tempted to fold a transposed second copy of it.
 */
const apply = defineComposite<undefined>({
  name: 'MatMulTransposed',
  expand: (inputs) => [matmul(required(inputs, 0, 'MatMulTransposed'), swapLastAxes(required(inputs, 1, 'MatMulTransposed')))],
  gradient({ inputs: [x, w], upstream: [g], needs }) {
    if (x === undefined || w === undefined || g === undefined) return []
    return [needs[0] ? matmulWeight(g, w) : undefined, needs[1] ? matmul(swapLastAxes(asRows(g)), asRows(x)) : undefined]
  },
})

/** Y = X W^T.  X [..., in], W [out, in] -> Y [..., out]: what a linear layer's weight means in every checkpoint. W may be kept in blocks (`blockQuantised`). */
export function matmulTransposed(x: Tensor, weight: Tensor): Tensor {
  const blocks = blocksOf(weight)
  return blocks === undefined ? only(apply([x, weight], undefined)) : matmulBlocks(x, blocks)
}

/**
 * A trainable linear layer: Y = X W^T + b.  X [..., in] -> Y [..., out].
 * Parameters `weight` [out, in] and `bias` [out], both drawn from U(-gain/sqrt(in), gain/sqrt(in)); gain 1 (the default) is how torch.nn.Linear
 * draws them.
 *
 * @example
 * const y = linear(x, scope.child('0'), 576)
 */
export function linear(
  x: Tensor,
  scope: ParameterScope,
  outputWidth: number,
  { bias = true, gain = 1 }: { readonly bias?: boolean; readonly gain?: number } = {},
): Tensor {
  const inputWidth = fixedDim(x.shape, -1, `${scope.path} input`)
  const bound = gain / Math.sqrt(inputWidth)
  const product = matmulTransposed(x, scope.parameter('weight', [outputWidth, inputWidth], uniform(bound)))
  return bias ? add(product, scope.parameter('bias', [outputWidth], uniform(bound))) : product
}
