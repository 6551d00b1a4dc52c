import { ModalignError } from '../../errors.ts'
import { formatShape } from '../dim.ts'
import { at, forEachOffset, stridesOf } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { normaliseAxis, scalar, type Tensor } from '../tensor.ts'
import { expand } from './expand.ts'
import { scatterElements } from './scatter-elements.ts'

const apply = defineOperator<{ readonly axis: number }>({
  name: 'GatherElements',
  shape(inputs) {
    const [data, indices] = [required(inputs, 0, 'GatherElements'), required(inputs, 1, 'GatherElements')]
    if (indices.dtype !== 'int64' || indices.shape.length !== data.shape.length) {
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'GatherElements',
        got: `${indices.dtype} ${formatShape(indices.shape)}`,
        expected: `int64 of rank ${data.shape.length}`,
      })
    }
    return [{ dtype: data.dtype, shape: indices.shape }]
  },
  gradient({ inputs: [data, indices], upstream: [g], needs, attributes: { axis } }) {
    if (!needs[0] || data === undefined || indices === undefined || g === undefined) return []
    return [scatterElements(expand(scalar(0, data.dtype), data.shape), indices, g, axis, 'add'), undefined]
  },
  evaluate([data, indices], { axis }) {
    if (data === undefined || indices === undefined) throw new Error('internal: an operand is missing')
    const [length, strides] = [at(data.dims, axis), stridesOf(data.dims)]
    const others = strides.map((stride, a) => (a === axis ? 0 : stride))
    const result = new Float64Array(indices.data.length)
    forEachOffset(indices.dims, [others], (position, offsets) => {
      const index = at(indices.data, position)
      result[position] = at(data.data, at(offsets, 0) + (index < 0 ? index + length : index) * at(strides, axis))
    })
    return [{ dtype: data.dtype, dims: indices.dims, data: result }]
  },
  onnx: ({ axis }) => ({ attributes: { axis: { int: axis } } }),
})

/** One element of `data` for each index, along one axis: data [R, V], indices int64 [R, K] -> Y[r, k] = data[r, indices[r, k]] for axis 1. */
export function gatherElements(data: Tensor, indices: Tensor, axis: number): Tensor {
  return only(apply([data, indices], { axis: normaliseAxis(axis, data.shape.length, 'GatherElements') }))
}
