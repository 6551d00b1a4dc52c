/** PyTorch's values and gradients (test/fixtures/operators), and each of its cases said in our operators. */
import { readFileSync } from 'node:fs'
import { z } from 'zod'
import { quickGelu, silu, swiglu } from '../../src/graph/composites/activations.ts'
import { scaledDotProductAttention } from '../../src/graph/composites/attention.ts'
import { linearCrossEntropy, tokenCrossEntropy } from '../../src/graph/composites/cross-entropy.ts'
import { matmulTransposed } from '../../src/graph/composites/linear.ts'
import { rmsNormalization } from '../../src/graph/composites/rms-normalization.ts'
import { rotaryEmbedding } from '../../src/graph/composites/rotary-embedding.ts'
import type { Value } from '../../src/graph/evaluate.ts'
import * as ops from '../../src/graph/operators/index.ts'
import type { Tensor } from '../../src/graph/tensor.ts'
import { type Floating, given } from './cases.ts'

const array = z.object({ dtype: z.enum(['float', 'int64', 'bool']), dims: z.array(z.number()), data: z.array(z.number()) })
const schema = z.object({
  source: z.string(),
  cases: z.array(
    z.object({
      operator: z.string(),
      label: z.string(),
      attributes: z.record(z.string(), z.unknown()),
      inputs: z.array(array),
      outputs: z.array(array),
      directions: z.array(array.nullable()),
      gradients: z.array(array.nullable()),
    }),
  ),
})
export type PytorchArray = z.infer<typeof array>
export type PytorchCase = z.infer<typeof schema>['cases'][number]

export const pytorchCases: readonly PytorchCase[] = schema.parse(
  JSON.parse(readFileSync(new URL('../fixtures/operators/operators.json', import.meta.url), 'utf8')),
).cases

export function arrayValue({ dtype, dims, data }: PytorchArray, floating: Floating): Value {
  return { dtype: dtype === 'float' ? floating : dtype, dims, data: Float64Array.from(data) }
}

/** The case's outputs. @throws where an attribute is not what the operator takes */
export function applied({ operator, attributes }: PytorchCase, tensors: readonly Tensor[], floating: Floating): readonly Tensor[] {
  const apply = table[operator]
  if (apply === undefined) throw new Error(`no way to say ${operator}`)
  const result = apply(tensors, attributes.to === 'float' ? { ...attributes, to: floating } : attributes)
  return 'node' in result ? [result] : result
}

type Application = (tensors: readonly Tensor[], attributes: unknown) => Tensor | readonly Tensor[]

function one(f: (x: Tensor) => Tensor | readonly Tensor[]): Application {
  return ([x]) => f(given(x))
}

function two(f: (a: Tensor, b: Tensor) => Tensor): Application {
  return ([a, b]) => f(given(a), given(b))
}

/** An operator whose attributes have a schema; further tensors may be missing. */
function withAttributes<S extends z.ZodType>(
  attributes: S,
  f: (attributes: z.output<S>, x: Tensor, ...others: readonly (Tensor | undefined)[]) => Tensor | readonly Tensor[],
): Application {
  return ([x, ...others], given_) => f(attributes.parse(given_), given(x), ...others)
}

const ints = z.array(z.number())
const over = z.object({ axes: ints, keepdims: z.boolean() })
const along = z.object({ axis: z.number() })
const scan = z.object({ axis: z.number(), exclusive: z.boolean(), reverse: z.boolean() })
const windows = z.object({ groups: z.number(), strides: ints, pads: ints, dilations: ints })
const pool = z.object({ kernel: ints, strides: ints, pads: ints })
const scatter = z.object({ reduction: z.enum(['none', 'add']) })
const epsilon = z.object({ epsilon: z.number() })

