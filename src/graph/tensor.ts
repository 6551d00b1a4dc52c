/**
 * The intermediate representation: immutable nodes whose outputs are tensors. There is no graph object to add to: a graph is what its outputs reach.
 */
import { ModalignError } from '../errors.ts'
import { type DataType, elementCount, type TensorValue } from '../tensors.ts'
import type { Dim, Shape } from './dim.ts'
import type { Operator } from './operator.ts'

export interface TensorType {
  readonly dtype: DataType
  readonly shape: Shape
}

/** One output of one node. Two tensors are the same value if and only if they are the same object. */
export interface Tensor extends TensorType {
  readonly node: Node
  readonly index: number
}

export type Node = InputNode | ConstantNode | WeightNode | OperatorNode

/** Fed at every run: batches, and trainable parameters (an initializer that is also an input could not be fed). */
export interface InputNode {
  readonly kind: 'input'
  readonly name: string
}
/** A value written into the graph itself: small. */
export interface ConstantNode {
  readonly kind: 'constant'
  readonly value: TensorValue
}
/** Frozen weights, referred to where they lie. */
export interface WeightNode {
  readonly kind: 'weight'
  readonly name: string
  readonly source: WeightSource
}
export type WeightSource =
  | { readonly kind: 'file'; readonly file: string; readonly offset: number; readonly byteLength: number }
  | { readonly kind: 'memory'; readonly value: TensorValue }
export interface OperatorNode {
  readonly kind: 'operator'
  readonly operator: Operator
  readonly attributes: unknown
  /** `undefined` stands for an optional input left out. */
  readonly inputs: readonly (Tensor | undefined)[]
  readonly outputs: readonly Tensor[]
}

/**
 * A value that is fed at every run.
 *
 * @example
 * const x = input('x', 'float32', [size('batch'), 8])
 */
export function input(name: string, dtype: DataType, shape: Shape): Tensor {
  return leaf({ kind: 'input', name }, dtype, shape)
}

/** A value written into the graph. @throws GRAPH_CONSTANT_SIZE if the data does not fill the shape. */
export function constant(value: TensorValue): Tensor {
  if (value.data.length !== elementCount(value.dims)) {
    throw new ModalignError({
      code: 'GRAPH_CONSTANT_SIZE',
      got: `${value.data.length} elements`,
      expected: `${elementCount(value.dims)} for [${value.dims.join(', ')}]`,
    })
  }
  return leaf({ kind: 'constant', value }, value.dtype, value.dims)
}

/** Frozen weights that stay where they lie: lowering refers to them by file, offset and length. */
export function weight(name: string, dtype: DataType, shape: readonly number[], source: WeightSource): Tensor {
  return leaf({ kind: 'weight', name, source }, dtype, shape)
}

/** A number as a tensor of rank 0 in the type of the tensor that it meets. */
export function scalar(value: number, dtype: DataType = 'float32'): Tensor {
  return constant(scalarValue(value, dtype, []))
}

/** One number repeated over a fixed shape. */
export function full(value: number, dtype: DataType, dims: readonly number[]): Tensor {
  return constant(scalarValue(value, dtype, dims))
}

/** int64 constant of rank 1, or of the shape given. */
export function integers(values: readonly number[], dims: readonly number[] = [values.length]): Tensor {
  return constant({ dtype: 'int64', dims, data: BigInt64Array.from(values, BigInt) })
}

export type Operand = Tensor | number

/** Two operands of which at most one is a number. @throws GRAPH_OPERANDS if both are. */
export function operands(a: Operand, b: Operand): readonly [Tensor, Tensor] {
  if (typeof a !== 'number') return [a, typeof b === 'number' ? scalar(b, a.dtype) : b]
  if (typeof b !== 'number') return [scalar(a, b.dtype), b]
  throw new ModalignError({ code: 'GRAPH_OPERANDS', got: 'two numbers', expected: 'at least one tensor' })
}

export function isFloating(dtype: DataType): boolean {
  return dtype === 'float32' || dtype === 'float64' || dtype === 'float16' || dtype === 'bfloat16'
}

/** The axis counted from the front. @throws GRAPH_AXIS */
export function normaliseAxis(axis: number, rank: number, operator: string): number {
  const normalised = axis < 0 ? axis + rank : axis
  if (!Number.isInteger(axis) || normalised < 0 || normalised >= rank) {
    throw new ModalignError({ code: 'GRAPH_AXIS', field: operator, got: `axis ${axis}`, expected: `-${rank} to ${rank - 1}` })
  }
  return normalised
}

/** The size along an axis; callers have checked the axis. */
export function dimAt(shape: Shape, axis: number): Dim {
  const dim = shape[axis < 0 ? axis + shape.length : axis]
  if (dim === undefined) throw new ModalignError({ code: 'GRAPH_AXIS', got: `axis ${axis}`, expected: `a tensor of rank > ${axis}` })
  return dim
}

/** The size along an axis where only a number will do (channels, head sizes). @throws GRAPH_SIZE_NOT_FIXED */
export function fixedDim(shape: Shape, axis: number, what: string): number {
  const dim = dimAt(shape, axis)
  if (typeof dim !== 'number')
    throw new ModalignError({ code: 'GRAPH_SIZE_NOT_FIXED', field: what, got: String(dim), expected: 'a number' })
  return dim
}

function leaf(node: InputNode | ConstantNode | WeightNode, dtype: DataType, shape: Shape): Tensor {
  return Object.freeze({ dtype, shape: Object.freeze([...shape]), node: Object.freeze(node), index: 0 })
}

function scalarValue(value: number, dtype: DataType, dims: readonly number[]): TensorValue {
  const count = elementCount(dims)
  switch (dtype) {
    case 'float32':
      return { dtype, dims, data: new Float32Array(count).fill(value) }
    case 'float64':
      return { dtype, dims, data: new Float64Array(count).fill(value) }
    case 'int64':
      return { dtype, dims, data: new BigInt64Array(count).fill(BigInt(value)) }
    case 'int32':
      return { dtype, dims, data: new Int32Array(count).fill(value) }
    case 'bool':
      return { dtype, dims, data: new Uint8Array(count).fill(value === 0 ? 0 : 1) }
    default:
      throw new ModalignError({
        code: 'GRAPH_DTYPE',
        got: dtype,
        expected: 'float32, float64, int64, int32 or bool for a number written into the graph',
      })
  }
}
