import { ModalignError } from '../../errors.ts'
import { addDims, type Dim, type Shape } from '../dim.ts'
import { at, forEachOffset, stridesOf } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import type { Tensor } from '../tensor.ts'
import { slice } from './slice.ts'

interface Attributes {
  readonly before: Shape
  readonly after: Shape
}

const apply = defineOperator<Attributes>({
  name: 'Pad',
  shape(inputs, { before, after }) {
    const x = required(inputs, 0, 'Pad')
    const negative = [...before, ...after].some((count) => typeof count === 'number' && count < 0)
    if (before.length !== x.shape.length || after.length !== x.shape.length || negative) {
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'Pad',
        got: `[${before.join(', ')}] and [${after.join(', ')}]`,
        expected: `counts of at least 0 for each of ${x.shape.length} axes`,
      })
    }
    return [{ dtype: x.dtype, shape: x.shape.map((dim, axis) => addDims(dim, addDims(before[axis] ?? 0, after[axis] ?? 0))) }]
  },
  gradient({ inputs: [x], upstream: [g], needs, attributes: { before } }) {
    if (!needs[0] || x === undefined || g === undefined) return []
    return [
      slice(
        g,
        x.shape.map((dim, axis) => ({ axis, start: before[axis] ?? 0, end: addDims(dim, before[axis] ?? 0) })),
      ),
    ]
  },
  evaluate([x], { before, after }, { resolve }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const starts = before.map(resolve)
    const dims = x.dims.map((dim, axis) => dim + at(starts, axis) + resolve(after[axis] ?? 0))
    const strides = stridesOf(dims)
    const base = starts.reduce((offset, start, axis) => offset + start * at(strides, axis), 0)
    const data = new Float64Array(dims.reduce((product, dim) => product * dim, 1))
    forEachOffset(x.dims, [strides], (position, offsets) => {
      data[base + at(offsets, 0)] = at(x.data, position)
    })
    return [{ dtype: x.dtype, dims, data }]
  },
  onnx: ({ before, after }) => ({ attributes: { mode: { string: 'constant' } }, operands: [[...before, ...after]] }),
})

/** `x` with zeros before and after along each axis; counts may be named. */
export function pad(x: Tensor, before: readonly Dim[], after: readonly Dim[]): Tensor {
  return [...before, ...after].every((count) => count === 0) ? x : only(apply([x], { before, after }))
}
