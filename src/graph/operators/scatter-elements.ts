import { ModalignError } from '../../errors.ts'
import { formatShape, shapesEqual } from '../dim.ts'
import { at, forEachOffset, stridesOf } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { normaliseAxis, scalar, type Tensor } from '../tensor.ts'
import { expand } from './expand.ts'
import { gatherElements } from './gather-elements.ts'

type Reduction = 'none' | 'add'

const apply = defineOperator<{ readonly axis: number; readonly reduction: Reduction }>({
  name: 'ScatterElements',
  shape(inputs) {
    const [data, indices, updates] = [
      required(inputs, 0, 'ScatterElements'),
      required(inputs, 1, 'ScatterElements'),
      required(inputs, 2, 'ScatterElements'),
    ]
    if (
      indices.dtype !== 'int64' ||
      updates.dtype !== data.dtype ||
      !shapesEqual(indices.shape, updates.shape) ||
      indices.shape.length !== data.shape.length
    ) {
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'ScatterElements',
        got: `updates ${updates.dtype} ${formatShape(updates.shape)}`,
        expected: `${data.dtype} ${formatShape(indices.shape)} at int64 indices`,
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
    const [length, strides] = [at(data.dims, axis), stridesOf(data.dims)]
    const others = strides.map((stride, a) => (a === axis ? 0 : stride))
    const result = Float64Array.from(data.data)
    forEachOffset(indices.dims, [others], (position, offsets) => {
      const index = at(indices.data, position)
      const target = at(offsets, 0) + (index < 0 ? index + length : index) * at(strides, axis)
      result[target] = at(updates.data, position) + (reduction === 'add' ? at(result, target) : 0)
    })
    return [{ dtype: data.dtype, dims: data.dims, data: result }]
  },
  onnx: ({ axis, reduction }) => ({ attributes: { axis: { int: axis }, reduction: { string: reduction } } }),
})

/** `data` with single elements replaced (`add`: increased) along one axis. Without `add` an index may occur once only. */
export function scatterElements(data: Tensor, indices: Tensor, updates: Tensor, axis: number, reduction: Reduction = 'none'): Tensor {
  return only(apply([data, indices, updates], { axis: normaliseAxis(axis, data.shape.length, 'ScatterElements'), reduction }))
}
