import { ModalignError } from '../../errors.ts'
import { sumTo } from '../broadcast.ts'
import { formatShape, shapesEqual } from '../dim.ts'
import { defineComposite, only, required } from '../operator.ts'
import { add } from '../operators/add.ts'
import { mul } from '../operators/mul.ts'
import { reciprocal } from '../operators/reciprocal.ts'
import { reduceMean } from '../operators/reduce-mean.ts'
import { sqrt } from '../operators/sqrt.ts'
import { sub } from '../operators/sub.ts'
import type { Tensor } from '../tensor.ts'

export interface RmsAttributes {
  readonly epsilon: number
}

/**
 * One output, Y [..., C]. The gradient makes the inverse root mean square [..., 1] again from X: ONNX Runtime's fused operator offers it as a second output, but its
 * WebGPU kernel (1.30) writes the mean there. Where nothing is fused, forward and backward share one computation of it.
 */
const apply = defineComposite<RmsAttributes>({
  name: 'RMSNormalization',
  expand(inputs, { epsilon }) {
    const [x, weight] = [required(inputs, 0, 'RMSNormalization'), required(inputs, 1, 'RMSNormalization')]
    if (!shapesEqual(weight.shape, x.shape.slice(-1))) {
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'RMSNormalization',
        got: `weight ${formatShape(weight.shape)}`,
        expected: formatShape(x.shape.slice(-1)),
      })
    }
    return [mul(mul(x, inverseOf(x, epsilon)), weight)]
  },
  gradient({ inputs: [x, weight], upstream: [g], needs, attributes: { epsilon } }) {
    if (x === undefined || weight === undefined || g === undefined) return []
    const inverse = inverseOf(x, epsilon)
    const h = mul(g, weight)
    // dX = r (h - x r^2 mean(h x)), the row factor gathered first, so that only whole-row products touch all of X.
    const along = mul(reduceMean(mul(h, x), [-1], { keepdims: true }), mul(inverse, inverse))
    return [needs[0] ? mul(inverse, sub(h, mul(x, along))) : undefined, needs[1] ? sumTo(mul(g, mul(x, inverse)), weight.shape) : undefined]
  },
})

/** Y = X / sqrt(mean(X^2, last axis) + eps) * W.  X [..., C], W [C] -> Y [..., C].   Zhang & Sennrich 2019, eq. 4. */
export function rmsNormalization(x: Tensor, weight: Tensor, { epsilon = 1e-6 }: { readonly epsilon?: number } = {}): Tensor {
  return only(apply([x, weight], { epsilon }))
}

/** 1 / sqrt(mean(X^2, last axis) + eps): [..., 1]. */
function inverseOf(x: Tensor, epsilon: number): Tensor {
  return reciprocal(sqrt(add(reduceMean(mul(x, x), [-1], { keepdims: true }), epsilon)))
}
