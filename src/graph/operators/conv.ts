import { ModalignError } from '../../errors.ts'
import { type Dim, dimsEqual, divideDims, formatShape, multiplyDims, type Shape, shapesEqual } from '../dim.ts'
import { at } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { dimAt, type Tensor } from '../tensor.ts'
import { countWindows, spatialOf, tapsOf, volumeOf, type WindowOptions, type Windows, windowsOf } from '../windows.ts'
import { concat } from './concat.ts'
import { convTranspose } from './conv-transpose.ts'
import { pad } from './pad.ts'
import { reduceSum } from './reduce-sum.ts'
import { reshape } from './reshape.ts'
import { slice } from './slice.ts'
import { split } from './split.ts'
import { transpose } from './transpose.ts'

export interface ConvOptions extends WindowOptions {
  /** Channels fall into this many groups that do not see one another. Default 1. */
  readonly groups?: number
}
interface Attributes extends Windows {
  readonly groups: number
}

const apply = defineOperator<Attributes>({
  name: 'Conv',
  shape(inputs, attributes) {
    const [x, weight, bias] = [required(inputs, 0, 'Conv'), required(inputs, 1, 'Conv'), inputs[2]]
    const { groups } = attributes
    const channels = divideDims(dimAt(x.shape, 1), groups)
    const fits =
      weight.shape.length === x.shape.length &&
      channels !== undefined &&
      dimsEqual(channels, dimAt(weight.shape, 1)) &&
      divideDims(dimAt(weight.shape, 0), groups) !== undefined &&
      (bias === undefined || (bias.shape.length === 1 && dimsEqual(dimAt(bias.shape, 0), dimAt(weight.shape, 0))))
    requireConvolution(fits, [x, weight, bias], `${groups} groups`, 'Conv')
    const lengths = spatialOf(x.shape).map(
      (length, axis) => countWindows(length, dimAt(weight.shape, axis + 2), axis, attributes, 'Conv').windows,
    )
    return [{ dtype: x.dtype, shape: [dimAt(x.shape, 0), dimAt(weight.shape, 0), ...lengths] }]
  },
  gradient({ inputs: [x, weight, bias], upstream: [g], needs, attributes }) {
    if (x === undefined || weight === undefined || g === undefined) return []
    // What strides leave over at the end of an axis met no window: the transposed convolution is told to write zeros there.
    const outputPadding = (): readonly number[] =>
      spatialOf(x.shape).map((length, axis) => countWindows(length, dimAt(weight.shape, axis + 2), axis, attributes, 'Conv').remainder)
    return [
      needs[0] ? convTranspose(g, weight, undefined, { ...attributes, outputPadding: outputPadding() }) : undefined,
      needs[1] ? convWeightGradient(x, g, weight.shape, attributes) : undefined,
      needs[2] && bias ? biasGradient(g) : undefined,
    ]
  },
  evaluate([x, weight, bias], { groups, ...windows }) {
    if (x === undefined || weight === undefined) throw new Error('internal: an operand is missing')
    const [input, kernel] = [x.dims.slice(2), weight.dims.slice(2)]
    const output = input.map((length, axis) => Number(countWindows(length, at(kernel, axis), axis, windows, 'Conv').windows))
    const taps = tapsOf(input, output, kernel, windows)
    const [batch, channels, filters, depth] = [at(x.dims, 0), at(x.dims, 1), at(weight.dims, 0), at(weight.dims, 1)]
    const [inputSize, outputSize, kernelSize] = [volumeOf(input), volumeOf(output), volumeOf(kernel)]
    const data = new Float64Array(batch * filters * outputSize)
    for (let n = 0; n < batch; n++) {
      for (let m = 0; m < filters; m++) {
        const target = (n * filters + m) * outputSize
        if (bias !== undefined) data.fill(at(bias.data, m), target, target + outputSize)
        const group = Math.floor(m / (filters / groups))
        for (let c = 0; c < depth; c++) {
          const source = (n * channels + group * depth + c) * inputSize
          const weights = (m * depth + c) * kernelSize
          for (const [o, i, k] of taps) data[target + o] = at(data, target + o) + at(x.data, source + i) * at(weight.data, weights + k)
        }
      }
    }
    return [{ dtype: x.dtype, dims: [batch, filters, ...output], data }]
  },
  onnx: convolutionForm,
})

