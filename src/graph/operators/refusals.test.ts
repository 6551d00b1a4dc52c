/** What cannot be is refused when the graph is built, with a code, and not by a runtime later. */
import { describe, expect, test } from 'vitest'
import { ModalignError } from '../../errors.ts'
import { size } from '../dim.ts'
import { evaluate } from '../evaluate.ts'
import { constant, full, input, integers, type Tensor, weight } from '../tensor.ts'
import * as ops from './index.ts'

const f = (...shape: readonly (number | ReturnType<typeof size>)[]): Tensor => input('f', 'float32', shape)
const i = (...shape: readonly number[]): Tensor => input('i', 'int64', shape)
const mask = (...shape: readonly number[]): Tensor => input('mask', 'bool', shape)
const n = size('n')

const refusals: Readonly<Record<string, readonly (readonly [what: string, act: () => unknown])[]>> = {
  GRAPH_DTYPE: [
    ['exp of integers', () => ops.exp(i(2))],
    ['softmax of integers', () => ops.softmax(i(2))],
    ['gelu of booleans', () => ops.gelu(mask(2))],
    ['operands of two types', () => ops.add(f(2), i(2))],
    ['a condition that is no bool', () => ops.where(f(2), f(2), f(2))],
    ['branches of two types', () => ops.where(mask(2), f(2), i(2))],
    ['logic on numbers', () => ops.and(f(2), f(2))],
    ['logic on numbers', () => ops.or(i(2), mask(2))],
    ['negation of a number', () => ops.not(f(2))],
    ['floating indices', () => ops.gather(f(3), f(2))],
    ['floating indices', () => ops.gatherElements(f(3), f(3), 0)],
    ['an average of integers', () => ops.averagePool(i(1, 1, 4), [2])],
    ['a resized mask', () => ops.resize(mask(1, 1, 4), [2], { mode: 'nearest' })],
    ['a convolution of two types', () => ops.conv(f(1, 1, 4), i(1, 1, 2))],
    ['a number in a type that is not written', () => full(1, 'uint8', [1])],
  ],
  GRAPH_BROADCAST: [
    ['sizes that differ', () => ops.add(f(2), f(3))],
    ['a name and a number', () => ops.mul(f(n), f(3))],
    ['two names', () => ops.sub(f(n), f(size('m')))],
    ['a shrinking expansion', () => ops.expand(f(3), [1])],
    ['leading axes of a product', () => ops.matmul(f(2, 3, 4), f(3, 4, 5))],
  ],
  GRAPH_MATMUL: [
    ['inner sizes that differ', () => ops.matmul(f(2, 3), f(2, 3))],
    ['a vector', () => ops.matmul(f(3), f(3, 2))],
    ['inner sizes of Gemm', () => ops.gemm(f(2, 3), f(3, 2), undefined, { transB: true })],
    ['a C that would make the result grow', () => ops.gemm(f(1, 3), f(3, 2), f(4, 2))],
  ],
  GRAPH_AXIS: [
    ['an axis behind the last', () => ops.softmax(f(2, 3), 2)],
    ['a negative axis before the first', () => ops.reduceSum(f(2), [-2])],
    ['an axis that is no integer', () => ops.cumSum(f(2), 0.5)],
    ['no axis in a scalar', () => ops.argMax(f(), 0)],
    ['a permutation that repeats', () => ops.transpose(f(2, 3), [0, 0])],
    ['a permutation that is too short', () => ops.transpose(f(2, 3), [0])],
    ['squeezing a size that is not 1', () => ops.squeeze(f(2, 1), [0])],
    ['squeezing an axis twice', () => ops.squeeze(f(1, 2), [0, -2])],
    ['one new axis twice', () => ops.unsqueeze(f(2), [0, 0])],
    ['a concatenation of nothing', () => ops.concat([], 0)],
    ['no spatial axis', () => ops.resize(f(1, 2), [], { mode: 'linear' })],
  ],
  GRAPH_SHAPE: [
    ['pieces that do not add up', () => ops.split(f(5), [2, 2], 0)],
    ['one piece that is not the whole', () => ops.split(f(5), [4], 0)],
    ['a negative piece', () => ops.split(f(5), [6, -1], 0)],
    ['a concatenation across other sizes', () => ops.concat([f(2, 3), f(2, 4)], 0)],
    ['a concatenation of two types', () => ops.concat([f(2), i(2)], 0)],
    ['negative padding', () => ops.pad(f(3), [-1], [0])],
    ['padding of another rank', () => ops.pad(f(3), [1, 0], [0])],
    ['a weight of another width', () => ops.layerNormalization(f(2, 3), f(2))],
    ['index tuples longer than the rank', () => ops.gatherNd(f(3), i(1, 2))],
    ['index tuples longer than the rank', () => ops.scatterNd(f(3), i(1, 2), f(1))],
    ['updates of another shape', () => ops.scatterNd(f(3, 2), i(1, 1), f(2))],
    ['updates of another shape', () => ops.scatterElements(f(3, 2), i(1, 2), f(2, 2), 0)],
    ['indices of another rank', () => ops.gatherElements(f(3, 2), i(3), 0)],
    ['indices that reach further', () => ops.gatherElements(f(3, 2), i(3, 3), 0)],
    ['a triangle of a vector', () => ops.trilu(f(3), { upper: true })],
    ['channels that the weight does not have', () => ops.conv(f(1, 3, 8), f(4, 2, 3))],
    ['groups that do not divide the channels', () => ops.conv(f(1, 3, 8), f(4, 1, 3), undefined, { groups: 2 })],
    ['groups that do not divide the filters', () => ops.conv(f(1, 4, 8), f(3, 2, 3), undefined, { groups: 2 })],
    ['a bias of another width', () => ops.conv(f(1, 2, 8), f(4, 2, 3), f(3))],
    ['a transposed weight of another depth', () => ops.convTranspose(f(1, 3, 8), f(2, 3, 3))],
    ['sizes of another rank', () => ops.resize(f(1, 2, 4, 4), [8], { mode: 'linear' })],
    ['a size of 0', () => ops.resize(f(1, 2, 4, 4), [8, 0], { mode: 'linear' })],
    ['cubic over one axis', () => ops.resize(f(1, 2, 4), [8], { mode: 'cubic' })],
  ],
  GRAPH_RESHAPE: [
    ['another number of elements', () => ops.reshape(f(2, 3), [5])],
    ['another polynomial', () => ops.reshape(f(n, 2), [n, 3])],
  ],
  GRAPH_SLICE: [
    ['an end behind the axis', () => ops.slice(f(3), [{ axis: 0, end: 4 }])],
    ['a start behind the end', () => ops.slice(f(3), [{ axis: 0, start: 2, end: 1 }])],
    ['a start before the axis', () => ops.slice(f(3), [{ axis: 0, start: -4 }])],
    ['a step of 0', () => ops.slice(f(3), [{ axis: 0, step: 0 }])],
    ['steps over a named size', () => ops.slice(f(n), [{ axis: 0, step: 2 }])],
  ],
  GRAPH_WINDOW: [
    ['no spatial axis', () => ops.conv(f(1, 2), f(3, 2))],
    ['three spatial axes', () => ops.conv(f(1, 2, 3, 3, 3), f(3, 2, 1, 1, 1))],
    ['a stride of 0', () => ops.conv(f(1, 2, 8), f(4, 2, 3), undefined, { strides: [0] })],
    ['one stride for two axes', () => ops.conv(f(1, 2, 8, 8), f(4, 2, 3, 3), undefined, { strides: [2] })],
    ['one pad for two ends', () => ops.conv(f(1, 2, 8), f(4, 2, 3), undefined, { pads: [1] })],
    ['no groups', () => ops.conv(f(1, 2, 8), f(4, 2, 3), undefined, { groups: 0 })],
    ['a kernel larger than the input', () => ops.conv(f(1, 2, 2), f(4, 2, 3))],
    ['a crop that leaves nothing', () => ops.convTranspose(f(1, 2, 1), f(2, 1, 3), undefined, { pads: [2, 2] })],
    ['output padding of a whole stride', () => ops.convTranspose(f(1, 2, 4), f(2, 1, 3), undefined, { strides: [2], outputPadding: [2] })],
    ['a pool of another rank', () => ops.averagePool(f(1, 2, 4, 4), [2])],
    ['a pool with a window in the padding alone', () => ops.maxPool(f(1, 2, 4), [2], { pads: [2, 0] })],
  ],
  GRAPH_SIZE_NOT_FIXED: [
    ['strides over a named size', () => ops.conv(f(1, 2, n), f(4, 2, 3), undefined, { strides: [2] })],
    ['interpolation of a named size', () => ops.resize(f(1, 2, n), [4], { mode: 'linear' })],
    ['index tuples of a named length', () => ops.gatherNd(f(3), input('i', 'int64', [2, n]))],
  ],
  GRAPH_RANGE: [['a minimum above the maximum', () => ops.clip(f(2), { min: 1, max: 0 })]],
  GRAPH_OPERANDS: [['two numbers', () => ops.add(1, 2)]],
  GRAPH_CONSTANT_SIZE: [['too little data', () => constant({ dtype: 'float32', dims: [3], data: new Float32Array(2) })]],
  GRAPH_INDEX: [
    ['an index behind the last row', () => evaluate([ops.gather(full(1, 'float32', [3]), integers([3]))], {})],
    ['a negative index before the first', () => evaluate([ops.gatherNd(full(1, 'float32', [3, 2]), integers([0, -3], [1, 2]))], {})],
    ['an index behind the last element', () => evaluate([ops.gatherElements(full(1, 'float32', [3]), integers([3]), 0)], {})],
  ],
}

describe.each(Object.entries(refusals))('%s', (code, cases) => {
  test.each(cases)('%s', (_, act) => {
    expect(act).toThrow(ModalignError)
    expect(act).toThrow(expect.objectContaining({ code }))
  })
})

test('strides over a named size are fine where they divide it', () => {
  const x = input('x', 'float32', [1, 2, ops.reshape(f(n, 2), [n, 2]).shape[0] ?? 0])
  expect(
    ops
      .conv(ops.concat([x, x], 2), weight('w', 'float32', [4, 2, 3], { kind: 'memory', value: zeros }), undefined, {
        strides: [2],
        pads: [1, 1],
      })
      .shape.map(String),
  ).toEqual(['1', '4', 'n'])
})

const zeros = { dtype: 'float32', dims: [4, 2, 3], data: new Float32Array(24) } as const
