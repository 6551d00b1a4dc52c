import { ModalignError } from '../../errors.ts'
import { broadcastShapes, sumTo } from '../broadcast.ts'
import { dimsEqual, formatShape, productOf } from '../dim.ts'
import { at, broadcastStrides, forEachOffset } from '../indexing.ts'
import { defineOperator, only, required } from '../operator.ts'
import { dimAt, type Tensor } from '../tensor.ts'
import { reshape } from './reshape.ts'
import { swapLastAxes } from './transpose.ts'

const apply = defineOperator<undefined>({
  name: 'MatMul',
  shape(inputs) {
    const [a, b] = [required(inputs, 0, 'MatMul'), required(inputs, 1, 'MatMul')]
    const fits = a.shape.length >= 2 && b.shape.length >= 2 && a.dtype === b.dtype && dimsEqual(dimAt(a.shape, -1), dimAt(b.shape, -2))
    if (!fits) {
      throw new ModalignError({
        code: 'GRAPH_MATMUL',
        got: `${a.dtype} ${formatShape(a.shape)} x ${b.dtype} ${formatShape(b.shape)}`,
        expected: '[..., M, K] x [..., K, N] of one type',
      })
    }
    const batch = broadcastShapes(a.shape.slice(0, -2), b.shape.slice(0, -2), 'MatMul')
    return [{ dtype: a.dtype, shape: [...batch, dimAt(a.shape, -2), dimAt(b.shape, -1)] }]
  },
  gradient({ inputs: [a, b], upstream: [g], needs }) {
    if (a === undefined || b === undefined || g === undefined) return []
    const forA = (): Tensor => sumTo(matmul(g, swapLastAxes(b)), a.shape)
    // A matrix shared by a whole batch: one product over all rows instead of one per batch and a sum.
    const forB = (): Tensor =>
      b.shape.length === 2 ? matmul(swapLastAxes(asRows(a)), asRows(g)) : sumTo(matmul(swapLastAxes(a), g), b.shape)
    return [needs[0] ? forA() : undefined, needs[1] ? forB() : undefined]
  },
  evaluate([a, b]) {
    if (a === undefined || b === undefined) throw new Error('internal: an operand is missing')
    const [m, k, n] = [at(a.dims, a.dims.length - 2), at(a.dims, a.dims.length - 1), at(b.dims, b.dims.length - 1)]
    const [batchA, batchB] = [a.dims.slice(0, -2), b.dims.slice(0, -2)]
    const rank = Math.max(batchA.length, batchB.length)
    const batch = Array.from({ length: rank }, (_, axis) => {
      const [p, q] = [batchA[axis - rank + batchA.length] ?? 1, batchB[axis - rank + batchB.length] ?? 1]
      return p === 1 ? q : p
    })
    const data = new Float64Array(batch.reduce((product, dim) => product * dim, 1) * m * n)
    forEachOffset(batch, [broadcastStrides(batchA, batch), broadcastStrides(batchB, batch)], (position, offsets) => {
      const [baseA, baseB] = [at(offsets, 0) * m * k, at(offsets, 1) * k * n]
      for (let row = 0; row < m; row++) {
        for (let inner = 0; inner < k; inner++) {
          const x = at(a.data, baseA + row * k + inner)
          for (let column = 0; column < n; column++) {
            const target = (position * m + row) * n + column
            data[target] = at(data, target) + x * at(b.data, baseB + inner * n + column)
          }
        }
      }
    })
    return [{ dtype: a.dtype, dims: [...batch, m, n], data }]
  },
})

/** Y = A B over the last two axes; leading axes broadcast.  A [..., M, K], B [..., K, N] -> Y [..., M, N].  dA = g B^T, dB = A^T g. */
export function matmul(a: Tensor, b: Tensor): Tensor {
  return only(apply([a, b], undefined))
}

/** [..., C] -> [rows, C]. */
export function asRows(x: Tensor): Tensor {
  return x.shape.length === 2 ? x : reshape(x, [productOf(x.shape.slice(0, -1)), dimAt(x.shape, -1)])
}
