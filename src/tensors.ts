/** Concrete tensors: what goes into a session and what comes out. */

export type DataType =
  | 'float32'
  | 'float64'
  | 'float16'
  | 'bfloat16'
  | 'int64'
  | 'int32'
  | 'int16'
  | 'int8'
  | 'uint64'
  | 'uint32'
  | 'uint16'
  | 'uint8'
  | 'bool'

/** float16 and bfloat16 travel as their bits. */
export interface TypedArrays {
  readonly float32: Float32Array
  readonly float64: Float64Array
  readonly float16: Uint16Array
  readonly bfloat16: Uint16Array
  readonly int64: BigInt64Array
  readonly int32: Int32Array
  readonly int16: Int16Array
  readonly int8: Int8Array
  readonly uint64: BigUint64Array
  readonly uint32: Uint32Array
  readonly uint16: Uint16Array
  readonly uint8: Uint8Array
  readonly bool: Uint8Array
}

export type TensorValue = {
  readonly [D in DataType]: { readonly dtype: D; readonly dims: readonly number[]; readonly data: TypedArrays[D] }
}[DataType]

export type NamedTensors = Readonly<Record<string, TensorValue>>

/** Bytes of one element. */
export const bytesPerElement: Readonly<Record<DataType, number>> = {
  float32: 4,
  float64: 8,
  float16: 2,
  bfloat16: 2,
  int64: 8,
  int32: 4,
  int16: 2,
  int8: 1,
  uint64: 8,
  uint32: 4,
  uint16: 2,
  uint8: 1,
  bool: 1,
}

/** Product of the sizes; 1 for a scalar. */
export function elementCount(dims: readonly number[]): number {
  return dims.reduce((product, size) => product * size, 1)
}

export function float32Tensor(data: Float32Array, dims: readonly number[]): TensorValue {
  return { dtype: 'float32', dims, data }
}

export function int64Tensor(data: BigInt64Array | readonly number[], dims: readonly number[]): TensorValue {
  return { dtype: 'int64', dims, data: data instanceof BigInt64Array ? data : BigInt64Array.from(data, BigInt) }
}
