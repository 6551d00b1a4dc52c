/** For each primitive, random applications of it: what the laws of gradients and the tests of providers' kernels walk over. */
import { addDims, type Dim, multiplyDims, subtractDims, sumOf } from '../../src/graph/dim.ts'
import type { Value } from '../../src/graph/evaluate.ts'
import * as ops from '../../src/graph/operators/index.ts'
import type { Tensor } from '../../src/graph/tensor.ts'
import type { DataType } from '../../src/tensors.ts'
import { type Axis, axes, axis, broadcastPair, type Draw, fixed, permutation, random, shuffled, tokens } from './draw.ts'

/** A value to feed, and the shape under which the graph knows it. */
export interface Feed {
  readonly shape: readonly Dim[]
  readonly value: Value
}
export interface Case {
  readonly inputs: readonly Feed[]
  build(first: Tensor, ...others: readonly Tensor[]): Tensor | readonly Tensor[]
  /** Floating inputs that the operator takes as given: it has no gradient for them. */
  readonly frozen?: readonly number[]
  /** Inputs in each of which, the others held, the operator is linear up to a constant. */
  readonly affineIn?: readonly number[]
}
export type CaseOf = (draw: Draw, dtype: Floating) => Case
export type Floating = 'float32' | 'float64'

interface Range {
  readonly min?: number
  readonly max?: number
  /** Kinks: values stay 0.05 away from them. */
  readonly avoid?: readonly number[]
}

/** Random numbers over axes, exact in float32. */
export function numbers(
  draw: Pick<Draw, 'seed'>,
  dtype: DataType,
  over: readonly Axis[],
  { min = -2, max = 2, avoid = [] }: Range = {},
): Feed {
  const next = random(draw.seed())
  return feed(dtype, over, () => {
    let element = Math.fround(min + (max - min) * next())
    for (const kink of avoid) if (Math.abs(element - kink) < 0.05) element = Math.fround(kink + (element < kink ? -0.07 : 0.07))
    return element
  })
}

/** Numbers of which no two are closer than 0.08: maxima without ties. */
function distinct(draw: Draw, dtype: DataType, over: readonly Axis[]): Feed {
  const count = over.reduce((product, { length }) => product * length, 1)
  const order = shuffled(
    Array.from({ length: count }, (_, index) => Math.fround((index - count / 2) * 0.1 + 0.013)),
    random(draw.seed()),
  )
  return feed(dtype, over, (position) => order[position] ?? 0)
}

export function indices(
  draw: Draw,
  over: readonly Axis[],
  length: number,
  { dtype = 'int64', negative = true }: { readonly dtype?: DataType; readonly negative?: boolean } = {},
): Feed {
  const next = random(draw.seed())
  return feed(dtype, over, () => Math.floor(next() * length) - (negative && next() < 0.3 ? length : 0))
}

function booleans(draw: Draw, over: readonly Axis[]): Feed {
  const next = random(draw.seed())
  return feed('bool', over, () => (next() < 0.5 ? 1 : 0))
}

function feed(dtype: DataType, over: readonly Axis[], element: (position: number) => number): Feed {
  const dims = over.map(({ length }) => length)
  const data = Float64Array.from({ length: dims.reduce((product, dim) => product * dim, 1) }, (_, position) => element(position))
  return { shape: over.map(({ dim }) => dim), value: { dtype, dims, data } }
}

function unary(f: (x: Tensor) => Tensor, range: Range = {}): CaseOf {
  return (draw, dtype) => ({ inputs: [numbers(draw, dtype, axes(draw, 0, 3, { empty: true }), range)], build: f })
}

function binary(
  f: (a: Tensor, b: Tensor) => Tensor,
  { a = {}, b = {}, affineIn }: { a?: Range; b?: Range; affineIn?: readonly number[] } = {},
): CaseOf {
  return (draw, dtype) => {
    const [first, second] = broadcastPair(draw, { empty: true })
    return { inputs: [numbers(draw, dtype, first, a), numbers(draw, dtype, second, b)], build: f, ...(affineIn && { affineIn }) }
  }
}

