import { ModalignError } from '../../errors.ts'
import type { Dim } from '../dim.ts'
import { defineOperator, only, required } from '../operator.ts'
import { normaliseAxis, type Tensor } from '../tensor.ts'
import { squeeze } from './squeeze.ts'

const apply = defineOperator<{ readonly axes: readonly number[] }>({
  name: 'Unsqueeze',
  shape(inputs, { axes }) {
    const x = required(inputs, 0, 'Unsqueeze')
    if (new Set(axes).size < axes.length)
      throw new ModalignError({ code: 'GRAPH_AXIS', field: 'Unsqueeze', got: `axes [${axes.join(', ')}]`, expected: 'distinct axes' })
    return [{ dtype: x.dtype, shape: inserted<Dim>(x.shape, axes) }]
  },
  gradient: ({ upstream: [g], needs, attributes: { axes } }) => [needs[0] && g ? squeeze(g, axes) : undefined],
  evaluate([x], { axes }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    return [{ dtype: x.dtype, dims: inserted(x.dims, axes), data: x.data }]
  },
  onnx: ({ axes }) => ({ operands: [axes] }),
})

/** With new axes of size 1 at the named places of the result. */
export function unsqueeze(x: Tensor, axes: readonly number[]): Tensor {
  const normalised = axes.map((axis) => normaliseAxis(axis, x.shape.length + axes.length, 'Unsqueeze')).sort((a, b) => a - b)
  return normalised.length === 0 ? x : only(apply([x], { axes: normalised }))
}

function inserted<T>(sizes: readonly T[], axes: readonly number[]): readonly (T | 1)[] {
  const remaining = [...sizes]
  return Array.from({ length: sizes.length + axes.length }, (_, axis) => (axes.includes(axis) ? 1 : (remaining.shift() ?? 1)))
}
