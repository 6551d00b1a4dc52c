import { ModalignError } from '../../errors.ts'
import { formatShape, shapesEqual } from '../dim.ts'
import { at } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { normaliseAxis, scalar, type Tensor } from '../tensor.ts'
import { expand } from './expand.ts'
import { elementOffsets, gatherElements, requireElementIndices } from './gather-elements.ts'

type Reduction = 'none' | 'add'

const apply = defineOperator<{ readonly axis: number; readonly reduction: Reduction }>({
  name: 'ScatterElements',
  shape(inputs, { axis }) {
    const [data, indices, updates] = [
      required(inputs, 0, 'ScatterElements'),
      required(inputs, 1, 'ScatterElements'),
      required(inputs, 2, 'ScatterElements'),
    ]
    requireElementIndices(data.shape, indices, axis, 'ScatterElements')
    if (updates.dtype !== data.dtype || !shapesEqual(updates.shape, indices.shape)) {
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'ScatterElements',
        got: `updates ${updates.dtype} ${formatShape(updates.shape)}`,
        expected: `${data.dtype} ${formatShape(indices.shape)}`,
      })
    }
    return [data]
  },
  gradient({ inputs: [, indices, updates], upstream: [g], needs, attributes: { axis, reduction } }) {
    if (indices === undefined || updates === undefined || g === undefined) return []
    const overwritten = (): Tensor => scatterElements(g, indices, expand(scalar(0, g.dtype), updates.shape), axis)
    return [
      needs[0] ? (reduction === 'add' ? g : overwritten()) : undefined,
      undefined,
      needs[2] ? gatherElements(g, indices, axis) : undefined,
    ]
  },
  evaluate([data, indices, updates], { axis, reduction }) {
    if (data === undefined || indices === undefined || updates === undefined) throw new Error('internal: an operand is missing')
    const result = Float64Array.from(data.data)
    for (const [position, offset] of elementOffsets(data.dims, indices, axis).entries())
      result[offset] = at(updates.data, position) + (reduction === 'add' ? at(result, offset) : 0)
    return [{ dtype: data.dtype, dims: data.dims, data: result }]
  },
  onnx: ({ axis, reduction }) => ({ attributes: { axis: { int: axis }, reduction: { string: reduction } } }),
})

/**
 * `data` with single elements replaced (`add`: increased) along one axis (torch.scatter, scatter_add): Y[r, indices[r, k]] = updates[r, k] for axis 1.
 * Without `add` an element may be written once only: which of two writes wins is not defined.
 */
export function scatterElements(data: Tensor, indices: Tensor, updates: Tensor, axis: number, reduction: Reduction = 'none'): Tensor {
  return only(apply([data, indices, updates], { axis: normaliseAxis(axis, data.shape.length, 'ScatterElements'), reduction }))
}