/** Two operands that differ everywhere by more than a step of the stencil. */
function binaryWithoutTies(f: (a: Tensor, b: Tensor) => Tensor): CaseOf {
  return (draw, dtype) => {
    const [first, second] = broadcastPair(draw, { empty: true })
    const [a, b] = [distinct(draw, dtype, first), distinct(draw, dtype, second)]
    return { inputs: [a, { ...b, value: { ...b.value, data: b.value.data.map((v) => Math.fround(v + 0.025)) } }], build: f }
  }
}

function reduction(
  f: (x: Tensor, over: readonly number[], options: { keepdims: boolean }) => Tensor,
  values: (draw: Draw, dtype: DataType, over: readonly Axis[]) => Feed = numbers,
): CaseOf {
  return (draw, dtype) => {
    const shape = axes(draw, 1, 4)
    const x = values(draw, dtype, shape)
    const over = shape.map((_, index) => index).filter(() => draw.bool())
    const chosen = over.length === 0 ? [draw.int(-shape.length, shape.length - 1)] : over
    const keepdims = draw.bool()
    return { inputs: [x], build: (t) => f(t, chosen, { keepdims }), affineIn: f === ops.reduceMax ? [] : [0] }
  }
}

function alongAxis(f: (x: Tensor, axis: number) => Tensor): CaseOf {
  return (draw, dtype) => {
    const shape = axes(draw, 1, 3)
    const chosen = draw.int(-shape.length, shape.length - 1)
    return { inputs: [numbers(draw, dtype, shape)], build: (t) => f(t, chosen) }
  }
}

interface Convolution {
  readonly groups: number
  readonly strides: readonly number[]
  readonly dilations: readonly number[]
  readonly pads: readonly number[]
  readonly kernel: readonly number[]
  readonly spatial: readonly Axis[]
}

/** One or two spatial axes, each with room for a window; an axis without strides may be named. */
function convolution(draw: Draw): Convolution {
  const rank = draw.int(1, 2)
  const each = <T>(f: (index: number) => T): readonly T[] => Array.from({ length: rank }, (_, index) => f(index))
  const kernel = each(() => draw.int(1, 3))
  const strides = each(() => draw.int(1, 3))
  const dilations = each(() => draw.int(1, 2))
  const pads = [...each((index) => draw.int(0, (kernel[index] ?? 1) - 1)), ...each((index) => draw.int(0, (kernel[index] ?? 1) - 1))]
  const spatial = each((index) => {
    const reach = ((kernel[index] ?? 1) - 1) * (dilations[index] ?? 1) + 1
    const padded = (pads[index] ?? 0) + (pads[index + rank] ?? 0)
    if (strides[index] === 1 && reach <= 3 + padded && draw.int(0, 3) === 0) return tokens
    return fixed(Math.max(0, reach - padded - 1) + draw.length())
  })
  return { groups: draw.int(1, 3), strides, dilations, pads, kernel, spatial }
}

function indexed(dims: readonly number[], data: readonly number[]): Feed {
  return feed('int64', dims.map(fixed), (position) => data[position] ?? 0)
}

