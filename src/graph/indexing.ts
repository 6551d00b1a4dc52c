/** Strides and offsets of row-major arrays, for the evaluations of operators. */
import { ModalignError } from '../errors.ts'

export function stridesOf(dims: readonly number[]): readonly number[] {
  const strides = new Array<number>(dims.length).fill(1)
  for (let axis = dims.length - 2; axis >= 0; axis--) strides[axis] = (strides[axis + 1] ?? 1) * (dims[axis + 1] ?? 1)
  return strides
}

/** Strides with which an array of `dims` is read as if it had been broadcast to `to`: 0 along every stretched axis. */
export function broadcastStrides(dims: readonly number[], to: readonly number[]): readonly number[] {
  const own = stridesOf(dims)
  const offset = to.length - dims.length
  return to.map((_, axis) => (axis < offset || dims[axis - offset] === 1 ? 0 : (own[axis - offset] ?? 0)))
}

/** Calls `visit` with the offsets that several strided views have at each index of `dims`, in row-major order. */
export function forEachOffset(
  dims: readonly number[],
  views: readonly (readonly number[])[],
  visit: (position: number, offsets: readonly number[]) => void,
): void {
  const count = dims.reduce((product, dim) => product * dim, 1)
  const index = new Array<number>(dims.length).fill(0)
  const offsets = new Array<number>(views.length).fill(0)
  for (let position = 0; position < count; position++) {
    visit(position, offsets)
    for (let axis = dims.length - 1; axis >= 0; axis--) {
      const next = (index[axis] ?? 0) + 1
      const wraps = next === dims[axis]
      index[axis] = wraps ? 0 : next
      for (let view = 0; view < views.length; view++) {
        const stride = views[view]?.[axis] ?? 0
        offsets[view] = (offsets[view] ?? 0) + (wraps ? -stride * (next - 1) : stride)
      }
      if (!wraps) break
    }
  }
}

/** The element at an offset that is known to lie inside. */
export function at(data: { readonly [index: number]: number; readonly length: number }, offset: number): number {
  const element = data[offset]
  if (element === undefined) throw new Error(`internal: offset ${offset} outside ${data.length} elements`)
  return element
}

/** An index into an axis, counted from the front. @throws GRAPH_INDEX if it lies outside, as every runtime refuses it. */
export function indexWithin(index: number, length: number): number {
  const normalised = index < 0 ? index + length : index
  if (normalised < 0 || normalised >= length)
    throw new ModalignError({ code: 'GRAPH_INDEX', got: `index ${index}`, expected: `-${length} to ${length - 1}` })
  return normalised
}

/** Maps every line along one axis; each keeps its length. */
export function evaluateAlongAxis<V extends { readonly dims: readonly number[]; readonly data: Float64Array }>(
  x: V | undefined,
  axis: number,
  map: (row: readonly number[]) => readonly number[],
): V {
  if (x === undefined) throw new Error('internal: an operand is missing')
  const length = at(x.dims, axis)
  const stride = at(stridesOf(x.dims), axis)
  const data = new Float64Array(x.data.length)
  const lineStarts = x.dims.map((dim, position) => (position === axis ? 1 : dim))
  forEachOffset(lineStarts, [stridesOf(x.dims)], (_, offsets) => {
    const start = at(offsets, 0)
    const row = Array.from({ length }, (_unused, step) => at(x.data, start + step * stride))
    for (const [step, element] of map(row).entries()) data[start + step * stride] = element
  })
  return { ...x, data }
}
