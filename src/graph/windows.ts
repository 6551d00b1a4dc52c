/** What convolutions and poolings share: how windows lie over one or two spatial axes. */
import { ModalignError } from '../errors.ts'
import { addDims, type Dim, divideDims, multiplyDims, type Shape, subtractDims, termsOf } from './dim.ts'
import { at } from './indexing.ts'
import { dimAt } from './tensor.ts'

export interface WindowOptions {
  /** Steps from one window to the next, one per spatial axis. Default 1. */
  readonly strides?: readonly number[]
  /** Zeros around the input: all beginnings, then all ends (`[top, left, bottom, right]`). Default 0. */
  readonly pads?: readonly number[]
  /** Steps from one tap to the next within a window. Default 1. */
  readonly dilations?: readonly number[]
}
export interface Windows {
  readonly strides: readonly number[]
  readonly pads: readonly number[]
  readonly dilations: readonly number[]
}

/** The options with their defaults. @throws GRAPH_WINDOW if they do not fit one or two spatial axes. */
export function windowsOf(spatial: number, { strides, pads, dilations }: WindowOptions, operator: string): Windows {
  const windows = {
    strides: strides ?? new Array<number>(spatial).fill(1),
    pads: pads ?? new Array<number>(2 * spatial).fill(0),
    dilations: dilations ?? new Array<number>(spatial).fill(1),
  }
  const fits =
    (spatial === 1 || spatial === 2) &&
    windows.strides.length === spatial &&
    windows.dilations.length === spatial &&
    windows.pads.length === 2 * spatial &&
    [...windows.strides, ...windows.dilations].every((step) => Number.isInteger(step) && step >= 1) &&
    windows.pads.every((count) => Number.isInteger(count) && count >= 0)
  if (!fits) {
    throw new ModalignError({
      code: 'GRAPH_WINDOW',
      field: operator,
      got: `${spatial} spatial axes, strides [${windows.strides.join(', ')}], pads [${windows.pads.join(', ')}], dilations [${windows.dilations.join(', ')}]`,
      expected: '1 or 2 spatial axes; for each a stride and a dilation of at least 1, and a padding of at least 0 at either end',
    })
  }
  return windows
}

/** What is left of an input axis behind the last whole window, besides how many windows there are. */
export interface WindowCount {
  readonly windows: Dim
  readonly remainder: number
}

/**
 * How many windows fit: floor((length + pads - reach) / stride) + 1 with reach = (kernel - 1) dilation + 1. Exact for named sizes too, as long as the stride
 * divides the coefficients of their names.
 *
 * @throws GRAPH_WINDOW if no window fits, GRAPH_SIZE_NOT_FIXED if the count is no polynomial.
 */
export function countWindows(length: Dim, kernel: Dim, axis: number, windows: Windows, operator: string): WindowCount {
  const [stride, dilation] = [at(windows.strides, axis), at(windows.dilations, axis)]
  const reach = addDims(multiplyDims(subtractDims(kernel, 1), dilation), 1)
  const room = subtractDims(addDims(length, padding(windows, axis)), reach)
  const constant = termsOf(room).find(({ names }) => names.length === 0)?.coefficient ?? 0
  const remainder = ((constant % stride) + stride) % stride
  const steps = divideDims(subtractDims(room, remainder), stride)
  if (steps === undefined) {
    throw new ModalignError({
      code: 'GRAPH_SIZE_NOT_FIXED',
      field: operator,
      got: `windows every ${stride} along ${length}`,
      expected: `a number, or a multiple of ${stride}`,
    })
  }
  if (typeof steps === 'number' && steps < 0) {
    throw new ModalignError({
      code: 'GRAPH_WINDOW',
      field: operator,
      got: `a window of ${reach} over ${length}`,
      expected: 'room for one window',
    })
  }
  return { windows: addDims(steps, 1), remainder }
}

/** Both paddings of a spatial axis together. */
export function padding({ pads }: Windows, axis: number): number {
  return at(pads, axis) + at(pads, axis + pads.length / 2)
}

/** The spatial sizes of a tensor [N, C, ...]. */
export function spatialOf(shape: Shape): Shape {
  dimAt(shape, 2)
  return shape.slice(2)
}

/** One product of a convolution: offsets within one channel of the outputs, of the inputs and of the kernel. */
export type Tap = readonly [output: number, input: number, kernel: number]

/** All taps that meet the input; those over the padding are left out. One or two axes. */
export function tapsOf(input: readonly number[], output: readonly number[], kernel: readonly number[], windows: Windows): readonly Tap[] {
  const along = input.map((length, axis) => {
    const taps: Tap[] = []
    for (let window = 0; window < at(output, axis); window++) {
      for (let tap = 0; tap < at(kernel, axis); tap++) {
        const position = window * at(windows.strides, axis) + tap * at(windows.dilations, axis) - at(windows.pads, axis)
        if (position >= 0 && position < length) taps.push([window, position, tap])
      }
    }
    return taps
  })
  return along.reduce<readonly Tap[]>(
    (outer, inner, axis) =>
      outer.flatMap(([o, i, k]) =>
        inner.map(([p, q, r]): Tap => [o * at(output, axis) + p, i * at(input, axis) + q, k * at(kernel, axis) + r]),
      ),
    [[0, 0, 0]],
  )
}

export function volumeOf(dims: readonly number[]): number {
  return dims.reduce((product, dim) => product * dim, 1)
}