/** Every primitive that has a gradient. */
export const differentiable: Readonly<Record<string, CaseOf>> = {
  Abs: unary(ops.abs, { avoid: [0] }),
  Add: binary(ops.add, { affineIn: [0, 1] }),
  AveragePool(draw, dtype) {
    const { kernel, strides, pads, spatial } = convolution(draw)
    const countIncludePad = draw.bool()
    const x = numbers(draw, dtype, [axis(draw), axis(draw), ...roomFor(kernel, pads, spatial)])
    return { inputs: [x], build: (t) => ops.averagePool(t, kernel, { strides, pads, countIncludePad }), affineIn: [0] }
  },
  Cast: (draw, dtype) => ({
    inputs: [numbers(draw, dtype, axes(draw, 0, 3))],
    build: (t) => ops.cast(t, dtype === 'float64' ? 'float32' : 'float64'),
    affineIn: [0],
  }),
  Clip(draw, dtype) {
    const options = draw.pick([{ min: -0.5 }, { max: 0.75 }, { min: -1, max: 1 }])
    return { inputs: [numbers(draw, dtype, axes(draw, 0, 3), { avoid: [-1, -0.5, 0.75, 1] })], build: (t) => ops.clip(t, options) }
  },
  Concat(draw, dtype) {
    const shape = axes(draw, 1, 3)
    const along = draw.int(0, shape.length - 1)
    const pieces = Array.from({ length: draw.int(2, 3) }, () =>
      numbers(
        draw,
        dtype,
        shape.map((one, index) => (index === along ? axis(draw, { empty: true }) : one)),
      ),
    )
    return { inputs: pieces, build: (...tensors) => ops.concat(tensors, along), affineIn: [0, 1] }
  },
  Conv(draw, dtype) {
    const { groups, kernel, spatial, ...windows } = convolution(draw)
    const [depth, perGroup] = [draw.length(), draw.length()]
    const x = numbers(draw, dtype, [axis(draw), fixed(groups * depth), ...spatial])
    const weight = numbers(draw, dtype, [fixed(groups * perGroup), fixed(depth), ...kernel.map(fixed)])
    const bias = draw.bool() ? [numbers(draw, dtype, [fixed(groups * perGroup)])] : []
    return { inputs: [x, weight, ...bias], build: (t, w, b) => ops.conv(t, given(w), b, { groups, ...windows }), affineIn: [0, 1] }
  },
  ConvTranspose(draw, dtype) {
    const { groups, kernel, strides, dilations, pads, spatial } = convolution(draw)
    const [depth, perGroup] = [draw.length(), draw.length()]
    const outputPadding = strides.map((stride) => draw.int(0, stride - 1))
    // Enough input for a positive size behind the crop.
    const lengths = spatial.map((one) => (typeof one.dim === 'number' ? fixed(Math.max(one.length, 3)) : one))
    const x = numbers(draw, dtype, [axis(draw), fixed(groups * depth), ...lengths])
    const weight = numbers(draw, dtype, [fixed(groups * depth), fixed(perGroup), ...kernel.map(fixed)])
    const bias = draw.bool() ? [numbers(draw, dtype, [fixed(groups * perGroup)])] : []
    const options = { groups, strides, dilations, pads, outputPadding }
    return { inputs: [x, weight, ...bias], build: (t, w, b) => ops.convTranspose(t, given(w), b, options), affineIn: [0, 1] }
  },
  Cos: unary(ops.cos),
  CumSum(draw, dtype) {
    const shape = axes(draw, 1, 3)
    const along = draw.int(-shape.length, shape.length - 1)
    const options = { exclusive: draw.bool(), reverse: draw.bool() }
    return { inputs: [numbers(draw, dtype, shape)], build: (t) => ops.cumSum(t, along, options), affineIn: [0] }
  },
  Div: binary(ops.div, { b: { min: 0.5, max: 2 }, affineIn: [0] }),
  Erf: unary(ops.erf),
  Exp: unary(ops.exp),
  Expand(draw, dtype) {
    const [from, to] = broadcastPair(draw)
    const rank = Math.max(from.length, to.length)
    const shape = Array.from({ length: rank }, (_, index) => {
      const [a, b] = [from[index - rank + from.length], to[index - rank + to.length]]
      return a === undefined || a.dim === 1 ? (b ?? fixed(1)) : a
    })
    const bound = numbers(draw, dtype, shape)
    // The second input binds the named sizes.
    return {
      inputs: [numbers(draw, dtype, from), bound],
      build: (t, other) =>
        ops.add(
          ops.expand(
            t,
            shape.map(({ dim }) => dim),
          ),
          given(other),
        ),
      affineIn: [0],
    }
  },
  Flatten(draw, dtype) {
    const shape = axes(draw, 0, 4)
    const along = draw.int(0, shape.length)
    return { inputs: [numbers(draw, dtype, shape)], build: (t) => ops.flatten(t, along), affineIn: [0] }
  },
  Gather(draw, dtype) {
    const shape = axes(draw, 1, 3)
    const along = draw.int(0, shape.length - 1)
    const places = indices(draw, axes(draw, 0, 2), shape[along]?.length ?? 0, { dtype: draw.pick(['int64', 'int32']) })
    return { inputs: [numbers(draw, dtype, shape), places], build: (t, i) => ops.gather(t, given(i), along), affineIn: [0] }
  },
  GatherElements(draw, dtype) {
    const shape = axes(draw, 1, 3)
    const along = draw.int(0, shape.length - 1)
    const over = shape.map((one, index) => (index === along ? axis(draw) : one))
    const places = indices(draw, over, shape[along]?.length ?? 0)
    return { inputs: [numbers(draw, dtype, shape), places], build: (t, i) => ops.gatherElements(t, given(i), along), affineIn: [0] }
  },
  GatherND(draw, dtype) {
    const shape = axes(draw, 1, 3)
    const depth = draw.int(1, shape.length)
    const places = tuples(draw, axes(draw, 0, 2), shape.slice(0, depth))
    return { inputs: [numbers(draw, dtype, shape), places], build: (t, i) => ops.gatherNd(t, given(i)), affineIn: [0] }
  },
  Gelu(draw, dtype) {
    const approximate = draw.pick(['none', 'tanh'] as const)
    return { inputs: [numbers(draw, dtype, axes(draw, 0, 3), { min: -4, max: 4 })], build: (t) => ops.gelu(t, approximate) }
  },
  Gemm(draw, dtype) {
    const [m, k, n] = [axis(draw), axis(draw), axis(draw)]
    const options = { alpha: draw.pick([1, 0.5]), beta: draw.pick([1, -2]), transA: draw.bool(), transB: draw.bool() }
    const a = numbers(draw, dtype, options.transA ? [k, m] : [m, k])
    const b = numbers(draw, dtype, options.transB ? [n, k] : [k, n])
    const c = draw.pick<readonly (readonly Axis[])[]>([[], [[m, n]], [[n]], [[fixed(1), n]], [[m, fixed(1)]], [[]]])
    return {
      inputs: [a, b, ...c.map((over) => numbers(draw, dtype, over))],
      build: (x, y, z) => ops.gemm(x, given(y), z, options),
      affineIn: [0, 1],
    }
  },
  HardSigmoid(draw, dtype) {
    const options = draw.pick([{}, { alpha: 0.25, beta: 0.5 }])
    return {
      inputs: [numbers(draw, dtype, axes(draw, 0, 3), { min: -5, max: 5, avoid: [-3, -2, 2, 3] })],
      build: (t) => ops.hardSigmoid(t, options),
    }
  },
  HardSwish: unary(ops.hardSwish, { min: -5, max: 5, avoid: [-3, 3] }),
  LayerNormalization(draw, dtype) {
    const channels = fixed(draw.length() + 2)
    // Channels far apart: where they nearly agree, higher derivatives explode and the stencil, not the gradient, is wrong.
    const x = spread(numbers(draw, dtype, [...axes(draw, 0, 2), channels]), channels.length)
    const bias = draw.bool() ? [numbers(draw, dtype, [channels])] : []
    const epsilon = draw.pick([1e-5, 1e-2])
    return {
      inputs: [x, numbers(draw, dtype, [channels]), ...bias],
      build: (t, w, b) => ops.layerNormalization(t, given(w), b, { epsilon }),
    }
  },
  LeakyRelu: unary((x) => ops.leakyRelu(x, 0.125), { avoid: [0] }),
  Log: unary(ops.log, { min: 0.3, max: 3 }),
  LogSoftmax: alongAxis(ops.logSoftmax),
  MatMul(draw, dtype) {
    const [m, k, n] = [axis(draw), axis(draw), axis(draw)]
    const [a, b] = broadcastPair(draw)
    return {
      inputs: [numbers(draw, dtype, [...a, m, k]), numbers(draw, dtype, [...b, k, n])],
      build: (x, y) => ops.matmul(x, given(y)),
      affineIn: [0, 1],
    }
  },
  Max: binaryWithoutTies(ops.maximum),
  MaxPool(draw, dtype) {
    const { kernel, strides, pads, spatial } = convolution(draw)
    const x = distinct(draw, dtype, [axis(draw), axis(draw), ...roomFor(kernel, pads, spatial)])
    return { inputs: [x], build: (t) => ops.maxPool(t, kernel, { strides, pads }) }
  },
  Min: binaryWithoutTies(ops.minimum),
  Mul: binary(ops.mul, { affineIn: [0, 1] }),
  Neg: unary(ops.neg),
  Pad(draw, dtype) {
    const shape = axes(draw, 1, 3)
    const counts = (): readonly Dim[] => shape.map(({ dim }) => (typeof dim === 'number' ? draw.int(0, 2) : draw.pick<Dim>([0, 1, dim])))
    const [before, after] = [counts(), counts()]
    return { inputs: [numbers(draw, dtype, shape)], build: (t) => ops.pad(t, before, after), affineIn: [0] }
  },
  Pow: binary(ops.pow, { a: { min: 0.5, max: 2 }, b: { min: -2, max: 3 } }),
  Reciprocal: unary(ops.reciprocal, { min: 0.5, max: 2 }),
  ReduceMax: reduction(ops.reduceMax, distinct),
  ReduceMean: reduction(ops.reduceMean),
  ReduceSum: reduction(ops.reduceSum),
  Relu: unary(ops.relu, { avoid: [0] }),
  Reshape(draw, dtype) {
    const shape = axes(draw, 0, 3, { empty: true })
    // The axes in another order, two of them joined, and a 1: as many elements, named or not.
    const order = permutation(draw, shape.length).map((index) => shape[index]?.dim ?? 1)
    const [first = 1, second = 1, ...others] = order
    const target = draw.bool() ? [...order, 1] : [multiplyDims(first, second), ...others]
    return { inputs: [numbers(draw, dtype, shape)], build: (t) => ops.reshape(t, target), affineIn: [0] }
  },
  Resize(draw, dtype) {
    const rank = draw.int(1, 2)
    const mode = draw.pick(rank === 1 ? (['nearest', 'linear'] as const) : (['nearest', 'linear', 'cubic'] as const))
    const coordinates = draw.pick(['half_pixel', 'align_corners', 'asymmetric'] as const)
    const spatial = Array.from({ length: rank }, () => fixed(draw.length()))
    const sizes = spatial.map(() => draw.int(1, 6))
    return {
      inputs: [numbers(draw, dtype, [axis(draw), axis(draw), ...spatial])],
      build: (t) => ops.resize(t, sizes, { mode, coordinates }),
      affineIn: [0],
    }
  },
  ScatterElements(draw, dtype) {
    const along = draw.int(0, 1)
    const [rows, columns] = [draw.int(1, 4), draw.int(1, 4)]
    const written = draw.int(1, along === 0 ? rows : columns)
    const dims = along === 0 ? [written, draw.int(1, columns)] : [draw.int(1, rows), written]
    // Along the axis each line of indices is part of a permutation: nothing is written twice.
    const lines = Array.from({ length: dims[1 - along] ?? 0 }, () => permutation(draw, along === 0 ? rows : columns))
    const [height = 0, width = 0] = dims
    const places = Array.from({ length: height * width }, (_, position) => {
      const [row, column] = [Math.floor(position / width), position % width]
      return (along === 0 ? lines[column]?.[row] : lines[row]?.[column]) ?? 0
    })
    const repeated = draw.bool()
    const index = repeated ? indices(draw, dims.map(fixed), along === 0 ? rows : columns) : indexed(dims, places)
    return {
      inputs: [numbers(draw, dtype, [fixed(rows), fixed(columns)]), index, numbers(draw, dtype, dims.map(fixed))],
      build: (data, i, updates) => ops.scatterElements(data, given(i), given(updates), along, repeated ? 'add' : 'none'),
      affineIn: [0, 2],
    }
  },
  ScatterND(draw, dtype) {
    const shape = axes(draw, 1, 3)
    const repeated = draw.bool()
    const depth = repeated ? draw.int(1, shape.length) : 1
    const leading = shape[0]?.length ?? 1
    const over = repeated ? axes(draw, 0, 2) : [fixed(draw.int(1, leading))]
    const places = repeated ? tuples(draw, over, shape.slice(0, depth)) : indexed([over[0]?.length ?? 0, 1], permutation(draw, leading))
    return {
      inputs: [numbers(draw, dtype, shape), places, numbers(draw, dtype, [...over, ...shape.slice(depth)])],
      build: (data, i, updates) => ops.scatterNd(data, given(i), given(updates), repeated ? 'add' : 'none'),
      affineIn: [0, 2],
    }
  },
  Sigmoid: unary(ops.sigmoid),
  Sin: unary(ops.sin),
  Slice(draw, dtype) {
    const shape = axes(draw, 1, 3)
    const ranges = shape.flatMap(({ dim }, index) => {
      if (draw.bool()) return []
      if (typeof dim !== 'number') return [{ axis: index, start: draw.pick<Dim>([0, 1]), end: draw.pick<Dim>([dim, subtractDims(dim, 1)]) }]
      const start = draw.int(0, dim)
      return [{ axis: index - shape.length, start, end: draw.int(start, dim), step: draw.int(1, 2) }]
    })
    return { inputs: [numbers(draw, dtype, shape)], build: (t) => ops.slice(t, ranges), affineIn: [0] }
  },
  Softmax: alongAxis(ops.softmax),
  Softplus: unary(ops.softplus),
  Split(draw, dtype) {
    const shape = axes(draw, 1, 3)
    const along = draw.int(0, shape.length - 1)
    const pieces = Array.from({ length: draw.int(2, 3) }, () => axis(draw, { empty: true }))
    const whole = { dim: sumOf(pieces.map(({ dim }) => dim)), length: pieces.reduce((sum, { length }) => sum + length, 0) }
    const x = numbers(
      draw,
      dtype,
      shape.map((one, index) => (index === along ? whole : one)),
    )
    const used = draw.int(1, pieces.length)
    const sizes = pieces.map(({ dim }) => dim)
    // Whatever names the pieces have, an input binds them; only some of the pieces are read.
    const binding = numbers(draw, dtype, pieces)
    return { inputs: [x, binding], build: (t, b) => [...ops.split(t, sizes, along).slice(0, used), given(b)], affineIn: [0] }
  },
  Sqrt: unary(ops.sqrt, { min: 0.3, max: 3 }),
  Squeeze(draw, dtype) {
    const shape = [fixed(1), ...axes(draw, 0, 3), fixed(1)]
    const chosen = draw.pick([[0], [-1], [0, shape.length - 1]])
    return { inputs: [numbers(draw, dtype, shape)], build: (t) => ops.squeeze(t, chosen), affineIn: [0] }
  },
  Sub: binary(ops.sub, { affineIn: [0, 1] }),
  Tanh: unary(ops.tanh),
  Transpose(draw, dtype) {
    const shape = axes(draw, 0, 4, { empty: true })
    const perm = permutation(draw, shape.length)
    return { inputs: [numbers(draw, dtype, shape)], build: (t) => ops.transpose(t, perm), affineIn: [0] }
  },
  Trilu(draw, dtype) {
    const options = { upper: draw.bool(), k: draw.int(-2, 2) }
    return {
      inputs: [numbers(draw, dtype, [...axes(draw, 0, 1), axis(draw), axis(draw)])],
      build: (t) => ops.trilu(t, options),
      affineIn: [0],
    }
  },
  Unsqueeze(draw, dtype) {
    const shape = axes(draw, 0, 3)
    const chosen = draw.pick([[0], [-1], [0, shape.length + 1]])
    return { inputs: [numbers(draw, dtype, shape)], build: (t) => ops.unsqueeze(t, chosen), affineIn: [0] }
  },
  Where(draw, dtype) {
    const [a, b] = broadcastPair(draw)
    const condition = booleans(draw, draw.bool() ? a : b.map((one) => (draw.bool() ? fixed(1) : one)))
    return {
      inputs: [condition, numbers(draw, dtype, a), numbers(draw, dtype, b)],
      build: (c, x, y) => ops.where(c, given(x), given(y)),
      affineIn: [1, 2],
    }
  },
}

