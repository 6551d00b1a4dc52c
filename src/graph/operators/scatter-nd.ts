import { ModalignError } from '../../errors.ts'
import { formatShape, shapesEqual } from '../dim.ts'
import { at } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { fixedDim, scalar, type Tensor } from '../tensor.ts'
import { expand } from './expand.ts'
import { gatherNd, offsetsOf } from './gather-nd.ts'

type Reduction = 'none' | 'add'

const apply = defineOperator<{ readonly reduction: Reduction }>({
  name: 'ScatterND',
  shape(inputs) {
    const [data, indices, updates] = [required(inputs, 0, 'ScatterND'), required(inputs, 1, 'ScatterND'), required(inputs, 2, 'ScatterND')]
    const depth = fixedDim(indices.shape, -1, 'ScatterND indices')
    const expected = [...indices.shape.slice(0, -1), ...data.shape.slice(depth)]
    if (indices.dtype !== 'int64' || depth > data.shape.length || updates.dtype !== data.dtype || !shapesEqual(updates.shape, expected)) {
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'ScatterND',
        got: `updates ${updates.dtype} ${formatShape(updates.shape)}`,
        expected: `${data.dtype} ${formatShape(expected)} at int64 indices`,
      })
    }
    return [data]
  },
  gradient({ inputs: [, indices, updates], upstream: [g], needs, attributes: { reduction } }) {
    if (indices === undefined || updates === undefined || g === undefined) return []
    const overwritten = (): Tensor => scatterNd(g, indices, expand(scalar(0, g.dtype), updates.shape))
    return [needs[0] ? (reduction === 'add' ? g : overwritten()) : undefined, undefined, needs[2] ? gatherNd(g, indices) : undefined]
  },
  evaluate([data, indices, updates], { reduction }) {
    if (data === undefined || indices === undefined || updates === undefined) throw new Error('internal: an operand is missing')
    const depth = at(indices.dims, indices.dims.length - 1)
    const inner = data.dims.slice(depth).reduce((product, dim) => product * dim, 1)
    const result = Float64Array.from(data.data)
    for (const [row, start] of offsetsOf(indices.data, depth, data.dims).entries()) {
      for (let i = 0; i < inner; i++)
        result[start + i] = at(updates.data, row * inner + i) + (reduction === 'add' ? at(result, start + i) : 0)
    }
    return [{ dtype: data.dtype, dims: data.dims, data: result }]
  },
  onnx: ({ reduction }) => ({ attributes: { reduction: { string: reduction } } }),
})

/**
 * `data` with slices replaced by `updates` (`add`: added to) at index tuples.  data [A, B, C], indices int64 [N, 2], updates [N, C] -> [A, B, C].
 * Without `add` an index may occur once only: which of two writes wins is not defined.
 */
export function scatterNd(data: Tensor, indices: Tensor, updates: Tensor, reduction: Reduction = 'none'): Tensor {
  const y = only(apply([data, indices, updates], { reduction }))
  // Nothing to write to: ONNX Runtime's WebGPU provider (1.30) brings the process down here.
  return data.shape.includes(0) ? data : y
}
