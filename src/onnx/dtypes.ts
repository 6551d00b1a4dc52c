/** Element types: our names, ONNX's numbers, and the typed array behind each. */
import { ModalignError } from '../errors.ts'
import { bytesPerElement, type DataType, elementCount, type TensorValue } from '../tensors.ts'
import { TensorProto_DataType } from './onnx_pb.ts'

/** The `TensorProto.DataType` number of each element type. */
export const onnxDataTypes = {
  float32: TensorProto_DataType.FLOAT,
  float64: TensorProto_DataType.DOUBLE,
  float16: TensorProto_DataType.FLOAT16,
  bfloat16: TensorProto_DataType.BFLOAT16,
  int64: TensorProto_DataType.INT64,
  int32: TensorProto_DataType.INT32,
  int16: TensorProto_DataType.INT16,
  int8: TensorProto_DataType.INT8,
  uint64: TensorProto_DataType.UINT64,
  uint32: TensorProto_DataType.UINT32,
  uint16: TensorProto_DataType.UINT16,
  uint8: TensorProto_DataType.UINT8,
  bool: TensorProto_DataType.BOOL,
} as const satisfies Readonly<Record<DataType, TensorProto_DataType>>

const ours: ReadonlyMap<number, DataType> = new Map<number, DataType>([
  [TensorProto_DataType.FLOAT, 'float32'],
  [TensorProto_DataType.DOUBLE, 'float64'],
  [TensorProto_DataType.FLOAT16, 'float16'],
  [TensorProto_DataType.BFLOAT16, 'bfloat16'],
  [TensorProto_DataType.INT64, 'int64'],
  [TensorProto_DataType.INT32, 'int32'],
  [TensorProto_DataType.INT16, 'int16'],
  [TensorProto_DataType.INT8, 'int8'],
  [TensorProto_DataType.UINT64, 'uint64'],
  [TensorProto_DataType.UINT32, 'uint32'],
  [TensorProto_DataType.UINT16, 'uint16'],
  [TensorProto_DataType.UINT8, 'uint8'],
  [TensorProto_DataType.BOOL, 'bool'],
])
const onnxNames: ReadonlyMap<number, string> = new Map(Object.entries(TensorProto_DataType).map(([name, number]) => [number, name]))

/** Our name of an ONNX element type; undefined for those we have none for (STRING, complex, 8-bit floats, 4-bit integers). */
export function dataTypeOf(onnxDataType: number): DataType | undefined {
  return ours.get(onnxDataType)
}

/** ONNX's own name (`FLOAT8E4M3FN`), for messages. */
export function onnxDataTypeName(onnxDataType: number): string {
  return onnxNames.get(onnxDataType) ?? `data type ${onnxDataType}`
}

/**
 * A tensor over little-endian bytes, the layout of `raw_data`, external data and safetensors. Shares the memory where the bytes are aligned
 * for their element type, otherwise copies.
 *
 * @throws ModalignError ONNX_TENSOR_SIZE when the bytes do not fill the shape exactly.
 * @example
 * tensorFromBytes('float32', [2], new Uint8Array([0, 0, 128, 63, 0, 0, 0, 64])).data // Float32Array [1, 2]
 */
export function tensorFromBytes(dtype: DataType, dims: readonly number[], bytes: Uint8Array, name = ''): TensorValue {
  const count = elementCount(dims)
  const size = bytesPerElement[dtype]
  if (bytes.byteLength !== count * size) {
    throw new ModalignError({
      code: 'ONNX_TENSOR_SIZE',
      field: name,
      got: `${bytes.byteLength} bytes`,
      expected: `${count * size} bytes for ${dtype} [${dims.join(', ')}]`,
    })
  }
  // Not `slice`, which on a Buffer is a view.
  const aligned = bytes.byteOffset % size === 0 ? bytes : new Uint8Array(bytes)
  const { buffer, byteOffset: at } = aligned
  switch (dtype) {
    case 'float32':
      return { dtype, dims, data: new Float32Array(buffer, at, count) }
    case 'float64':
      return { dtype, dims, data: new Float64Array(buffer, at, count) }
    case 'int64':
      return { dtype, dims, data: new BigInt64Array(buffer, at, count) }
    case 'uint64':
      return { dtype, dims, data: new BigUint64Array(buffer, at, count) }
    case 'int32':
      return { dtype, dims, data: new Int32Array(buffer, at, count) }
    case 'uint32':
      return { dtype, dims, data: new Uint32Array(buffer, at, count) }
    case 'int16':
      return { dtype, dims, data: new Int16Array(buffer, at, count) }
    case 'float16':
    case 'bfloat16':
    case 'uint16':
      return { dtype, dims, data: new Uint16Array(buffer, at, count) }
    case 'int8':
      return { dtype, dims, data: new Int8Array(buffer, at, count) }
    case 'uint8':
    case 'bool':
      return { dtype, dims, data: new Uint8Array(buffer, at, count) }
  }
}
