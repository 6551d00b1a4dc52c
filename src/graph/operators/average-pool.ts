import { ModalignError } from '../../errors.ts'
import { multiplyDims } from '../dim.ts'
import { at } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { dimAt, full, isFloating, scalar, type Tensor } from '../tensor.ts'
import { countWindows, spatialOf, tapsOf, volumeOf, type Windows, windowsOf } from '../windows.ts'
import { convTranspose } from './conv-transpose.ts'
import { div } from './div.ts'
import { expand } from './expand.ts'
import { mul } from './mul.ts'
import { reshape } from './reshape.ts'

export interface PoolOptions {
  /** Steps from one window to the next. Default: the kernel's sizes, so that windows tile the input. */
  readonly strides?: readonly number[]
  /** Positions around the input that belong to no channel: all beginnings, then all ends. Less than the kernel. Default 0. */
  readonly pads?: readonly number[]
}
export interface AveragePoolOptions extends PoolOptions {
  /** Count the padding as zeros. Default false: averages are over what is there. */
  readonly countIncludePad?: boolean
}
interface Attributes {
  readonly kernel: readonly number[]
  readonly windows: Windows
  readonly countIncludePad: boolean
}

const apply = defineOperator<Attributes>({
  name: 'AveragePool',
  shape(inputs, { kernel, windows }) {
    const x = required(inputs, 0, 'AveragePool')
    if (!isFloating(x.dtype))
      throw new ModalignError({ code: 'GRAPH_DTYPE', field: 'AveragePool', got: x.dtype, expected: 'a floating-point tensor' })
    const lengths = spatialOf(x.shape).map((length, axis) => countWindows(length, at(kernel, axis), axis, windows, 'AveragePool').windows)
    return [{ dtype: x.dtype, shape: [dimAt(x.shape, 0), dimAt(x.shape, 1), ...lengths] }]
  },
  gradient({ inputs: [x], upstream: [g], needs, attributes }) {
    if (!needs[0] || x === undefined || g === undefined) return []
    const { kernel, windows } = attributes
    const [samples, channels] = [dimAt(x.shape, 0), dimAt(x.shape, 1)]
    const share = div(g, elementsPerWindow(x, attributes))
    // Each channel of each sample alone: every window gives its share back to all of its positions.
    const planes = reshape(share, [multiplyDims(samples, channels), 1, ...spatialOf(g.shape)])
    const outputPadding = spatialOf(x.shape).map(
      (length, axis) => countWindows(length, at(kernel, axis), axis, windows, 'AveragePool').remainder,
    )
    return [reshape(convTranspose(planes, full(1, x.dtype, [1, 1, ...kernel]), undefined, { ...windows, outputPadding }), x.shape)]
  },
  evaluate([x], { kernel, windows, countIncludePad }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const input = x.dims.slice(2)
    const output = input.map((length, axis) => Number(countWindows(length, at(kernel, axis), axis, windows, 'AveragePool').windows))
    const taps = tapsOf(input, output, kernel, windows)
    const planes = at(x.dims, 0) * at(x.dims, 1)
    const [inputSize, outputSize] = [volumeOf(input), volumeOf(output)]
    const counts = new Float64Array(outputSize)
    for (const [o] of taps) counts[o] = at(counts, o) + 1
    if (countIncludePad) counts.fill(volumeOf(kernel))
    const data = new Float64Array(planes * outputSize)
    for (let plane = 0; plane < planes; plane++) {
      for (const [o, i] of taps) {
        const target = plane * outputSize + o
        data[target] = at(data, target) + at(x.data, plane * inputSize + i) / at(counts, o)
      }
    }
    return [{ dtype: x.dtype, dims: [...x.dims.slice(0, 2), ...output], data }]
  },
  onnx: ({ kernel, windows: { strides, pads }, countIncludePad }) => ({
    attributes: {
      kernel_shape: { ints: kernel },
      strides: { ints: strides },
      pads: { ints: pads },
      count_include_pad: { int: countIncludePad ? 1 : 0 },
    },
  }),
})

/** Means over windows.  X [N, C, L] or [N, C, H, W], a kernel size per spatial axis -> [N, C, ...]. Input behind the last whole window is left out. */
export function averagePool(
  x: Tensor,
  kernel: readonly number[],
  { countIncludePad = false, ...options }: AveragePoolOptions = {},
): Tensor {
  return only(apply([x], { kernel, windows: poolWindows(x, kernel, options, 'AveragePool'), countIncludePad }))
}

/** @throws GRAPH_WINDOW if the kernel does not fit the axes, or a window could lie in the padding alone. */
export function poolWindows(x: Tensor, kernel: readonly number[], { strides = kernel, pads }: PoolOptions, operator: string): Windows {
  const windows = windowsOf(x.shape.length - 2, { strides, ...(pads && { pads }) }, operator)
  const fits =
    kernel.length === windows.strides.length &&
    kernel.every((length, axis) => {
      const [before, after] = [at(windows.pads, axis), at(windows.pads, axis + kernel.length)]
      return Number.isInteger(length) && length >= 1 && before < length && after < length
    })
  if (!fits) {
    throw new ModalignError({
      code: 'GRAPH_WINDOW',
      field: operator,
      got: `kernel [${kernel.join(', ')}] with pads [${windows.pads.join(', ')}]`,
      expected: 'a size per spatial axis, larger than its padding',
    })
  }
  return windows
}

/** A number where every window counts the whole kernel; otherwise [1, 1, ...windows], since those at the border count less. */
function elementsPerWindow(x: Tensor, { kernel, windows, countIncludePad }: Attributes): Tensor | number {
  if (countIncludePad || windows.pads.every((count) => count === 0)) return volumeOf(kernel)
  const ones = expand(scalar(1, x.dtype), [1, 1, ...spatialOf(x.shape)])
  return mul(averagePool(ones, kernel, { strides: windows.strides, pads: windows.pads, countIncludePad: true }), volumeOf(kernel))
}
