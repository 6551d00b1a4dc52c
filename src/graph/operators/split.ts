import { ModalignError } from '../../errors.ts'
import { type Dim, dimsEqual, formatShape, type Shape, shapesEqual, sumOf } from '../dim.ts'
import { at } from '../indexing.ts'
import { defineOperator, required } from '../operator.ts'
import { dimAt, normaliseAxis, scalar, type Tensor } from '../tensor.ts'
import { concat } from './concat.ts'
import { expand } from './expand.ts'

const apply = defineOperator<{ readonly axis: number; readonly sizes: Shape }>({
  name: 'Split',
  shape(inputs, { axis, sizes }) {
    const x = required(inputs, 0, 'Split')
    if (!dimsEqual(sumOf(sizes), dimAt(x.shape, axis)) || sizes.some((length) => typeof length === 'number' && length < 0)) {
      throw new ModalignError({
        code: 'GRAPH_SHAPE',
        field: 'Split',
        got: `pieces ${formatShape(sizes)}`,
        expected: `sizes of at least 0 with a sum of ${dimAt(x.shape, axis)}`,
      })
    }
    return sizes.map((length) => ({ dtype: x.dtype, shape: x.shape.map((dim, a) => (a === axis ? length : dim)) }))
  },
  gradient({ outputs, upstream, needs, attributes: { axis } }) {
    if (!needs[0]) return []
    // A piece that the loss does not read still takes its place.
    return [
      concat(
        outputs.map((output, index) => upstream[index] ?? expand(scalar(0, output.dtype), output.shape)),
        axis,
      ),
    ]
  },
  evaluate([x], { axis, sizes }, { resolve }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const inner = x.dims.slice(axis + 1).reduce((product, dim) => product * dim, 1)
    const outer = x.dims.slice(0, axis).reduce((product, dim) => product * dim, 1)
    const stride = at(x.dims, axis) * inner
    let start = 0
    return sizes.map(resolve).map((length) => {
      const data = new Float64Array(outer * length * inner)
      for (let o = 0; o < outer; o++) data.set(x.data.subarray(o * stride + start, o * stride + start + length * inner), o * length * inner)
      start += length * inner
      return { dtype: x.dtype, dims: x.dims.map((dim, a) => (a === axis ? length : dim)), data }
    })
  },
  onnx: ({ axis, sizes }) => ({ attributes: { axis: { int: axis } }, operands: [sizes] }),
})

/** Consecutive pieces along an axis; the sizes (numbers or names) add up to the whole. */
export function split(x: Tensor, sizes: readonly Dim[], axis: number): readonly Tensor[] {
  return shapesEqual(sizes, [dimAt(x.shape, axis)]) ? [x] : apply([x], { axis: normaliseAxis(axis, x.shape.length, 'Split'), sizes })
}
