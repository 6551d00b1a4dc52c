import { ModalignError } from '../../errors.ts'
import { at, indexWithin, stridesOf } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { fixedDim, scalar, type Tensor } from '../tensor.ts'
import { expand } from './expand.ts'
import { scatterNd } from './scatter-nd.ts'

const apply = defineOperator<undefined>({
  name: 'GatherND',
  shape(inputs) {
    const [data, indices] = [required(inputs, 0, 'GatherND'), required(inputs, 1, 'GatherND')]
    const depth = fixedDim(indices.shape, -1, 'GatherND indices')
    if (indices.dtype !== 'int64' || depth > data.shape.length) {
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'GatherND',
        got: `${indices.dtype} indices of ${depth} numbers`,
        expected: `int64, at most ${data.shape.length} numbers`,
      })
    }
    return [{ dtype: data.dtype, shape: [...indices.shape.slice(0, -1), ...data.shape.slice(depth)] }]
  },
  gradient({ inputs: [data, indices], upstream: [g], needs }) {
    if (!needs[0] || data === undefined || indices === undefined || g === undefined) return []
    return [scatterNd(expand(scalar(0, data.dtype), data.shape), indices, g, 'add'), undefined]
  },
  evaluate([data, indices]) {
    if (data === undefined || indices === undefined) throw new Error('internal: an operand is missing')
    const depth = at(indices.dims, indices.dims.length - 1)
    const inner = data.dims.slice(depth).reduce((product, dim) => product * dim, 1)
    const starts = offsetsOf(indices.data, depth, data.dims)
    const result = new Float64Array(starts.length * inner)
    for (const [row, start] of starts.entries()) result.set(data.data.subarray(start, start + inner), row * inner)
    return [{ dtype: data.dtype, dims: [...indices.dims.slice(0, -1), ...data.dims.slice(depth)], data: result }]
  },
})

/** Slices of `data` by index tuples.  data [A, B, C], indices int64 [N, 2] -> [N, C]. */
export function gatherNd(data: Tensor, indices: Tensor): Tensor {
  return only(apply([data, indices], undefined))
}

/** Where each index tuple points: the offset of the slice in row-major data. */
export function offsetsOf(indices: Float64Array, depth: number, dims: readonly number[]): readonly number[] {
  const strides = stridesOf(dims)
  return Array.from({ length: indices.length / depth }, (_, row) => {
    let offset = 0
    for (let level = 0; level < depth; level++) {
      offset += indexWithin(at(indices, row * depth + level), at(dims, level)) * at(strides, level)
    }
    return offset
  })
}
