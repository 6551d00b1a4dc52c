/** Applications that ONNX Runtime 1.30's WebGPU kernels compute wrongly, or die of, if they are said in the plain way. */
import * as ops from '../../src/graph/operators/index.ts'
import type { Tensor } from '../../src/graph/tensor.ts'
import { type Case, given, numbers } from './cases.ts'
import { type Axis, batch, fixed } from './draw.ts'

export const kernelFaults: Readonly<Record<string, Case>> = {
  'Conv: groups of five filters': convolution([2, 4, 5, 6], [10, 2, 2, 2], { groups: 2 }),
  'Conv: groups of six filters': convolution([2, 4, 9], [12, 2, 3], { groups: 2, pads: [1, 1] }),
  'Conv: nine channels and four filters': convolution([1, 9, 5, 6], [4, 9, 2, 3], {}),
  'Conv: two groups of six channels and five filters': convolution([1, 12, 5, 6], [10, 6, 2, 3], { groups: 2 }),
  'Conv: a window as large as the input, and padding behind it': convolution([2, 3, 3, 4], [5, 3, 3, 4], { pads: [0, 0, 1, 2] }),
  "Conv: the weight's gradient over a named number of samples": {
    inputs: [over(1, [batch, fixed(3), fixed(6)]), over(2, [4, 3, 3].map(fixed))],
    build: (x, w) => ops.conv(ops.concat([x, x, x], 0), given(w)),
  },
  'ConvTranspose: groups of four channels and one filter': {
    inputs: [over(1, [2, 8, 4, 3].map(fixed)), over(2, [8, 1, 2, 2].map(fixed)), over(3, [fixed(2)])],
    build: (x, w, b) => ops.convTranspose(x, given(w), b, { groups: 2, strides: [2, 1] }),
  },
  'ScatterND: into nothing': {
    inputs: [over(1, [fixed(1), fixed(5)])],
    build: (x) => ops.slice(ops.slice(x, [{ axis: 0, end: 0 }]), [{ axis: 1, start: 2, end: 3, step: 2 }]),
  },
  'MaxPool: where the gradient goes': {
    inputs: [over(1, [1, 2, 6, 6].map(fixed))],
    build: (x) => ops.maxPool(x, [3, 3], { strides: [2, 2], pads: [1, 1, 1, 1] }),
  },
}

function convolution(x: readonly number[], weight: readonly number[], options: ops.ConvOptions): Case {
  return {
    inputs: [over(1, x.map(fixed)), over(2, weight.map(fixed)), over(3, [fixed(weight[0] ?? 0)])],
    build: (t: Tensor, w?: Tensor, b?: Tensor) => ops.conv(t, given(w), b, options),
  }
}

function over(seed: number, axes: readonly Axis[]) {
  return numbers({ seed: () => seed }, 'float32', axes)
}
