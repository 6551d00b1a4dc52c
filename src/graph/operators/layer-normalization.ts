import { ModalignError } from '../../errors.ts'
import { sumTo } from '../broadcast.ts'
import { formatShape, shapesEqual } from '../dim.ts'
import { at, evaluateAlongAxis } from '../indexing.ts'
import { defineOperator, required } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { mul } from './mul.ts'
import { reduceMean } from './reduce-mean.ts'
import { sub } from './sub.ts'

/** Outputs: Y [..., C], mean [..., 1], inverse standard deviation [..., 1]: the last two are what the gradient needs again. */
const apply = defineOperator<{ readonly epsilon: number }>({
  name: 'LayerNormalization',
  shape(inputs) {
    const [x, weight, bias] = [required(inputs, 0, 'LayerNormalization'), required(inputs, 1, 'LayerNormalization'), inputs[2]]
    const channels = x.shape.slice(-1)
    if (!shapesEqual(weight.shape, channels) || (bias !== undefined && !shapesEqual(bias.shape, channels))) {
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'LayerNormalization',
        got: `weight ${formatShape(weight.shape)}`,
        expected: formatShape(channels),
      })
    }
    const statistics = { dtype: x.dtype, shape: [...x.shape.slice(0, -1), 1] }
    return [x, statistics, statistics]
  },
  gradient({ inputs: [x, weight, bias], outputs: [, mean, inverse], upstream: [g], needs }) {
    if (x === undefined || weight === undefined || mean === undefined || inverse === undefined || g === undefined) return []
    const normal = mul(sub(x, mean), inverse)
    const h = mul(g, weight)
    const centred = sub(sub(h, reduceMean(h, [-1], { keepdims: true })), mul(normal, reduceMean(mul(h, normal), [-1], { keepdims: true })))
    return [
      needs[0] ? mul(inverse, centred) : undefined,
      needs[1] ? sumTo(mul(g, normal), weight.shape) : undefined,
      needs[2] && bias ? sumTo(g, bias.shape) : undefined,
    ]
  },
  evaluate([x, weight, bias], { epsilon }) {
    if (x === undefined || weight === undefined) throw new Error('internal: an operand is missing')
    const means: number[] = []
    const inverses: number[] = []
    const y = evaluateAlongAxis(x, x.dims.length - 1, (row) => {
      const mean = row.reduce((sum, v) => sum + v, 0) / row.length
      const inverse = 1 / Math.sqrt(row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / row.length + epsilon)
      means.push(mean)
      inverses.push(inverse)
      return row.map((v, channel) => (v - mean) * inverse * at(weight.data, channel) + (bias === undefined ? 0 : at(bias.data, channel)))
    })
    const dims = [...x.dims.slice(0, -1), 1]
    return [y, { dtype: x.dtype, dims, data: Float64Array.from(means) }, { dtype: x.dtype, dims, data: Float64Array.from(inverses) }]
  },
  onnx: ({ epsilon }) => ({ attributes: { axis: { int: -1 }, epsilon: { float: epsilon } } }),
})

/** Y = (X - mean) / sqrt(var + eps) * W + B over the last axis.  X [..., C], W [C], B [C].   Ba, Kiros & Hinton 2016. */
export function layerNormalization(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  { epsilon = 1e-5 }: { readonly epsilon?: number } = {},
): Tensor {
  const [y] = apply(bias === undefined ? [x, weight] : [x, weight, bias], { epsilon })
  if (y === undefined) throw new Error('internal: no output')
  return y
}
