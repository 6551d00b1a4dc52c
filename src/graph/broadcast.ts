/** NumPy broadcasting over sizes that may be names. A name equals only itself; 1 stretches to anything. */
import { ModalignError } from '../errors.ts'
import { type Dim, dimsEqual, formatShape, type Shape, shapesEqual } from './dim.ts'
import { reduceSum } from './operators/reduce-sum.ts'
import { reshape } from './operators/reshape.ts'
import type { Tensor } from './tensor.ts'

/** @throws GRAPH_BROADCAST if a pair of sizes is neither equal nor has a 1. */
export function broadcastShapes(a: Shape, b: Shape, operator: string): Shape {
  const rank = Math.max(a.length, b.length)
  return Array.from({ length: rank }, (_, axis): Dim => {
    const x = a[axis - rank + a.length] ?? 1
    const y = b[axis - rank + b.length] ?? 1
    if (dimsEqual(x, y) || y === 1) return x
    if (x === 1) return y
    throw new ModalignError({
      code: 'GRAPH_BROADCAST',
      field: operator,
      got: `${formatShape(a)} and ${formatShape(b)}`,
      expected: 'sizes that are equal, or 1, from the last axis on',
    })
  })
}

/**
 * The gradient of broadcasting: sums `gradient` over every axis along which a tensor of `shape` was stretched, so that the result has `shape`.
 * Exact for named sizes too, since a named size is never stretched: only a literal 1 or a missing axis is.
 */
export function sumTo(gradient: Tensor, shape: Shape): Tensor {
  if (shapesEqual(gradient.shape, shape)) return gradient
  const offset = gradient.shape.length - shape.length
  const stretched = gradient.shape.flatMap((dim, axis) => {
    const own = axis < offset ? undefined : shape[axis - offset]
    return own === undefined || (own === 1 && dim !== 1) ? [axis] : []
  })
  const summed = stretched.length === 0 ? gradient : reduceSum(gradient, stretched, { keepdims: true })
  return offset === 0 ? summed : reshape(summed, shape)
}