/** Every primitive that has none: masks, indices, shapes and steps. */
export const undifferentiable: Readonly<Record<string, CaseOf>> = {
  And: logical(ops.and),
  ArgMax(draw, dtype) {
    const shape = axes(draw, 1, 3)
    const along = draw.int(-shape.length, shape.length - 1)
    const keepdims = draw.bool()
    return { inputs: [distinct(draw, dtype, shape)], build: (t) => ops.argMax(t, along, { keepdims }) }
  },
  Equal: comparison(ops.equal),
  Floor: unary(ops.floor, { avoid: [-1, 0, 1] }),
  Greater: comparison(ops.greater),
  GreaterOrEqual: comparison(ops.greaterOrEqual),
  Less: comparison(ops.less),
  LessOrEqual: comparison(ops.lessOrEqual),
  Not: (draw) => ({ inputs: [booleans(draw, axes(draw, 0, 3))], build: ops.not }),
  Or: logical(ops.or),
  Range(draw, dtype) {
    const length = draw.pick<Dim>([tokens.dim, addDims(multiplyDims(2, tokens.dim), 1), 4])
    // The input binds the named size.
    return { inputs: [numbers(draw, dtype, [tokens])], build: () => ops.range(length) }
  },
  ReduceProd: reduction(ops.reduceProd),
  Shape: (draw, dtype) => ({ inputs: [numbers(draw, dtype, axes(draw, 0, 3))], build: ops.shapeOf }),
  Sign: unary(ops.sign, { avoid: [0] }),
}

