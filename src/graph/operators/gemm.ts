import { ModalignError } from '../../errors.ts'
import { broadcastShapes, sumTo } from '../broadcast.ts'
import { dimsEqual, formatShape, shapesEqual } from '../dim.ts'
import { at, broadcastStrides, forEachOffset } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { dimAt, type Tensor } from '../tensor.ts'
import { mul } from './mul.ts'

export interface GemmOptions {
  /** Default 1. */
  readonly alpha?: number
  /** Default 1. */
  readonly beta?: number
  readonly transA?: boolean
  readonly transB?: boolean
}
interface Attributes {
  readonly alpha: number
  readonly beta: number
  readonly transA: boolean
  readonly transB: boolean
}

const apply = defineOperator<Attributes>({
  name: 'Gemm',
  shape(inputs, { transA, transB }) {
    const [a, b, c] = [required(inputs, 0, 'Gemm'), required(inputs, 1, 'Gemm'), inputs[2]]
    const [m, k] = transA ? [dimAt(a.shape, 1), dimAt(a.shape, 0)] : [dimAt(a.shape, 0), dimAt(a.shape, 1)]
    const [k2, n] = transB ? [dimAt(b.shape, 1), dimAt(b.shape, 0)] : [dimAt(b.shape, 0), dimAt(b.shape, 1)]
    const fits = a.shape.length === 2 && b.shape.length === 2 && a.dtype === b.dtype && dimsEqual(k, k2)
    if (!fits)
      throw new ModalignError({
        code: 'GRAPH_MATMUL',
        field: 'Gemm',
        got: `${formatShape(a.shape)} x ${formatShape(b.shape)}`,
        expected: 'matrices whose inner sizes agree',
      })
    if (c !== undefined && (c.dtype !== a.dtype || !shapesEqual(broadcastShapes(c.shape, [m, n], 'Gemm'), [m, n]))) {
      throw new ModalignError({
        code: 'GRAPH_MATMUL',
        field: 'Gemm',
        got: `C ${c.dtype} ${formatShape(c.shape)}`,
        expected: `${a.dtype} that stretches to ${formatShape([m, n])}`,
      })
    }
    return [{ dtype: a.dtype, shape: [m, n] }]
  },
  gradient({ inputs: [a, b, c], upstream: [g], needs, attributes: { alpha, beta, transA, transB } }) {
    if (a === undefined || b === undefined || g === undefined) return []
    return [
      needs[0]
        ? transA
          ? gemm(b, g, undefined, { alpha, transA: transB, transB: true })
          : gemm(g, b, undefined, { alpha, transB: !transB })
        : undefined,
      needs[1]
        ? transB
          ? gemm(g, a, undefined, { alpha, transA: true, transB: transA })
          : gemm(a, g, undefined, { alpha, transA: !transA })
        : undefined,
      needs[2] && c ? sumTo(beta === 1 ? g : mul(g, beta), c.shape) : undefined,
    ]
  },
  evaluate([a, b, c], { alpha, beta, transA, transB }) {
    if (a === undefined || b === undefined) throw new Error('internal: an operand is missing')
    const [m, k] = transA ? [at(a.dims, 1), at(a.dims, 0)] : [at(a.dims, 0), at(a.dims, 1)]
    const n = transB ? at(b.dims, 0) : at(b.dims, 1)
    const data = new Float64Array(m * n)
    for (let row = 0; row < m; row++) {
      for (let column = 0; column < n; column++) {
        let sum = 0
        for (let inner = 0; inner < k; inner++) {
          sum += at(a.data, transA ? inner * m + row : row * k + inner) * at(b.data, transB ? column * k + inner : inner * n + column)
        }
        data[row * n + column] = alpha * sum
      }
    }
    if (c !== undefined) {
      forEachOffset([m, n], [broadcastStrides(c.dims, [m, n])], (position, offsets) => {
        data[position] = at(data, position) + beta * at(c.data, at(offsets, 0))
      })
    }
    return [{ dtype: a.dtype, dims: [m, n], data }]
  },
  onnx: ({ alpha, beta, transA, transB }) => ({
    attributes: { alpha: { float: alpha }, beta: { float: beta }, transA: { int: transA ? 1 : 0 }, transB: { int: transB ? 1 : 0 } },
  }),
})

/** Y = alpha A' B' + beta C for matrices; A' is A or its transpose, C broadcasts.  A' [M, K], B' [K, N] -> Y [M, N]. */
export function gemm(a: Tensor, b: Tensor, c?: Tensor, { alpha = 1, beta = 1, transA = false, transB = false }: GemmOptions = {}): Tensor {
  return only(apply(c === undefined ? [a, b] : [a, b, c], { alpha, beta, transA, transB }))
}
