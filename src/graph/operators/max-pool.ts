import { multiplyDims } from '../dim.ts'
import { floatingShape } from '../elementwise.ts'
import { at } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { constant, dimAt, scalar, type Tensor } from '../tensor.ts'
import { countWindows, spatialOf, tapsOf, volumeOf, type Windows } from '../windows.ts'
import { argMax } from './arg-max.ts'
import { type PoolOptions, poolWindows } from './average-pool.ts'
import { cast } from './cast.ts'
import { conv } from './conv.ts'
import { convTranspose } from './conv-transpose.ts'
import { equal } from './equal.ts'
import { expand } from './expand.ts'
import { greater } from './greater.ts'
import { mul } from './mul.ts'
import { range } from './range.ts'
import { reshape } from './reshape.ts'
import { where } from './where.ts'

interface Attributes {
  readonly kernel: readonly number[]
  readonly windows: Windows
}

const lowest = -3e38

/** Without the second output Indices, which ONNX Runtime's WebGPU provider takes on and then fails to compute. */
const apply = defineOperator<Attributes>({
  name: 'MaxPool',
  shape(inputs, { kernel, windows }) {
    floatingShape(inputs, 'MaxPool')
    const x = required(inputs, 0, 'MaxPool')
    const lengths = spatialOf(x.shape).map((length, axis) => countWindows(length, at(kernel, axis), axis, windows, 'MaxPool').windows)
    return [{ dtype: x.dtype, shape: [dimAt(x.shape, 0), dimAt(x.shape, 1), ...lengths] }]
  },
  gradient({ inputs: [x], upstream: [g], needs, attributes: { kernel, windows } }) {
    if (!needs[0] || x === undefined || g === undefined) return []
    // Every tap of a window as a channel of its own: [N C, 1, ...] -> [N C, taps, ...windows], by kernels that pick one tap each.
    const count = volumeOf(kernel)
    const picks = constant({ dtype: 'float32', dims: [count, 1, ...kernel], data: identity(count) })
    const planes = multiplyDims(dimAt(x.shape, 0), dimAt(x.shape, 1))
    const spatial = spatialOf(x.shape)
    const weights = cast(picks, x.dtype)
    const inWindows = conv(reshape(x, [planes, 1, ...spatial]), weights, undefined, windows)
    const present = conv(expand(scalar(1, x.dtype), [1, 1, ...spatial]), weights, undefined, windows)
    const first = argMax(where(greater(present, 0.5), inWindows, scalar(lowest, x.dtype)), 1, { keepdims: true })
    const chosen = equal(reshape(range(count), [count, ...kernel.map(() => 1)]), first)
    const share = mul(cast(chosen, g.dtype), reshape(g, [planes, 1, ...spatialOf(g.shape)]))
    const outputPadding = spatial.map((length, axis) => countWindows(length, at(kernel, axis), axis, windows, 'MaxPool').remainder)
    return [reshape(convTranspose(share, weights, undefined, { ...windows, outputPadding }), x.shape)]
  },
  evaluate([x], { kernel, windows }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const input = x.dims.slice(2)
    const output = input.map((length, axis) => Number(countWindows(length, at(kernel, axis), axis, windows, 'MaxPool').windows))
    const taps = tapsOf(input, output, kernel, windows)
    const planes = at(x.dims, 0) * at(x.dims, 1)
    const [inputSize, outputSize] = [volumeOf(input), volumeOf(output)]
    const data = new Float64Array(planes * outputSize).fill(Number.NEGATIVE_INFINITY)
    for (let plane = 0; plane < planes; plane++) {
      for (const [o, i] of taps) {
        const target = plane * outputSize + o
        data[target] = Math.max(at(data, target), at(x.data, plane * inputSize + i))
      }
    }
    return [{ dtype: x.dtype, dims: [...x.dims.slice(0, 2), ...output], data }]
  },
  onnx: ({ kernel, windows: { strides, pads } }) => ({
    attributes: { kernel_shape: { ints: kernel }, strides: { ints: strides }, pads: { ints: pads } },
  }),
})

/**
 * Maxima over windows; the first of equal elements takes the gradient, as PyTorch has it.  X [N, C, L] or [N, C, H, W], a kernel size per spatial axis ->
 * [N, C, ...]. The gradient holds each window's elements: as many times the output as the kernel has.
 */
export function maxPool(x: Tensor, kernel: readonly number[], options: PoolOptions = {}): Tensor {
  return only(apply([x], { kernel, windows: poolWindows(x, kernel, options, 'MaxPool') }))
}

function identity(size: number): Float32Array {
  return Float32Array.from({ length: size * size }, (_, position) => (position % (size + 1) === 0 ? 1 : 0))
}
