import { ModalignError } from '../../errors.ts'
import { dimsEqual, formatShape, type Shape } from '../dim.ts'
import { at, forEachOffset, indexWithin, stridesOf } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { normaliseAxis, scalar, type Tensor } from '../tensor.ts'
import { expand } from './expand.ts'
import { scatterElements } from './scatter-elements.ts'

const apply = defineOperator<{ readonly axis: number }>({
  name: 'GatherElements',
  shape(inputs, { axis }) {
    const [data, indices] = [required(inputs, 0, 'GatherElements'), required(inputs, 1, 'GatherElements')]
    requireElementIndices(data.shape, indices, axis, 'GatherElements')
    return [{ dtype: data.dtype, shape: indices.shape }]
  },
  gradient({ inputs: [data, indices], upstream: [g], needs, attributes: { axis } }) {
    if (!needs[0] || data === undefined || indices === undefined || g === undefined) return []
    return [scatterElements(expand(scalar(0, data.dtype), data.shape), indices, g, axis, 'add'), undefined]
  },
  evaluate([data, indices], { axis }) {
    if (data === undefined || indices === undefined) throw new Error('internal: an operand is missing')
    const result = new Float64Array(indices.data.length)
    for (const [position, offset] of elementOffsets(data.dims, indices, axis).entries()) result[position] = at(data.data, offset)
    return [{ dtype: data.dtype, dims: indices.dims, data: result }]
  },
  onnx: ({ axis }) => ({ attributes: { axis: { int: axis } } }),
})

/**
 * One element of `data` for each index, along one axis (torch.gather): data [R, V], indices [R, K] -> Y[r, k] = data[r, indices[r, k]] for axis 1.
 * dX adds g up where it came from.
 */
export function gatherElements(data: Tensor, indices: Tensor, axis: number): Tensor {
  return only(apply([data, indices], { axis: normaliseAxis(axis, data.shape.length, 'GatherElements') }))
}

/** @throws GRAPH_DTYPE, GRAPH_SHAPE unless indices are integers that have the rank of the data and reach no further along the other axes. */
export function requireElementIndices(data: Shape, indices: Tensor, axis: number, operator: string): void {
  if (indices.dtype !== 'int64' && indices.dtype !== 'int32')
    throw new ModalignError({ code: 'GRAPH_DTYPE', field: operator, got: indices.dtype, expected: 'int64 or int32 indices' })
  const fits =
    indices.shape.length === data.length &&
    indices.shape.every((dim, a) => {
      const whole = data[a] ?? 0
      return a === axis || dimsEqual(dim, whole) || (typeof dim === 'number' && typeof whole === 'number' && dim < whole)
    })
  if (!fits) {
    throw new ModalignError({
      code: 'GRAPH_SHAPE',
      field: operator,
      got: `indices ${formatShape(indices.shape)}`,
      expected: `at most ${formatShape(data)} but for axis ${axis}`,
    })
  }
}

/** Which element of row-major data each index points at. */
export function elementOffsets(
  dims: readonly number[],
  indices: { readonly dims: readonly number[]; readonly data: Float64Array },
  axis: number,
): readonly number[] {
  const strides = stridesOf(dims)
  const offsets: number[] = []
  forEachOffset(indices.dims, [strides.map((stride, a) => (a === axis ? 0 : stride))], (position, [base = 0]) => {
    offsets.push(base + indexWithin(at(indices.data, position), at(dims, axis)) * at(strides, axis))
  })
  return offsets
}
