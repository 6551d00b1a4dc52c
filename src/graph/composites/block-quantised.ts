/**
 * Weights kept in blocks: each run of `blockSize` values of a row is a run of 4- or 8-bit integers with one float32 scale, and in some formats one float32 minimum.
 * value = (q - 8) scale + minimum for 4 bits (q - 128 for 8). Frozen: gradients go through products with them, never into them.
 */
import { ModalignError } from '../../errors.ts'
import { defineComposite, only, required } from '../operator.ts'
import { add } from '../operators/add.ts'
import { cast } from '../operators/cast.ts'
import { concat } from '../operators/concat.ts'
import { floor } from '../operators/floor.ts'
import { gather } from '../operators/gather.ts'
import { matmul } from '../operators/matmul.ts'
import { mul } from '../operators/mul.ts'
import { reduceSum } from '../operators/reduce-sum.ts'
import { reshape } from '../operators/reshape.ts'
import { sub } from '../operators/sub.ts'
import { swapLastAxes } from '../operators/transpose.ts'
import { unsqueeze } from '../operators/unsqueeze.ts'
import { fixedDim, type Tensor } from '../tensor.ts'

export interface Blocks {
  /** uint8 [rows, blocks, bytes]: with 4 bits, byte j of a block holds value 2j in its low half and 2j + 1 in its high half. */
  readonly packed: Tensor
  /** float32 [rows, blocks]. */
  readonly scales: Tensor
  /** float32 [rows, blocks]; absent: 0. */
  readonly minimums?: Tensor | undefined
  readonly bits: 4 | 8
}

/** What each quantised tensor is made of: products look here instead of making the tensor. */
const blocksByTensor = new WeakMap<Tensor, Blocks>()

const dequantise = defineComposite<{ readonly bits: 4 | 8 }>({
  name: 'BlockQuantised',
  expand(inputs, { bits }) {
    const [packed, scales, minimums] = [required(inputs, 0, 'BlockQuantised'), required(inputs, 1, 'BlockQuantised'), inputs[2]]
    const last = packed.shape.length
    const levels = bits === 8 ? sub(cast(packed, 'float32'), 128) : interleaved(halves(packed))
    const scaled = mul(levels, unsqueeze(scales, [last - 1]))
    return [joined(minimums === undefined ? scaled : add(scaled, unsqueeze(minimums, [last - 1])))]
  },
  gradient: () => [],
})

/** The low and the high halves of the bytes, each -8 to 7 as float32: the even and the odd values. */
function halves(packed: Tensor): readonly [even: Tensor, odd: Tensor] {
  const bytes = cast(packed, 'float32')
  const high = floor(mul(bytes, 1 / 16))
  return [sub(sub(bytes, mul(high, 16)), 8), sub(high, 8)]
}

/** Two tensors [..., n] as one [..., 2n], taken in turns. */
function interleaved([even, odd]: readonly [Tensor, Tensor]): Tensor {
  const axis = even.shape.length
  return joined(concat([unsqueeze(even, [axis]), unsqueeze(odd, [axis])], axis))
}

/** The last two axes as one. */
function joined(x: Tensor): Tensor {
  return reshape(x, [...x.shape.slice(0, -2), fixedDim(x.shape, -2, 'blocks') * fixedDim(x.shape, -1, 'blocks')])
}

/**
 * The tensor [rows, columns] that blocks stand for. `matmulTransposed`, {@link matmulWeight} and {@link gatherRows} read the blocks themselves; any other operator makes it
 * whole, at every run.
 *
 * @throws GRAPH_SHAPE where the parts do not fit together
 */
export function blockQuantised(blocks: Blocks): Tensor {
  const { packed, scales, minimums, bits } = blocks
  const expected = packed.shape.slice(0, -1)
  const wrong = [scales, ...(minimums === undefined ? [] : [minimums])].find(({ shape }) => String(shape) !== String(expected))
  if (wrong !== undefined) {
    throw new ModalignError({
      code: 'GRAPH_SHAPE',
      field: 'BlockQuantised',
      got: `[${wrong.shape.join(', ')}]`,
      expected: `[${expected.join(', ')}]`,
    })
  }
  const tensor = only(dequantise([packed, scales, minimums], { bits }))
  blocksByTensor.set(tensor, blocks)
  return tensor
}