/** Small whole numbers, so that equality happens. */
function comparison(f: (a: Tensor, b: Tensor) => Tensor): CaseOf {
  return (draw, dtype) => {
    const [a, b] = broadcastPair(draw)
    const [first, second] = [a, b].map((over) => indices(draw, over, 3, { dtype, negative: false }))
    return { inputs: [first, second].filter((one) => one !== undefined), build: (x, y) => f(x, given(y)) }
  }
}

function logical(f: (a: Tensor, b: Tensor) => Tensor): CaseOf {
  return (draw) => {
    const [a, b] = broadcastPair(draw)
    return { inputs: [booleans(draw, a), booleans(draw, b)], build: (x, y) => f(x, given(y)) }
  }
}

/** Index tuples, each into the leading axes `within`. */
function tuples(draw: Draw, over: readonly Axis[], within: readonly Axis[]): Feed {
  const next = random(draw.seed())
  return feed('int64', [...over, fixed(within.length)], (position) => {
    const length = within[position % within.length]?.length ?? 1
    return Math.floor(next() * length) - (next() < 0.3 ? length : 0)
  })
}

/** Pools have no dilation, so the room that a convolution needs is more than enough; only the sizes that are named must still fit. */
function roomFor(kernel: readonly number[], pads: readonly number[], spatial: readonly Axis[]): readonly Axis[] {
  return spatial.map((one, index) => {
    const needed = (kernel[index] ?? 1) - (pads[index] ?? 0) - (pads[index + kernel.length] ?? 0)
    return one.length >= needed ? one : fixed(needed)
  })
}

export function given(tensor: Tensor | undefined): Tensor {
  if (tensor === undefined) throw new Error('a case was built with too few inputs')
  return tensor
}

/** Raised by 4 from each place of the last axis to the next. */
function spread({ shape, value }: Feed, width: number): Feed {
  return { shape, value: { ...value, data: value.data.map((element, position) => Math.fround(element + 4 * (position % width))) } }
}