/**
 * Y[n, m, o] = b[m] + sum over channels c and taps k of X[n, c, o stride + k dilation - pad] W[m, c, k].
 * X [N, C, L] or [N, C, H, W], W [M, C/groups, ...], b [M] -> Y [N, M, ...]. `groups` = C is a depthwise convolution.
 * dX is a transposed convolution of g; dW a convolution of X with g in which samples and channels have changed places.
 *
 * @throws GRAPH_SHAPE, GRAPH_DTYPE, GRAPH_WINDOW
 */
export function conv(x: Tensor, weight: Tensor, bias?: Tensor, { groups = 1, ...options }: ConvOptions = {}): Tensor {
  const attributes = { ...windowsOf(x.shape.length - 2, options, 'Conv'), groups: requireGroups(groups, 'Conv') }
  const y = only(apply(bias === undefined ? [x, weight] : [x, weight, bias], attributes))
  if (groupsMiscomputed(dimAt(y.shape, 1), groups)) return groupByGroup(x, weight, bias, attributes)
  if (endPadsMissed(x, weight, attributes)) return withPadsApart(x, weight, bias, attributes)
  if (groups === 1 && channelsMiscomputed(x, weight, attributes)) return withSpareFilter(x, weight, bias, attributes)
  return y
}

/**
 * ONNX Runtime's WebGPU kernel (1.30) computes four filters at a time, or two, as their whole number allows, without a look at where a group ends: wrong values,
 * no error, as soon as a group of more than four filters is no multiple of that.
 */
function groupsMiscomputed(filters: Dim, groups: number): boolean {
  if (groups === 1 || typeof filters !== 'number') return false
  const together = filters % 4 === 0 ? 4 : filters % 2 === 0 ? 2 : 1
  return filters / groups > 4 && (filters / groups) % together !== 0
}

/** One convolution for each group. */
function groupByGroup(x: Tensor, weight: Tensor, bias: Tensor | undefined, { groups, ...windows }: Attributes): Tensor {
  const pieces = (tensor: Tensor, axis: number): readonly Tensor[] =>
    split(tensor, new Array<Dim>(groups).fill(divideDims(dimAt(tensor.shape, axis), groups) ?? 0), axis)
  const [inputs, weights, biases] = [pieces(x, 1), pieces(weight, 0), bias && pieces(bias, 0)]
  return concat(
    inputs.map((part, group) => conv(part, required(weights, group, 'Conv'), biases?.[group], windows)),
    1,
  )
}

/** The same kernel takes a window as large as the whole input for a matrix product, and overlooks that there may be padding behind the input. */
function endPadsMissed(x: Tensor, weight: Tensor, { pads }: Attributes): boolean {
  const spatial = pads.length / 2
  return pads.slice(0, spatial).every((p) => p === 0) && pads.some((p) => p > 0) && shapesEqual(spatialOf(x.shape), spatialOf(weight.shape))
}

/** The padding as an operator of its own. */
function withPadsApart(x: Tensor, weight: Tensor, bias: Tensor | undefined, { pads, ...windows }: Attributes): Tensor {
  const spatial = pads.length / 2
  return conv(pad(x, [0, 0, ...pads.slice(0, spatial)], [0, 0, ...pads.slice(spatial)]), weight, bias, windows)
}

/**
 * The same kernel reads three input channels at a time where their number is a multiple of three but not of four, and gets all but the first three wrong, if the
 * filters are a multiple of four. A named number of channels (samples, in a weight's gradient) may be such a one.
 */
function channelsMiscomputed(x: Tensor, weight: Tensor, { strides, pads }: Attributes): boolean {
  const [channels, filters] = [dimAt(x.shape, 1), dimAt(weight.shape, 0)]
  const pointwise = spatialOf(weight.shape).every((length) => length === 1) && strides.every((s) => s === 1) && pads.every((p) => p === 0)
  if (pointwise || typeof filters !== 'number' || filters % 4 !== 0) return false
  return typeof channels !== 'number' || (channels > 3 && channels % 3 === 0 && channels % 4 !== 0)
}

