/** What all elementwise operators share: the type and shape of the result, and how the evaluator walks them. */
import { ModalignError } from '../errors.ts'
import type { DataType } from '../tensors.ts'
import { broadcastShapes } from './broadcast.ts'
import type { Value } from './evaluate.ts'
import { at, broadcastStrides, forEachOffset } from './indexing.ts'
import { type Inputs, required } from './operator.ts'
import { isFloating, type TensorType } from './tensor.ts'

export function unaryShape(inputs: Inputs, name: string): readonly TensorType[] {
  return [required(inputs, 0, name)]
}

/** One operand that must be floating point. @throws GRAPH_DTYPE */
export function floatingShape(inputs: Inputs, name: string): readonly TensorType[] {
  const x = required(inputs, 0, name)
  if (!isFloating(x.dtype)) throw new ModalignError({ code: 'GRAPH_DTYPE', field: name, got: x.dtype, expected: 'a floating-point tensor' })
  return [x]
}

/** Two operands that must be bool, broadcast. @throws GRAPH_DTYPE, GRAPH_BROADCAST */
export function logicalShape(inputs: Inputs, name: string): readonly TensorType[] {
  for (const index of [0, 1]) requireBool(inputs, index, name)
  return binaryShape(inputs, name)
}

/** @throws GRAPH_DTYPE */
export function requireBool(inputs: Inputs, index: number, name: string): void {
  const { dtype } = required(inputs, index, name)
  if (dtype !== 'bool') throw new ModalignError({ code: 'GRAPH_DTYPE', field: name, got: dtype, expected: 'bool' })
}

/** Two operands of one type, broadcast. @throws GRAPH_DTYPE, GRAPH_BROADCAST */
export function binaryShape(inputs: Inputs, name: string, result?: DataType): readonly TensorType[] {
  const [a, b] = [required(inputs, 0, name), required(inputs, 1, name)]
  if (a.dtype !== b.dtype)
    throw new ModalignError({ code: 'GRAPH_DTYPE', field: name, got: `${a.dtype} and ${b.dtype}`, expected: 'operands of one type' })
  return [{ dtype: result ?? a.dtype, shape: broadcastShapes(a.shape, b.shape, name) }]
}

export function evaluateUnary(inputs: readonly (Value | undefined)[], f: (x: number) => number): readonly Value[] {
  const [x] = inputs
  if (x === undefined) throw new Error('internal: an operand is missing')
  return [{ dtype: x.dtype, dims: x.dims, data: x.data.map(f) }]
}

export function evaluateBinary(
  inputs: readonly (Value | undefined)[],
  f: (x: number, y: number) => number,
  result?: DataType,
): readonly Value[] {
  const [x, y] = inputs
  if (x === undefined || y === undefined) throw new Error('internal: an operand is missing')
  const rank = Math.max(x.dims.length, y.dims.length)
  const dims = Array.from({ length: rank }, (_, axis) => {
    const [p, q] = [x.dims[axis - rank + x.dims.length] ?? 1, y.dims[axis - rank + y.dims.length] ?? 1]
    return p === 1 ? q : p
  })
  const data = new Float64Array(dims.reduce((product, dim) => product * dim, 1))
  forEachOffset(dims, [broadcastStrides(x.dims, dims), broadcastStrides(y.dims, dims)], (position, offsets) => {
    data[position] = f(at(x.data, at(offsets, 0)), at(y.data, at(offsets, 1)))
  })
  return [{ dtype: result ?? x.dtype, dims, data }]
}
