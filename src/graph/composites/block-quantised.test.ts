import { beforeAll, describe, expect, test } from 'vitest'
import { lower } from '../../onnx/lower.ts'
import { createLocalSession } from '../../runtime/local.ts'
import { float32Tensor, int64Tensor, type NamedTensors, type TensorValue } from '../../tensors.ts'
import { size } from '../dim.ts'
import { gradients } from '../gradients.ts'
import { mul } from '../operators/mul.ts'
import { reduceSum } from '../operators/reduce-sum.ts'
import { constant, input, type Tensor } from '../tensor.ts'
import { blockQuantised, gatherRows, matmulWeight } from './block-quantised.ts'
import { matmulTransposed } from './linear.ts'

const [rows, blocks] = [48, 4]

/** Numbers from 0 to 1 that look random. */
const noise = (count: number, seed: number): number[] =>
  Array.from({ length: count }, (_, index) => Math.abs(Math.sin((index + 1) * 12.9898 + seed) * 43_758.5453) % 1)

interface Case {
  readonly bits: 4 | 8
  readonly blockSize: number
  readonly minimums: boolean
}
const cases: readonly Case[] = ([4, 8] as const).flatMap((bits) =>
  [16, 32].flatMap((blockSize) => [false, true].map((minimums) => ({ bits, blockSize, minimums }))),
)

function make({ bits, blockSize, minimums }: Case): { readonly tensor: Tensor; readonly dense: readonly number[] } {
  const bytes = (blockSize * bits) / 8
  const packed = Uint8Array.from(noise(rows * blocks * bytes, bits), (value) => Math.floor(value * 256))
  const scales = Float32Array.from(noise(rows * blocks, 3), (value) => (value - 0.3) / 40)
  const least = Float32Array.from(noise(rows * blocks, 5), (value) => (value - 0.5) / 10)
  const dense = Array.from({ length: rows * blocks * blockSize }, (_, index) => {
    const block = Math.floor(index / blockSize)
    const at = index % blockSize
    const byte = packed[block * bytes + (bits === 8 ? at : at >> 1)] ?? 0
    const level = bits === 8 ? byte - 128 : ((at & 1) === 0 ? byte & 15 : byte >> 4) - 8
    return level * (scales[block] ?? 0) + (minimums ? (least[block] ?? 0) : 0)
  })
  const values = (data: Float32Array): Tensor => constant(float32Tensor(data, [rows, blocks]))
  const tensor = blockQuantised({
    packed: constant({ dtype: 'uint8', dims: [rows, blocks, bytes], data: packed }),
    scales: values(scales),
    ...(minimums && { minimums: values(least) }),
    bits,
  })
  return { tensor, dense }
}

const largest = (values: Iterable<number>): number => [...values].reduce((most, value) => Math.max(most, Math.abs(value)), 0)
function difference(got: TensorValue | undefined, expected: readonly number[]): number {
  if (got?.dtype !== 'float32') throw new Error('float32 was to come')
  expect(got.data).toHaveLength(expected.length)
  return largest(got.data.map((value, index) => value - (expected[index] ?? Number.NaN))) / largest(expected)
}