const table: Readonly<Record<string, Application>> = {
  Abs: one(ops.abs),
  Add: two(ops.add),
  And: two(ops.and),
  ArgMax: withAttributes(z.object({ axis: z.number(), keepdims: z.boolean() }), ({ axis, keepdims }, x) =>
    ops.argMax(x, axis, { keepdims }),
  ),
  AveragePool: withAttributes(pool.extend({ countIncludePad: z.boolean() }), ({ kernel, ...options }, x) =>
    ops.averagePool(x, kernel, options),
  ),
  Cast: withAttributes(z.object({ to: z.enum(['int64', 'float32', 'float64']) }), ({ to }, x) => ops.cast(x, to)),
  Clip: withAttributes(z.object({ min: z.number().exactOptional(), max: z.number().exactOptional() }), (bounds, x) => ops.clip(x, bounds)),
  Concat: (tensors, attributes) => ops.concat(tensors, along.parse(attributes).axis),
  Conv: withAttributes(windows, (options, x, w, b) => ops.conv(x, given(w), b, options)),
  ConvTranspose: withAttributes(windows.extend({ outputPadding: ints }), (options, x, w, b) => ops.convTranspose(x, given(w), b, options)),
  Cos: one(ops.cos),
  CumSum: withAttributes(scan, ({ axis, ...options }, x) => ops.cumSum(x, axis, options)),
  Div: two(ops.div),
  Equal: two(ops.equal),
  Erf: one(ops.erf),
  Exp: one(ops.exp),
  Expand: withAttributes(z.object({ shape: ints }), ({ shape }, x) => ops.expand(x, shape)),
  Flatten: withAttributes(along, ({ axis }, x) => ops.flatten(x, axis)),
  Floor: one(ops.floor),
  Gather: withAttributes(along, ({ axis }, x, i) => ops.gather(x, given(i), axis)),
  GatherElements: withAttributes(along, ({ axis }, x, i) => ops.gatherElements(x, given(i), axis)),
  GatherND: two(ops.gatherNd),
  Gelu: withAttributes(z.object({ approximate: z.enum(['none', 'tanh']) }), ({ approximate }, x) => ops.gelu(x, approximate)),
  Gemm: withAttributes(z.object({ alpha: z.number(), beta: z.number(), transA: z.boolean(), transB: z.boolean() }), (options, a, b, c) =>
    ops.gemm(a, given(b), c, options),
  ),
  Greater: two(ops.greater),
  GreaterOrEqual: two(ops.greaterOrEqual),
  HardSigmoid: one((x) => ops.hardSigmoid(x)),
  HardSwish: one(ops.hardSwish),
  LayerNormalization: withAttributes(epsilon, (options, x, w, b) => ops.layerNormalization(x, given(w), b, options)),
  LeakyRelu: withAttributes(z.object({ alpha: z.number() }), ({ alpha }, x) => ops.leakyRelu(x, alpha)),
  Less: two(ops.less),
  LessOrEqual: two(ops.lessOrEqual),
  Log: one(ops.log),
  LogSoftmax: withAttributes(along, ({ axis }, x) => ops.logSoftmax(x, axis)),
  MatMul: two(ops.matmul),
  Max: two(ops.maximum),
  MaxPool: withAttributes(pool, ({ kernel, ...options }, x) => ops.maxPool(x, kernel, options)),
  Min: two(ops.minimum),
  Mul: two(ops.mul),
  Neg: one(ops.neg),
  Not: one(ops.not),
  Or: two(ops.or),
  Pad: withAttributes(z.object({ before: ints, after: ints }), ({ before, after }, x) => ops.pad(x, before, after)),
  Pow: two(ops.pow),
  Range: (_, attributes) => ops.range(z.object({ length: z.number() }).parse(attributes).length),
  Reciprocal: one(ops.reciprocal),
  ReduceMax: withAttributes(over, ({ axes, keepdims }, x) => ops.reduceMax(x, axes, { keepdims })),
  ReduceMean: withAttributes(over, ({ axes, keepdims }, x) => ops.reduceMean(x, axes, { keepdims })),
  ReduceProd: withAttributes(over, ({ axes, keepdims }, x) => ops.reduceProd(x, axes, { keepdims })),
  ReduceSum: withAttributes(over, ({ axes, keepdims }, x) => ops.reduceSum(x, axes, { keepdims })),
  Relu: one(ops.relu),
  Reshape: withAttributes(z.object({ shape: ints }), ({ shape }, x) => ops.reshape(x, shape)),
  Resize: withAttributes(
    z.object({
      sizes: ints,
      mode: z.enum(['nearest', 'linear', 'cubic']),
      coordinates: z.enum(['half_pixel', 'align_corners', 'asymmetric']),
    }),
    ({ sizes, ...options }, x) => ops.resize(x, sizes, options),
  ),
  ScatterElements: withAttributes(scatter.extend({ axis: z.number() }), ({ axis, reduction }, x, i, u) =>
    ops.scatterElements(x, given(i), given(u), axis, reduction),
  ),
  ScatterND: withAttributes(scatter, ({ reduction }, x, i, u) => ops.scatterNd(x, given(i), given(u), reduction)),
  Shape: one(ops.shapeOf),
  Sigmoid: one(ops.sigmoid),
  Sign: one(ops.sign),
  Sin: one(ops.sin),
  Slice: withAttributes(
    z.object({
      ranges: z.array(z.object({ axis: z.number(), start: z.number(), end: z.number(), step: z.number().exactOptional() })),
    }),
    ({ ranges }, x) => ops.slice(x, ranges),
  ),
  Softmax: withAttributes(along, ({ axis }, x) => ops.softmax(x, axis)),
  Softplus: one(ops.softplus),
  Split: withAttributes(z.object({ sizes: ints, axis: z.number() }), ({ sizes, axis }, x) => ops.split(x, sizes, axis)),
  Sqrt: one(ops.sqrt),
  Squeeze: withAttributes(z.object({ axes: ints }), ({ axes }, x) => ops.squeeze(x, axes)),
  Sub: two(ops.sub),
  Tanh: one(ops.tanh),
  Transpose: withAttributes(z.object({ perm: ints }), ({ perm }, x) => ops.transpose(x, perm)),
  Trilu: withAttributes(z.object({ upper: z.boolean(), k: z.number() }), (options, x) => ops.trilu(x, options)),
  Unsqueeze: withAttributes(z.object({ axes: ints }), ({ axes }, x) => ops.unsqueeze(x, axes)),
  Where: ([c, a, b]) => ops.where(given(c), given(a), given(b)),
  linearCrossEntropy: ([h, w, l, r]) => linearCrossEntropy(given(h), given(w), given(l), given(r)).sum,
  matmulTransposed: two(matmulTransposed),
  quickGelu: one((x) => quickGelu(x)),
  rmsNormalization: withAttributes(epsilon, (options, x, w) => rmsNormalization(x, given(w), options)),
  rotaryEmbedding: withAttributes(z.object({ interleaved: z.boolean() }), (options, x, p, c, s) =>
    rotaryEmbedding(x, given(p), given(c), given(s), options),
  ),
  scaledDotProductAttention: ([q, k, v, mask]) =>
    scaledDotProductAttention(given(q), given(k), given(v), mask === undefined ? {} : { mask }),
  silu: one(silu),
  swiglu: two(swiglu),
  tokenCrossEntropy: two(tokenCrossEntropy),
}
