import { ModalignError } from '../../errors.ts'
import { at, forEachOffset, stridesOf } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { dimAt, type Tensor } from '../tensor.ts'

const apply = defineOperator<{ readonly perm: readonly number[] }>({
  name: 'Transpose',
  shape(inputs, { perm }) {
    const x = required(inputs, 0, 'Transpose')
    if (perm.length !== x.shape.length || [...perm].sort((a, b) => a - b).some((axis, position) => axis !== position)) {
      throw new ModalignError({
        code: 'GRAPH_AXIS',
        field: 'Transpose',
        got: `permutation [${perm.join(', ')}]`,
        expected: `each axis of rank ${x.shape.length} once`,
      })
    }
    return [{ dtype: x.dtype, shape: perm.map((axis) => dimAt(x.shape, axis)) }]
  },
  gradient: ({ upstream: [g], needs, attributes: { perm } }) => [
    needs[0] && g
      ? transpose(
          g,
          perm.map((_, axis) => perm.indexOf(axis)),
        )
      : undefined,
  ],
  evaluate([x], { perm }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const strides = stridesOf(x.dims)
    const dims = perm.map((axis) => at(x.dims, axis))
    const data = new Float64Array(x.data.length)
    forEachOffset(dims, [perm.map((axis) => at(strides, axis))], (position, offsets) => {
      data[position] = at(x.data, at(offsets, 0))
    })
    return [{ dtype: x.dtype, dims, data }]
  },
  onnx: ({ perm }) => ({ attributes: { perm: { ints: perm } } }),
})

/** Axis `i` of the result is axis `perm[i]` of `x`. */
export function transpose(x: Tensor, perm: readonly number[]): Tensor {
  return only(apply([x], { perm }))
}

/** [..., M, N] -> [..., N, M]. */
export function swapLastAxes(x: Tensor): Tensor {
  const rank = x.shape.length
  return transpose(
    x,
    Array.from({ length: rank }, (_, axis) => (axis === rank - 1 ? rank - 2 : axis === rank - 2 ? rank - 1 : axis)),
  )
}
