import { ModalignError } from '../../errors.ts'
import { dimsEqual, formatShape, sumOf } from '../dim.ts'
import { at } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { dimAt, normaliseAxis, type Tensor } from '../tensor.ts'
import { split } from './split.ts'

const apply = defineOperator<{ readonly axis: number }>({
  name: 'Concat',
  shape(inputs, { axis }) {
    const tensors = inputs.map((_, index) => required(inputs, index, 'Concat'))
    const first = required(inputs, 0, 'Concat')
    for (const { dtype, shape } of tensors) {
      const fits =
        dtype === first.dtype &&
        shape.length === first.shape.length &&
        shape.every((dim, a) => a === axis || dimsEqual(dim, dimAt(first.shape, a)))
      if (!fits)
        throw new ModalignError({
          code: 'GRAPH_SHAPE',
          field: 'Concat',
          got: `${dtype} ${formatShape(shape)}`,
          expected: `${first.dtype} ${formatShape(first.shape)} but for axis ${axis}`,
        })
    }
    const total = sumOf(tensors.map(({ shape }) => dimAt(shape, axis)))
    return [{ dtype: first.dtype, shape: first.shape.map((dim, a) => (a === axis ? total : dim)) }]
  },
  gradient({ inputs, upstream: [g], needs, attributes: { axis } }) {
    if (g === undefined) return []
    const pieces = split(
      g,
      inputs.map((_, index) => dimAt(required(inputs, index, 'Concat').shape, axis)),
      axis,
    )
    return pieces.map((piece, index) => (needs[index] ? piece : undefined))
  },
  evaluate(inputs, { axis }) {
    const values = inputs.map((x) => {
      if (x === undefined) throw new Error('internal: an operand is missing')
      return x
    })
    const [first] = values
    if (first === undefined) throw new Error('internal: an operand is missing')
    const inner = first.dims.slice(axis + 1).reduce((product, dim) => product * dim, 1)
    const outer = first.dims.slice(0, axis).reduce((product, dim) => product * dim, 1)
    const total = values.reduce((sum, x) => sum + at(x.dims, axis), 0)
    const data = new Float64Array(outer * total * inner)
    let position = 0
    for (let o = 0; o < outer; o++) {
      for (const x of values) {
        const length = at(x.dims, axis) * inner
        data.set(x.data.subarray(o * length, (o + 1) * length), position)
        position += length
      }
    }
    return [{ dtype: first.dtype, dims: first.dims.map((dim, a) => (a === axis ? total : dim)), data }]
  },
  onnx: ({ axis }) => ({ attributes: { axis: { int: axis } } }),
})

/** One after another along an axis; all other sizes equal. */
export function concat(tensors: readonly Tensor[], axis: number): Tensor {
  const [first] = tensors
  return tensors.length === 1 && first !== undefined
    ? first
    : only(apply(tensors, { axis: normaliseAxis(axis, first?.shape.length ?? 0, 'Concat') }))
}