describe.each(cases)('$bits bits in blocks of $blockSize, with minimums: $minimums', (kind) => {
  const columns = blocks * kind.blockSize
  const { tensor, dense } = make(kind)
  const at = (row: number, column: number): number => dense[row * columns + column] ?? Number.NaN
  const x = input('x', 'float32', [size('tokens'), columns])
  const g = input('g', 'float32', [size('tokens'), rows])
  const ids = input('ids', 'int64', [size('picked')])
  const feeds: NamedTensors = {
    x: float32Tensor(
      Float32Array.from(noise(3 * columns, 7), (value) => value - 0.5),
      [3, columns],
    ),
    g: float32Tensor(
      Float32Array.from(noise(3 * rows, 9), (value) => value - 0.5),
      [3, rows],
    ),
    ids: int64Tensor([5, 0, 47], [3]),
  }
  const xs = Array.from(feeds.x?.data ?? [], Number)
  const gs = Array.from(feeds.g?.data ?? [], Number)
  const product = [0, 1, 2].flatMap((token) =>
    Array.from({ length: rows }, (_, row) =>
      Array.from({ length: columns }, (_, column) => (xs[token * columns + column] ?? 0) * at(row, column)).reduce((a, b) => a + b),
    ),
  )
  const back = [0, 1, 2].flatMap((token) =>
    Array.from({ length: columns }, (_, column) =>
      Array.from({ length: rows }, (_, row) => (gs[token * rows + row] ?? 0) * at(row, column)).reduce((a, b) => a + b),
    ),
  )
  const y = matmulTransposed(x, tensor)
  const [dx] = gradients(reduceSum(mul(y, g), [0, 1]), [x])
  if (dx === undefined) throw new Error('a gradient was to come')
  const outputs = { whole: tensor, y, dx, back: matmulWeight(g, tensor), rows: gatherRows(tensor, ids) }
  const picked = [5, 0, 47].flatMap((row) => Array.from({ length: columns }, (_, column) => at(row, column)))
  let fused: NamedTensors
  let plain: NamedTensors

  beforeAll(async () => {
    const run = async (useFused: boolean): Promise<NamedTensors> => {
      const session = await createLocalSession({ bytes: lower({ outputs, fused: useFused }).bytes }, { device: 'cpu', threads: 1 })
      try {
        return await session.run(feeds)
      } finally {
        await session.dispose()
      }
    }
    fused = await run(true)
    plain = await run(false)
  })

  test('the formula is what the blocks say', () => {
    for (const [name, expected] of [
      ['whole', dense],
      ['y', product],
      ['dx', back],
      ['back', back],
      ['rows', picked],
    ] as const)
      expect(difference(plain[name], expected), name).toBeLessThan(1e-5)
  })

  test('fused, activations are rounded to 8 bits: products within a hundredth; the way back is exact', () => {
    expect(difference(fused.y, product)).toBeLessThan(0.01)
    expect(difference(fused.dx, back)).toBeLessThan(1e-5)
  })
})

/** x as level 4 of ONNX Runtime's product has it, by its specification: each block divided by its largest value over 127, rounded to an integer and multiplied back. */
function rounded(x: Float32Array, blockSize: number): Float32Array {
  const out = new Float32Array(x.length)
  for (let block = 0; block < x.length; block += blockSize) {
    const scale = largest(x.subarray(block, block + blockSize)) / 127
    for (let at = block; at < block + blockSize; at++) out[at] = scale === 0 ? 0 : Math.round((x[at] ?? 0) / scale) * scale
  }
  return out
}

describe('the product of ONNX Runtime is the formula on rounded activations, and nothing less exact', () => {
  test.each(
    ([4, 8] as const).flatMap((bits) => [16, 32].flatMap((blockSize) => [1, 2, 37].map((tokens) => ({ bits, blockSize, tokens })))),
  )('$bits bits in blocks of $blockSize, $tokens rows', async ({ bits, blockSize, tokens }) => {
    const columns = blocks * blockSize
    const { tensor, dense } = make({ bits, blockSize, minimums: false })
    const x = input('x', 'float32', [size('tokens'), columns])
    // One value in fifty is a hundred times as large: what activations of language models look like.
    const values = Float32Array.from(noise(tokens * columns, 11), (value, index) => (value - 0.5) * (index % 50 === 7 ? 100 : 1))
    const { bytes } = lower({ outputs: { y: matmulTransposed(x, tensor) } })
    const session = await createLocalSession({ bytes }, { device: 'cpu', threads: 1 })
    const { y } = await session.run({ x: float32Tensor(values, [tokens, columns]) })
    await session.dispose()
    const of = (activations: Float32Array): number[] =>
      Array.from({ length: tokens * rows }, (_, index) => {
        const [token, row] = [Math.floor(index / rows), index % rows]
        let sum = 0
        for (let at = 0; at < columns; at++) sum += (activations[token * columns + at] ?? 0) * (dense[row * columns + at] ?? 0)
        return sum
      })
    // A processor without products of 8 bits leaves activations as they are.
    expect(Math.min(difference(y, of(rounded(values, blockSize))), difference(y, of(values)))).toBeLessThan(1e-5)
  })
})
