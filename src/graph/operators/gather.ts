import { ModalignError } from '../../errors.ts'
import { at, indexWithin } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { dimAt, normaliseAxis, scalar, type Tensor } from '../tensor.ts'
import { cast } from './cast.ts'
import { expand } from './expand.ts'
import { scatterNd } from './scatter-nd.ts'
import { transpose } from './transpose.ts'
import { unsqueeze } from './unsqueeze.ts'

const apply = defineOperator<{ readonly axis: number }>({
  name: 'Gather',
  shape(inputs, { axis }) {
    const [data, indices] = [required(inputs, 0, 'Gather'), required(inputs, 1, 'Gather')]
    if (indices.dtype !== 'int64' && indices.dtype !== 'int32')
      throw new ModalignError({ code: 'GRAPH_DTYPE', field: 'Gather', got: indices.dtype, expected: 'int64 or int32 indices' })
    return [{ dtype: data.dtype, shape: [...data.shape.slice(0, axis), ...indices.shape, ...data.shape.slice(axis + 1)] }]
  },
  gradient({ inputs: [data, indices], upstream: [g], needs, attributes: { axis } }) {
    if (!needs[0] || data === undefined || indices === undefined || g === undefined) return []
    const rank = data.shape.length
    const span = indices.shape.length
    // Scattering adds along the leading axis: bring `axis` there, and back afterwards.
    const toFront = [axis, ...Array.from({ length: rank }, (_, a) => a).filter((a) => a !== axis)]
    const indexAxes = Array.from({ length: span }, (_, a) => axis + a)
    const gradientPerm = [...indexAxes, ...Array.from({ length: g.shape.length }, (_, a) => a).filter((a) => !indexAxes.includes(a))]
    const zeros = expand(
      scalar(0, data.dtype),
      toFront.map((a) => dimAt(data.shape, a)),
    )
    const rows = axis === 0 ? g : transpose(g, gradientPerm)
    const scattered = scatterNd(zeros, unsqueeze(cast(indices, 'int64'), [span]), rows, 'add')
    return [
      axis === 0
        ? scattered
        : transpose(
            scattered,
            toFront.map((_, a) => toFront.indexOf(a)),
          ),
      undefined,
    ]
  },
  evaluate([data, indices], { axis }) {
    if (data === undefined || indices === undefined) throw new Error('internal: an operand is missing')
    const length = at(data.dims, axis)
    const inner = data.dims.slice(axis + 1).reduce((product, dim) => product * dim, 1)
    const outer = data.dims.slice(0, axis).reduce((product, dim) => product * dim, 1)
    const dims = [...data.dims.slice(0, axis), ...indices.dims, ...data.dims.slice(axis + 1)]
    const result = new Float64Array(outer * indices.data.length * inner)
    let position = 0
    for (let o = 0; o < outer; o++) {
      for (const index of indices.data) {
        const row = indexWithin(index, length)
        for (let i = 0; i < inner; i++) result[position++] = at(data.data, (o * length + row) * inner + i)
      }
    }
    return [{ dtype: data.dtype, dims, data: result }]
  },
  onnx: ({ axis }) => ({ attributes: { axis: { int: axis } } }),
})

/** Rows of `data` by index along one axis (default 0).  data [V, C], indices [...] -> [..., C]. */
export function gather(data: Tensor, indices: Tensor, axis = 0): Tensor {
  return only(apply([data, indices], { axis: normaliseAxis(axis, data.shape.length, 'Gather') }))
}