export function blocksOf(tensor: Tensor): Blocks | undefined {
  return blocksByTensor.get(tensor)
}

/**
 * Y = X W^T with W in blocks without minimums.  X [..., columns], packed, scales -> Y [..., rows]. ONNX Runtime has it as MatMulNBits.
 * Backward: the even and the odd columns of W are made apart, so that the small product is put in order and not the weight.
 */
const multiply = defineComposite<{ readonly bits: 4 | 8 }>({
  name: 'MatMulBlocks',
  expand(inputs, { bits }) {
    const [x, packed, scales] = [
      required(inputs, 0, 'MatMulBlocks'),
      required(inputs, 1, 'MatMulBlocks'),
      required(inputs, 2, 'MatMulBlocks'),
    ]
    return [matmul(x, swapLastAxes(only(dequantise([packed, scales], { bits }))))]
  },
  gradient({ inputs: [, packed, scales], upstream: [g], needs, attributes: { bits } }) {
    return [needs[0] && packed !== undefined && scales !== undefined && g !== undefined ? product(g, { packed, scales, bits }) : undefined]
  },
})

/** X W^T, for `matmulTransposed`: the minimums are a second, small product with the sums of X's blocks. */
export function matmulBlocks(x: Tensor, { packed, scales, minimums, bits }: Blocks): Tensor {
  const y = only(multiply([x, packed, scales], { bits }))
  if (minimums === undefined) return y
  const blocks = fixedDim(packed.shape, 1, 'MatMulBlocks')
  const size = fixedDim(x.shape, -1, 'MatMulBlocks') / blocks
  const sums = reduceSum(reshape(x, [...x.shape.slice(0, -1), blocks, size]), [-1])
  return add(y, matmul(sums, swapLastAxes(minimums)))
}

/** Y = G W: a gradient goes back through a weight [rows, columns] as it lies.  G [..., rows] -> Y [..., columns]. */
export function matmulWeight(g: Tensor, weight: Tensor): Tensor {
  const blocks = blocksByTensor.get(weight)
  if (blocks === undefined) return matmul(g, weight)
  const y = product(g, blocks)
  if (blocks.minimums === undefined) return y
  const columns = fixedDim(y.shape, -1, 'MatMulBlocks')
  const ofBlocks = matmul(g, blocks.minimums)
  const count = fixedDim(ofBlocks.shape, -1, 'MatMulBlocks')
  const lead = g.shape.slice(0, -1)
  const spread = add(reshape(y, [...lead, count, columns / count]), unsqueeze(ofBlocks, [ofBlocks.shape.length]))
  return reshape(spread, [...lead, columns])
}

/** G times the levels and scales alone. */
function product(g: Tensor, { packed, scales, bits }: Blocks): Tensor {
  const scaled = (levels: Tensor): Tensor => joined(mul(levels, unsqueeze(scales, [2])))
  if (bits === 8) return matmul(g, scaled(sub(cast(packed, 'float32'), 128)))
  const [even, odd] = halves(packed)
  return interleaved([matmul(g, scaled(even)), matmul(g, scaled(odd))])
}

/** Rows of a table.  table [rows, columns], ids int64 [...] -> [..., columns]. Of a table in blocks only these rows are made. */
export function gatherRows(table: Tensor, ids: Tensor): Tensor {
  const blocks = blocksByTensor.get(table)
  if (blocks === undefined) return gather(table, ids)
  const { packed, scales, minimums, bits } = blocks
  return only(dequantise([gather(packed, ids), gather(scales, ids), minimums === undefined ? undefined : gather(minimums, ids)], { bits }))
}
