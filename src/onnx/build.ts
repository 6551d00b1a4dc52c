/** The pieces of a ModelProto from plain values, and plain values from the pieces. */
import { create, isFieldSet } from '@bufbuild/protobuf'
import { ModalignError } from '../errors.ts'
import { bytesPerElement, type DataType, elementCount, type TensorValue } from '../tensors.ts'
import { dataTypeOf, onnxDataTypeName, onnxDataTypes, tensorFromBytes } from './dtypes.ts'
import {
  type AttributeProto,
  AttributeProtoSchema,
  AttributeProto_AttributeType as AttributeType,
  type GraphProto,
  GraphProtoSchema,
  type ModelProto,
  ModelProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  type TensorProto,
  TensorProto_DataLocation,
  TensorProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from './onnx_pb.ts'

/** What an attribute may be made from. Integers and floats are named apart, because `1` could be either. */
export type AttributeInput =
  | { readonly int: number | bigint }
  | { readonly float: number }
  | { readonly string: string }
  | { readonly tensor: TensorValue }
  | { readonly graph: GraphProto }
  | { readonly ints: readonly (number | bigint)[] }
  | { readonly floats: readonly number[] }
  | { readonly strings: readonly string[] }

/** What an attribute reads as. */
export type AttributeValue =
  | { readonly int: bigint }
  | { readonly float: number }
  | { readonly string: string }
  | { readonly tensor: TensorValue }
  | { readonly graph: GraphProto }
  | { readonly ints: readonly bigint[] }
  | { readonly floats: readonly number[] }
  | { readonly strings: readonly string[] }

export interface NodeInput {
  readonly opType: string
  /** Default: the standard operators. */
  readonly domain?: string
  readonly name?: string
  /** Names of values; '' leaves an optional input out. */
  readonly inputs: readonly string[]
  readonly outputs: readonly string[]
  readonly attributes?: Readonly<Record<string, AttributeInput>>
}

/**
 * @example
 * makeNode({ opType: 'Gemm', inputs: ['x', 'w'], outputs: ['y'], attributes: { transB: { int: 1 }, alpha: { float: 0.5 } } })
 */
export function makeNode({ opType, domain, name, inputs, outputs, attributes = {} }: NodeInput): NodeProto {
  return create(NodeProtoSchema, {
    opType,
    input: [...inputs],
    output: [...outputs],
    attribute: Object.entries(attributes).map(([key, value]) => attribute(key, value)),
    ...(domain === undefined || domain === '' ? {} : { domain }),
    ...(name === undefined ? {} : { name }),
  })
}

/**
 * @example
 * attribute('perm', { ints: [0, 2, 1] })
 */
export function attribute(name: string, value: AttributeInput): AttributeProto {
  return create(AttributeProtoSchema, { name, ...attributeFields(value) })
}

function attributeFields(value: AttributeInput) {
  if ('int' in value) return { type: AttributeType.INT, i: BigInt(value.int) }
  if ('float' in value) return { type: AttributeType.FLOAT, f: value.float }
  if ('string' in value) return { type: AttributeType.STRING, s: utf8.encode(value.string) }
  if ('tensor' in value) return { type: AttributeType.TENSOR, t: makeTensor('', value.tensor) }
  if ('graph' in value) return { type: AttributeType.GRAPH, g: value.graph }
  if ('ints' in value) return { type: AttributeType.INTS, ints: value.ints.map(BigInt) }
  if ('floats' in value) return { type: AttributeType.FLOATS, floats: [...value.floats] }
  return { type: AttributeType.STRINGS, strings: value.strings.map((text) => utf8.encode(text)) }
}

/**
 * Reads an attribute back.
 *
 * @throws ModalignError ONNX_ATTRIBUTE_UNSUPPORTED for kinds that have no plain value here (sparse tensors, types, lists of tensors or graphs,
 *   references inside functions), ONNX_MALFORMED for text that is not UTF-8.
 * @example
 * attributeValue(attribute('axis', { int: -1 })) // { int: -1n }
 */
export function attributeValue(attribute: AttributeProto): AttributeValue {
  if (attribute.refAttrName !== '')
    throw unsupportedAttribute(attribute, `a reference to the function attribute '${attribute.refAttrName}'`)
  switch (attribute.type) {
    case AttributeType.INT:
      return { int: attribute.i }
    case AttributeType.FLOAT:
      return { float: attribute.f }
    case AttributeType.STRING:
      return { string: text(attribute.s, attribute.name) }
    case AttributeType.TENSOR:
      if (attribute.t !== undefined) return { tensor: tensorValue(attribute.t) }
      break
    case AttributeType.GRAPH:
      if (attribute.g !== undefined) return { graph: attribute.g }
      break
    case AttributeType.INTS:
      return { ints: attribute.ints }
    case AttributeType.FLOATS:
      return { floats: attribute.floats }
    case AttributeType.STRINGS:
      return { strings: attribute.strings.map((bytes) => text(bytes, attribute.name)) }
  }
  throw unsupportedAttribute(attribute, `attribute type ${attributeTypeName(attribute.type)}`)
}

function attributeTypeName(type: AttributeType): string {
  return Object.entries(AttributeType).find(([, number]) => number === type)?.[0] ?? String(type)
}

function unsupportedAttribute(attribute: AttributeProto, got: string): ModalignError {
  return new ModalignError({ code: 'ONNX_ATTRIBUTE_UNSUPPORTED', field: attribute.name, got })
}

/**
 * A tensor whose elements lie in the model as little-endian bytes (`raw_data`); shares the memory of `value.data`.
 *
 * @throws ModalignError ONNX_TENSOR_SIZE when the data do not fill the shape exactly.
 * @example
 * makeTensor('weight', float32Tensor(new Float32Array(6), [2, 3]))
 */
export function makeTensor(name: string, value: TensorValue): TensorProto {
  const { dtype, dims, data } = value
  if (data.length !== elementCount(dims)) {
    throw new ModalignError({
      code: 'ONNX_TENSOR_SIZE',
      field: name,
      got: `${data.length} elements`,
      expected: `the shape [${dims.join(', ')}]`,
    })
  }
  return create(TensorProtoSchema, {
    dims: dims.map(BigInt),
    dataType: onnxDataTypes[dtype],
    rawData: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
    ...(name === '' ? {} : { name }),
  })
}

/** Where the elements of a tensor lie outside the model: bytes `offset` to `offset + length` of the file `location`. */
export interface ExternalLocation {
  /** Path of the file relative to the model's folder, with `/`. */
  readonly location: string
  readonly offset: number
  readonly length: number
}

/**
 * @example
 * makeExternalTensor('lm_head.weight', 'bfloat16', [49152, 576], { location: 'model.safetensors', offset: 32776, length: 56623104 })
 */
export function makeExternalTensor(name: string, dtype: DataType, dims: readonly number[], external: ExternalLocation): TensorProto {
  const expected = elementCount(dims) * bytesPerElement[dtype]
  if (external.length !== expected) {
    throw new ModalignError({
      code: 'ONNX_TENSOR_SIZE',
      field: name,
      got: `${external.length} bytes`,
      expected: `${expected} bytes for ${dtype} [${dims.join(', ')}]`,
    })
  }
  return create(TensorProtoSchema, {
    name,
    dims: dims.map(BigInt),
    dataType: onnxDataTypes[dtype],
    dataLocation: TensorProto_DataLocation.EXTERNAL,
    externalData: [
      { key: 'location', value: external.location },
      { key: 'offset', value: String(external.offset) },
      { key: 'length', value: String(external.length) },
    ],
  })
}

/**
 * The elements of a tensor that lies in the model, from `raw_data` or from the typed fields.
 *
 * @throws ModalignError ONNX_TENSOR_EXTERNAL when they lie in another file (see `readTensor` in load.ts), ONNX_DTYPE_UNSUPPORTED for element types that
 *   TensorValue lacks, ONNX_TENSOR_SIZE when the elements do not fill the shape.
 * @example
 * tensorValue(makeTensor('x', float32Tensor(new Float32Array([1, 2]), [2]))).data // Float32Array [1, 2]
 */
export function tensorValue(tensor: TensorProto): TensorValue {
  const { name } = tensor
  const { dtype, dims } = tensorType(tensor)
  if (tensor.dataLocation === TensorProto_DataLocation.EXTERNAL) {
    throw new ModalignError({
      code: 'ONNX_TENSOR_EXTERNAL',
      field: name,
      got: 'elements in an external file',
      expected: 'elements in the model',
    })
  }
  if (isFieldSet(tensor, TensorProtoSchema.field.rawData)) return tensorFromBytes(dtype, dims, tensor.rawData, name)
  const typed = typedField(tensor, dtype)
  return tensorFromBytes(dtype, dims, new Uint8Array(typed.buffer, typed.byteOffset, typed.byteLength), name)
}

/** Element type and sizes of a tensor. @throws ModalignError ONNX_DTYPE_UNSUPPORTED, ONNX_TENSOR_SIZE (a size below 0 or above 2^53). */
export function tensorType(tensor: TensorProto): { readonly dtype: DataType; readonly dims: readonly number[] } {
  const dtype = dataTypeOf(tensor.dataType)
  if (dtype === undefined) {
    throw new ModalignError({
      code: 'ONNX_DTYPE_UNSUPPORTED',
      field: tensor.name,
      got: onnxDataTypeName(tensor.dataType),
      expected: Object.keys(onnxDataTypes).join(', '),
    })
  }
  const dims = tensor.dims.map(Number)
  if (dims.some((size) => size < 0) || !Number.isSafeInteger(elementCount(dims) * 8)) {
    throw new ModalignError({ code: 'ONNX_TENSOR_SIZE', field: tensor.name, got: `the shape [${tensor.dims.join(', ')}]` })
  }
  return { dtype, dims }
}

/** onnx.proto says which typed field carries which element type; narrower types travel as int32 or uint64. */
function typedField(tensor: TensorProto, dtype: DataType) {
  switch (dtype) {
    case 'float32':
      return Float32Array.from(tensor.floatData)
    case 'float64':
      return Float64Array.from(tensor.doubleData)
    case 'int64':
      return BigInt64Array.from(tensor.int64Data)
    case 'uint64':
      return BigUint64Array.from(tensor.uint64Data)
    case 'uint32':
      return Uint32Array.from(tensor.uint64Data, Number)
    case 'int32':
      return Int32Array.from(tensor.int32Data)
    case 'int16':
      return Int16Array.from(tensor.int32Data)
    case 'int8':
      return Int8Array.from(tensor.int32Data)
    case 'uint16':
    case 'float16':
    case 'bfloat16':
      return Uint16Array.from(tensor.int32Data)
    case 'uint8':
    case 'bool':
      return Uint8Array.from(tensor.int32Data)
  }
}

/**
 * Name, element type and shape of a value. A string is a named size, `''` an unknown one; without `dims` even the rank is unknown.
 *
 * @example
 * makeValueInfo('pixel_values', 'float32', ['batch', 3, 224, 224])
 */
export function makeValueInfo(name: string, dtype: DataType, dims?: readonly (number | string)[]): ValueInfoProto {
  return create(ValueInfoProtoSchema, {
    name,
    type: {
      value: {
        case: 'tensorType',
        value: { elemType: onnxDataTypes[dtype], ...(dims === undefined ? {} : { shape: { dim: dims.map(dimension) } }) },
      },
    },
  })
}

function dimension(size: number | string) {
  if (size === '') return {}
  return typeof size === 'number'
    ? { value: { case: 'dimValue' as const, value: BigInt(size) } }
    : { value: { case: 'dimParam' as const, value: size } }
}

/** What a ValueInfoProto says: `dims` is undefined where the rank is unknown; a size is a number, a name, or '' where it is unknown. */
export interface ValueDescription {
  readonly name: string
  readonly dtype?: DataType
  readonly dims?: readonly (number | string)[]
}

/** The reverse of {@link makeValueInfo}; for values that are not tensors of our element types only the name. */
export function valueDescription(info: ValueInfoProto): ValueDescription {
  const type = info.type?.value
  if (type?.case !== 'tensorType') return { name: info.name }
  const dtype = dataTypeOf(type.value.elemType)
  const dims = type.value.shape?.dim.map(({ value }) => {
    if (value.case === 'dimValue') return Number(value.value)
    return value.case === 'dimParam' ? value.value : ''
  })
  return { name: info.name, ...(dtype === undefined ? {} : { dtype }), ...(dims === undefined ? {} : { dims }) }
}

export interface GraphInput {
  readonly name?: string
  readonly nodes: readonly NodeProto[]
  readonly inputs: readonly ValueInfoProto[]
  readonly outputs: readonly ValueInfoProto[]
  readonly initializers?: readonly TensorProto[]
  readonly valueInfo?: readonly ValueInfoProto[]
}

/**
 * @example
 * makeGraph({ nodes: [makeNode({ opType: 'Relu', inputs: ['x'], outputs: ['y'] })], inputs: [makeValueInfo('x', 'float32', ['n'])], outputs: [makeValueInfo('y', 'float32', ['n'])] })
 */
export function makeGraph({ name = 'graph', nodes, inputs, outputs, initializers = [], valueInfo = [] }: GraphInput): GraphProto {
  return create(GraphProtoSchema, {
    name,
    node: [...nodes],
    input: [...inputs],
    output: [...outputs],
    initializer: [...initializers],
    valueInfo: [...valueInfo],
  })
}

export interface ModelInput {
  readonly graph: GraphProto
  /** Version of each operator set by domain. Default: the standard operators, version 21. */
  readonly opsets?: Readonly<Record<string, number>>
  readonly irVersion?: number
  readonly producerName?: string
}

/**
 * @example
 * encodeModel(makeModel({ graph, opsets: { '': 21, 'com.microsoft': 1 } }))
 */
export function makeModel({ graph, opsets = { '': 21 }, irVersion = 10, producerName = 'modalign' }: ModelInput): ModelProto {
  return create(ModelProtoSchema, {
    irVersion: BigInt(irVersion),
    opsetImport: Object.entries(opsets).map(([domain, version]) => ({ domain, version: BigInt(version) })),
    producerName,
    graph,
  })
}

const utf8 = new TextEncoder()
const strictUtf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function text(bytes: Uint8Array, field: string): string {
  try {
    return strictUtf8.decode(bytes)
  } catch (cause) {
    throw new ModalignError({ code: 'ONNX_MALFORMED', field, got: `${bytes.byteLength} bytes that are not UTF-8`, expected: 'text', cause })
  }
}
