import { productOf } from '../dim.ts'
import { at } from '../indexing.ts'
import { defineOperator, required } from '../operator.ts'
import { dimAt, scalar, type Tensor } from '../tensor.ts'
import { countWindows, spatialOf, tapsOf, volumeOf, type Windows } from '../windows.ts'
import { type PoolOptions, poolWindows } from './average-pool.ts'
import { expand } from './expand.ts'
import { reshape } from './reshape.ts'
import { scatterElements } from './scatter-elements.ts'

interface Attributes {
  readonly kernel: readonly number[]
  readonly windows: Windows
}

/** Outputs: Y and where in the flattened input each maximum lies (int64): what the gradient needs again. */
const apply = defineOperator<Attributes>({
  name: 'MaxPool',
  shape(inputs, { kernel, windows }) {
    const x = required(inputs, 0, 'MaxPool')
    const lengths = spatialOf(x.shape).map((length, axis) => countWindows(length, at(kernel, axis), axis, windows, 'MaxPool').windows)
    const shape = [dimAt(x.shape, 0), dimAt(x.shape, 1), ...lengths]
    return [
      { dtype: x.dtype, shape },
      { dtype: 'int64', shape },
    ]
  },
  gradient({ inputs: [x], outputs: [, places], upstream: [g], needs }) {
    if (!needs[0] || x === undefined || places === undefined || g === undefined) return []
    const zeros = expand(scalar(0, x.dtype), [productOf(x.shape)])
    const flat = [productOf(g.shape)]
    return [reshape(scatterElements(zeros, reshape(places, flat), reshape(g, flat), 0, 'add'), x.shape)]
  },
  evaluate([x], { kernel, windows }) {
    if (x === undefined) throw new Error('internal: an operand is missing')
    const input = x.dims.slice(2)
    const output = input.map((length, axis) => Number(countWindows(length, at(kernel, axis), axis, windows, 'MaxPool').windows))
    const taps = tapsOf(input, output, kernel, windows)
    const planes = at(x.dims, 0) * at(x.dims, 1)
    const [inputSize, outputSize] = [volumeOf(input), volumeOf(output)]
    const data = new Float64Array(planes * outputSize).fill(Number.NEGATIVE_INFINITY)
    const places = new Float64Array(planes * outputSize)
    for (let plane = 0; plane < planes; plane++) {
      for (const [o, i] of taps) {
        const [target, source] = [plane * outputSize + o, plane * inputSize + i]
        if (at(x.data, source) > at(data, target)) {
          data[target] = at(x.data, source)
          places[target] = source
        }
      }
    }
    const dims = [...x.dims.slice(0, 2), ...output]
    return [
      { dtype: x.dtype, dims, data },
      { dtype: 'int64', dims, data: places },
    ]
  },
  onnx: ({ kernel, windows: { strides, pads } }) => ({
    attributes: { kernel_shape: { ints: kernel }, strides: { ints: strides }, pads: { ints: pads } },
  }),
})

/** Maxima over windows; the first of equal elements takes the gradient.  X [N, C, L] or [N, C, H, W], a kernel size per spatial axis -> [N, C, ...]. */
export function maxPool(x: Tensor, kernel: readonly number[], options: PoolOptions = {}): Tensor {
  const [y] = apply([x], { kernel, windows: poolWindows(x, kernel, options, 'MaxPool') })
  if (y === undefined) throw new Error('internal: no output')
  return y
}