/** A filter of zeros more, whose result is cut off again: their number is then no multiple of four. */
function withSpareFilter(x: Tensor, weight: Tensor, bias: Tensor | undefined, attributes: Attributes): Tensor {
  const spare = (tensor: Tensor): Tensor =>
    pad(
      tensor,
      tensor.shape.map(() => 0),
      tensor.shape.map((_, axis) => (axis === 0 ? 1 : 0)),
    )
  const y = only(apply(bias === undefined ? [x, spare(weight)] : [x, spare(weight), spare(bias)], attributes))
  return slice(y, [{ axis: 1, end: dimAt(weight.shape, 0) }])
}

/**
 * dW[m, c, k] = sum over n and o of g[n, m, o] X[n, c, o stride + k dilation - pad]: a convolution whose samples are the channels of a group, whose channels are the
 * samples, and whose strides and dilations have changed places.
 */
export function convWeightGradient(x: Tensor, g: Tensor, shape: Shape, { groups, strides, dilations, pads }: Attributes): Tensor {
  const [samples, depth] = [dimAt(x.shape, 0), dimAt(shape, 1)]
  const axes = spatialOf(x.shape).map((_, axis) => axis)
  const behind = (from: number): readonly number[] => axes.map((axis) => axis + from)
  // X [N, G Cg, ...] -> [Cg, G N, ...] and g [N, G Mg, ...] -> [G Mg, N, ...]
  const grouped = reshape(x, [samples, groups, depth, ...spatialOf(x.shape)])
  const rows = reshape(transpose(grouped, [2, 1, 0, ...behind(3)]), [depth, multiplyDims(groups, samples), ...spatialOf(x.shape)])
  const taps = transpose(g, [1, 0, ...behind(2)])
  const product = conv(rows, taps, undefined, { groups, strides: dilations, dilations: strides, pads })
  // Where a stride leaves input over, further taps fit than the kernel has.
  const cropped = axes.flatMap((axis) =>
    dimsEqual(dimAt(product.shape, axis + 2), dimAt(shape, axis + 2)) ? [] : [{ axis: axis + 2, end: dimAt(shape, axis + 2) }],
  )
  return transpose(cropped.length === 0 ? product : slice(product, cropped), [1, 0, ...behind(2)])
}

/** The sum over everything but the channels. */
export function biasGradient(g: Tensor): Tensor {
  return reduceSum(g, [0, ...spatialOf(g.shape).map((_, axis) => axis + 2)])
}

export function convolutionForm({ strides, pads, dilations, groups }: Attributes) {
  return { attributes: { strides: { ints: strides }, pads: { ints: pads }, dilations: { ints: dilations }, group: { int: groups } } }
}

/** @throws GRAPH_WINDOW */
export function requireGroups(groups: number, operator: string): number {
  if (!Number.isInteger(groups) || groups < 1)
    throw new ModalignError({ code: 'GRAPH_WINDOW', field: operator, got: `${groups} groups`, expected: 'an integer of at least 1' })
  return groups
}

/** @throws GRAPH_DTYPE, GRAPH_SHAPE */
export function requireConvolution(fits: boolean, inputs: readonly (Tensor | undefined)[], detail: string, operator: string): void {
  const tensors = inputs.filter((tensor) => tensor !== undefined)
  const dtypes = tensors.map(({ dtype }) => dtype)
  if (new Set(dtypes).size > 1)
    throw new ModalignError({ code: 'GRAPH_DTYPE', field: operator, got: dtypes.join(', '), expected: 'operands of one type' })
  if (!fits) {
    throw new ModalignError({
      code: 'GRAPH_SHAPE',
      field: operator,
      got: `${tensors.map(({ shape }) => formatShape(shape)).join(' and ')}, ${detail}`,
      expected: 'channels and weights that agree',
    })
  }
}
