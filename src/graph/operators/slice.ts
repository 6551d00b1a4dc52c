import { ModalignError } from '../../errors.ts'
import { addDims, type Dim, type Shape, subtractDims } from '../dim.ts'
import { at, forEachOffset, stridesOf } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { dimAt, integers, normaliseAxis, scalar, type Tensor } from '../tensor.ts'
import { expand } from './expand.ts'
import { pad } from './pad.ts'
import { scatterNd } from './scatter-nd.ts'
import { transpose } from './transpose.ts'

interface Attributes {
  readonly axes: readonly number[]
  readonly starts: Shape
  readonly ends: Shape
  readonly steps: readonly number[]
}
export interface SliceRange {
  readonly axis: number
  /** First index; default 0. Negative numbers count from the end of an axis of known size. */
  readonly start?: Dim
  /** One past the last index; default the end. */
  readonly end?: Dim
  /** Default 1; larger steps need known sizes. */
  readonly step?: number
}

const apply = defineOperator<Attributes>({
  name: 'Slice',
  shape(inputs, attributes) {
    const x = required(inputs, 0, 'Slice')
    return [{ dtype: x.dtype, shape: x.shape.map((dim, axis) => lengthAlong(attributes, axis, dim)) }]
  },
  gradient({ inputs: [x], upstream: [g], needs, attributes }) {
    if (!needs[0] || x === undefined || g === undefined) return []
    const { axes, starts, ends, steps } = attributes
    if (steps.every((step) => step === 1)) {
      const before = x.shape.map((_, axis) => starts[axes.indexOf(axis)] ?? 0)
      const after = x.shape.map((dim, axis) => (axes.includes(axis) ? subtractDims(dim, ends[axes.indexOf(axis)] ?? dim) : 0))
      return [pad(g, before, after)]
    }
    const [axis] = axes
    if (axis === undefined || axes.length > 1) throw new Error('internal: steps other than 1 are sliced one axis at a time')
    const perm = [axis, ...x.shape.map((_, a) => a).filter((a) => a !== axis)]
    const count = dimAt(g.shape, axis)
    const [start, step] = [starts[0], steps[0]]
    if (typeof count !== 'number' || typeof start !== 'number' || step === undefined)
      throw new Error('internal: a stepped slice has known sizes')
    const rows = integers(
      Array.from({ length: count }, (_, index) => start + index * step),
      [count, 1],
    )
    const zeros = expand(
      scalar(0, x.dtype),
      perm.map((a) => dimAt(x.shape, a)),
    )
    return [
      transpose(
        scatterNd(zeros, rows, transpose(g, perm)),
        perm.map((_, a) => perm.indexOf(a)),
      ),
    ]
  },
  evaluate([x], attributes, { resolve }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const resolved: Attributes = { ...attributes, starts: attributes.starts.map(resolve), ends: attributes.ends.map(resolve) }
    const dims = x.dims.map((dim, axis) => resolve(lengthAlong(resolved, axis, dim)))
    const own = stridesOf(x.dims)
    const base = attributes.axes.reduce((offset, axis, index) => offset + resolve(attributes.starts[index] ?? 0) * at(own, axis), 0)
    const strides = own.map((stride, axis) => stride * (attributes.steps[attributes.axes.indexOf(axis)] ?? 1))
    const data = new Float64Array(dims.reduce((product, dim) => product * dim, 1))
    forEachOffset(dims, [strides], (position, offsets) => {
      data[position] = at(x.data, base + at(offsets, 0))
    })
    return [{ dtype: x.dtype, dims, data }]
  },
  onnx: ({ axes, starts, ends, steps }) => ({ operands: [starts, ends, axes, steps] }),
})

/** A box of `x`. @throws GRAPH_SLICE if a range leaves the tensor, or a step meets a named size. */
export function slice(x: Tensor, ranges: readonly SliceRange[]): Tensor {
  const stepped = ranges.find(({ step = 1 }) => step !== 1)
  if (stepped !== undefined && ranges.length > 1) return ranges.reduce((sliced, range) => slice(sliced, [range]), x)
  const axes = ranges.map(({ axis }) => normaliseAxis(axis, x.shape.length, 'Slice'))
  const whole = (index: number): Dim => dimAt(x.shape, axes[index] ?? 0)
  const fromFront = (bound: Dim, index: number): Dim => (typeof bound === 'number' && bound < 0 ? addDims(whole(index), bound) : bound)
  const attributes = {
    axes,
    starts: ranges.map(({ start = 0 }, index) => fromFront(start, index)),
    ends: ranges.map(({ end }, index) => (end === undefined ? whole(index) : fromFront(end, index))),
    steps: ranges.map(({ step = 1 }) => step),
  }
  return only(apply([x], attributes))
}

function lengthAlong({ axes, starts, ends, steps }: Attributes, axis: number, dim: Dim): Dim {
  const index = axes.indexOf(axis)
  if (index < 0) return dim
  const [start, end, step] = [starts[index] ?? 0, ends[index] ?? dim, steps[index] ?? 1]
  const length = subtractDims(end, start)
  const wrong = (got: string): ModalignError =>
    new ModalignError({ code: 'GRAPH_SLICE', got, expected: `a range inside axis ${axis} of size ${dim}, with a step of at least 1` })
  if (!Number.isInteger(step) || step < 1) throw wrong(`step ${step}`)
  if (
    (typeof start === 'number' && start < 0) ||
    (typeof length === 'number' && length < 0) ||
    (typeof end === 'number' && typeof dim === 'number' && end > dim)
  ) {
    throw wrong(`${start} to ${end}`)
  }
  if (step === 1) return length
  if (typeof length !== 'number' || typeof start !== 'number') throw wrong(`${start} to ${end} in steps of ${step} over a named size`)
  return Math.ceil(length / step)
}
