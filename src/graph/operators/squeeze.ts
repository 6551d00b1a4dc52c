import { ModalignError } from '../../errors.ts'
import { formatShape } from '../dim.ts'
import { defineOperator, only, required } from '../operator.ts'
import { dimAt, normaliseAxis, type Tensor } from '../tensor.ts'
import { unsqueeze } from './unsqueeze.ts'

const apply = defineOperator<{ readonly axes: readonly number[] }>({
  name: 'Squeeze',
  shape(inputs, { axes }) {
    const x = required(inputs, 0, 'Squeeze')
    if (new Set(axes).size < axes.length || axes.some((axis) => dimAt(x.shape, axis) !== 1)) {
      throw new ModalignError({
        code: 'GRAPH_AXIS',
        field: 'Squeeze',
        got: `axes [${axes.join(', ')}] of ${formatShape(x.shape)}`,
        expected: 'distinct axes of size 1',
      })
    }
    return [{ dtype: x.dtype, shape: x.shape.filter((_, axis) => !axes.includes(axis)) }]
  },
  gradient: ({ upstream: [g], needs, attributes: { axes } }) => [needs[0] && g ? unsqueeze(g, axes) : undefined],
  evaluate([x], { axes }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    return [{ dtype: x.dtype, dims: x.dims.filter((_, axis) => !axes.includes(axis)), data: x.data }]
  },
  onnx: ({ axes }) => ({ operands: [axes] }),
})

/** Without the named axes, which must have size 1. */
export function squeeze(x: Tensor, axes: readonly number[]): Tensor {
  const normalised = axes.map((axis) => normaliseAxis(axis, x.shape.length, 'Squeeze')).sort((a, b) => a - b)
  return normalised.length === 0 ? x : only(apply([x], { axes: normalised }))
}
