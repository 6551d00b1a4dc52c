import { ModalignError } from '../../errors.ts'
import { addDims, type Dim, dimsEqual, divideDims, multiplyDims, subtractDims } from '../dim.ts'
import { at } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { dimAt, type Tensor } from '../tensor.ts'
import { padding, spatialOf, tapsOf, volumeOf, type Windows, windowsOf } from '../windows.ts'
import { add } from './add.ts'
import { biasGradient, type ConvOptions, conv, convolutionForm, convWeightGradient, requireConvolution, requireGroups } from './conv.ts'
import { reduceSum } from './reduce-sum.ts'
import { reshape } from './reshape.ts'

export interface ConvTransposeOptions extends ConvOptions {
  /** Further positions at the end of each output axis that no window reaches: fewer than its stride. Default 0. */
  readonly outputPadding?: readonly number[]
}
interface Attributes extends Windows {
  readonly groups: number
  readonly outputPadding: readonly number[]
}

const apply = defineOperator<Attributes>({
  name: 'ConvTranspose',
  shape(inputs, attributes) {
    const [x, weight, bias] = [required(inputs, 0, 'ConvTranspose'), required(inputs, 1, 'ConvTranspose'), inputs[2]]
    const { groups } = attributes
    const filters = multiplyDims(dimAt(weight.shape, 1), groups)
    const fits =
      weight.shape.length === x.shape.length &&
      dimsEqual(dimAt(x.shape, 1), dimAt(weight.shape, 0)) &&
      divideDims(dimAt(x.shape, 1), groups) !== undefined &&
      (bias === undefined || (bias.shape.length === 1 && dimsEqual(dimAt(bias.shape, 0), filters)))
    requireConvolution(fits, [x, weight, bias], `${groups} groups`, 'ConvTranspose')
    const lengths = spatialOf(x.shape).map((length, axis) => outputLength(length, dimAt(weight.shape, axis + 2), axis, attributes))
    return [{ dtype: x.dtype, shape: [dimAt(x.shape, 0), filters, ...lengths] }]
  },
  gradient({ inputs: [x, weight, bias], upstream: [g], needs, attributes }) {
    if (x === undefined || weight === undefined || g === undefined) return []
    const { outputPadding: _, ...convolution } = attributes
    return [
      needs[0] ? conv(g, weight, undefined, convolution) : undefined,
      needs[1] ? convWeightGradient(g, x, weight.shape, convolution) : undefined,
      needs[2] && bias ? biasGradient(g) : undefined,
    ]
  },
  evaluate([x, weight, bias], attributes) {
    if (x === undefined || weight === undefined) throw new Error('internal: an operand is missing')
    const { groups } = attributes
    const [input, kernel] = [x.dims.slice(2), weight.dims.slice(2)]
    const output = input.map((length, axis) => Number(outputLength(length, at(kernel, axis), axis, attributes)))
    const taps = tapsOf(output, input, kernel, attributes)
    const [batch, channels, depth] = [at(x.dims, 0), at(x.dims, 1), at(weight.dims, 1)]
    const filters = depth * groups
    const [inputSize, outputSize, kernelSize] = [volumeOf(input), volumeOf(output), volumeOf(kernel)]
    const data = new Float64Array(batch * filters * outputSize)
    for (let n = 0; n < batch; n++) {
      for (let m = 0; m < filters; m++)
        if (bias !== undefined) data.fill(at(bias.data, m), (n * filters + m) * outputSize, (n * filters + m + 1) * outputSize)
      for (let c = 0; c < channels; c++) {
        const group = Math.floor(c / (channels / groups))
        const source = (n * channels + c) * inputSize
        for (let m = 0; m < depth; m++) {
          const target = (n * filters + group * depth + m) * outputSize
          const weights = (c * depth + m) * kernelSize
          for (const [i, o, k] of taps) data[target + o] = at(data, target + o) + at(x.data, source + i) * at(weight.data, weights + k)
        }
      }
    }
    return [{ dtype: x.dtype, dims: [batch, filters, ...output], data }]
  },
  onnx(attributes) {
    const form = convolutionForm(attributes)
    return { attributes: { ...form.attributes, output_padding: { ints: attributes.outputPadding } } }
  },
})

/**
 * The transpose of {@link conv}: Y[n, m, i stride + k dilation - pad] gathers X[n, c, i] W[c, m, k].
 * X [N, C, L] or [N, C, H, W], W [C, M/groups, ...], b [M] -> Y [N, M, ...] with (L - 1) stride + (kernel - 1) dilation + 1 - pads + outputPadding positions.
 *
 * @throws GRAPH_SHAPE, GRAPH_DTYPE, GRAPH_WINDOW
 */
export function convTranspose(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  { groups = 1, outputPadding, ...options }: ConvTransposeOptions = {},
): Tensor {
  const spatial = x.shape.length - 2
  const attributes = {
    ...windowsOf(spatial, options, 'ConvTranspose'),
    groups: requireGroups(groups, 'ConvTranspose'),
    outputPadding: outputPadding ?? new Array<number>(spatial).fill(0),
  }
  const fits =
    attributes.outputPadding.length === spatial &&
    attributes.outputPadding.every((count, axis) => Number.isInteger(count) && count >= 0 && count < at(attributes.strides, axis))
  if (!fits) {
    throw new ModalignError({
      code: 'GRAPH_WINDOW',
      field: 'ConvTranspose',
      got: `output padding [${attributes.outputPadding.join(', ')}]`,
      expected: `for each axis at least 0 and less than its stride [${attributes.strides.join(', ')}]`,
    })
  }
  const y = only(apply(bias === undefined ? [x, weight] : [x, weight, bias], attributes))
  const channels = dimAt(x.shape, 1)
  if (groups === 1 || dimAt(weight.shape, 1) !== 1 || typeof channels !== 'number' || channels === groups) return y
  // Groups of several inputs and one output: ONNX Runtime's WebGPU kernel (1.30) reads the wrong weights, without an error. The channels alone, and then their sum,
  // are the same.
  const alone = only(apply([x, weight], { ...attributes, groups: channels }))
  const [samples, ...lengths] = [dimAt(y.shape, 0), ...spatialOf(y.shape)]
  const summed = reduceSum(reshape(alone, [samples, groups, channels / groups, ...lengths]), [2])
  return bias === undefined ? summed : add(summed, reshape(bias, [groups, ...lengths.map(() => 1)]))
}

function outputLength(length: Dim, kernel: Dim, axis: number, attributes: Attributes): Dim {
  const starts = multiplyDims(subtractDims(length, 1), at(attributes.strides, axis))
  const reach = addDims(multiplyDims(subtractDims(kernel, 1), at(attributes.dilations, axis)), 1)
  const output = addDims(addDims(starts, reach), at(attributes.outputPadding, axis) - padding(attributes, axis))
  if (typeof output === 'number' && output < 1)
    throw new ModalignError({ code: 'GRAPH_WINDOW', field: 'ConvTranspose', got: `${output} positions`, expected: 'less padding' })
  return output
}
