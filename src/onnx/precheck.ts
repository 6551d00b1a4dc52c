/** What a stranger's model must pass before ONNX Runtime, which can be crashed by a file, sees its bytes. */
import { isFieldSet } from '@bufbuild/protobuf'
import { ModalignError } from '../errors.ts'
import { decodeModel, maxModelBytes } from './codec.ts'
import { onnxDataTypeName } from './dtypes.ts'
import { type ExternalReference, externalReference } from './external.ts'
import { checkFormat } from './format.ts'
import { calledFunction, checkFunctions, functionKey } from './functions.ts'
import {
  type AttributeProto,
  AttributeProtoSchema,
  type ModelProto,
  type OperatorSetIdProto,
  type SparseTensorProto,
  TensorProto_DataType as T,
  type TensorProto,
  TensorProto_DataLocation,
  TensorProtoSchema,
} from './onnx_pb.ts'
import { type Visitor, visitModel } from './visit.ts'
import { checkWire, type WireLimits } from './wire.ts'

/** The newest IR and standard operator set that onnxruntime 1.30 reads. */
export const newestIrVersion = 13
export const newestOpset = 26

export interface PrecheckOptions {
  /** For messages. */
  readonly file?: string
  /** Sizes in bytes of the external data files by `location`. Given, every range must lie inside its file, and a file that is not listed is missing. */
  readonly externalSizes?: ReadonlyMap<string, number>
  /** Operator domains allowed besides '', `ai.onnx`, `ai.onnx.ml`, `com.microsoft` and those whose operators the model itself defines as functions. */
  readonly allowDomains?: readonly string[]
  readonly limits?: WireLimits
}

/**
 * Checks a model's bytes and decodes them. Every failure is a ModalignError: ONNX_FORMAT (another kind of file), ONNX_LFS_POINTER, ONNX_TOO_LARGE,
 * ONNX_MALFORMED, ONNX_LIMIT, ONNX_IR_VERSION, ONNX_OPSET, ONNX_DOMAIN, ONNX_FUNCTION_EXPANSION, ONNX_TENSOR_SIZE, ONNX_DTYPE_UNSUPPORTED,
 * ONNX_EXTERNAL_PATH, ONNX_EXTERNAL_DATA, ONNX_EXTERNAL_MISSING.
 *
 * @example
 * const model = precheckModel(await readFile('model.onnx'), { file: 'model.onnx' })
 */
export function precheckModel(bytes: Uint8Array, options: PrecheckOptions = {}): ModelProto {
  const { file } = options
  checkFormat(bytes, file)
  if (bytes.byteLength > maxModelBytes) {
    throw new ModalignError({ code: 'ONNX_TOO_LARGE', file, got: `${bytes.byteLength} bytes`, expected: `at most ${maxModelBytes} bytes` })
  }
  checkWire(bytes, options.limits, file)
  const model = decodeModel(bytes, file)
  checkModel(model, options)
  return model
}

/** The checks of {@link precheckModel} that need no bytes, for a decoded model. */
export function checkModel(model: ModelProto, options: PrecheckOptions = {}): void {
  const { file } = options
  if (model.graph === undefined)
    throw new ModalignError({ code: 'ONNX_MALFORMED', file, field: '/graph', got: 'no graph', expected: 'an ONNX model' })
  if (model.irVersion < 3n || model.irVersion > BigInt(newestIrVersion)) {
    throw new ModalignError({ code: 'ONNX_IR_VERSION', file, got: `IR version ${model.irVersion}`, expected: `3 to ${newestIrVersion}` })
  }
  checkOpsets(model.opsetImport, '/opset_import', file)
  checkFunctions(model, file)
  const defined = new Set(model.functions.map(functionKey))
  const allowed = new Set(['', 'ai.onnx', 'ai.onnx.ml', 'com.microsoft', ...(options.allowDomains ?? [])])
  const visit: Visitor = {
    node(node, path) {
      if (!allowed.has(node.domain) && !defined.has(calledFunction(node))) {
        throw new ModalignError({
          code: 'ONNX_DOMAIN',
          file,
          field: path,
          got: `operator ${node.domain}.${node.opType}`,
          expected: `operators of ${[...allowed].map((domain) => domain || 'the standard').join(', ')}`,
          hint: 'it needs a custom operator library; allow the domain only if you load one',
        })
      }
    },
    attribute: (attribute, path) => checkAttribute(attribute, path, file),
    tensor: (tensor, path) => checkTensor(tensor, path, options),
    sparse: (sparse, path) => checkSparse(sparse, path, file),
  }
  visitModel(model, visit)
}

/** Every external file that the model's tensors name, with the ranges wanted of it. */
export function externalReferences(
  model: ModelProto,
  file?: string,
): { readonly tensor: TensorProto; readonly reference: ExternalReference }[] {
  const found: { readonly tensor: TensorProto; readonly reference: ExternalReference }[] = []
  visitModel(model, {
    tensor(tensor) {
      if (isExternal(tensor)) found.push({ tensor, reference: externalReference(tensor, file) })
    },
  })
  return found
}

function checkOpsets(opsets: readonly OperatorSetIdProto[], path: string, file: string | undefined): void {
  if (opsets.length === 0)
    throw new ModalignError({ code: 'ONNX_OPSET', file, field: path, got: 'no operator set', expected: 'at least one' })
  const seen = new Set<string>()
  for (const { domain, version } of opsets) {
    const name = domain === 'ai.onnx' ? '' : domain
    if (seen.has(name))
      throw new ModalignError({ code: 'ONNX_OPSET', file, field: path, got: `two versions of '${domain}'`, expected: 'one' })
    seen.add(name)
    if (version < 1n || (name === '' && version > BigInt(newestOpset))) {
      throw new ModalignError({
        code: 'ONNX_OPSET',
        file,
        field: path,
        got: `operator set ${domain || 'ai.onnx'} ${version}`,
        expected: `1 to ${newestOpset}`,
        hint: 'export the model again with an older opset, or upgrade onnxruntime',
      })
    }
  }
}

/** The type says which value field counts; ours and ONNX Runtime's readers must not come to differ about it. */
function checkAttribute(attribute: AttributeProto, path: string, file: string | undefined): void {
  const typed = isFieldSet(attribute, AttributeProtoSchema.field.type)
  if (!typed || attribute.type === 0) {
    throw new ModalignError({ code: 'ONNX_MALFORMED', file, field: path, got: `attribute ${attribute.name} without a known type` })
  }
}

const bitsPerElement: ReadonlyMap<number, number> = new Map<number, number>([
  [T.FLOAT, 32],
  [T.UINT8, 8],
  [T.INT8, 8],
  [T.UINT16, 16],
  [T.INT16, 16],
  [T.INT32, 32],
  [T.INT64, 64],
  [T.BOOL, 8],
  [T.FLOAT16, 16],
  [T.DOUBLE, 64],
  [T.UINT32, 32],
  [T.UINT64, 64],
  [T.COMPLEX64, 64],
  [T.COMPLEX128, 128],
  [T.BFLOAT16, 16],
  [T.FLOAT8E4M3FN, 8],
  [T.FLOAT8E4M3FNUZ, 8],
  [T.FLOAT8E5M2, 8],
  [T.FLOAT8E5M2FNUZ, 8],
  [T.UINT4, 4],
  [T.INT4, 4],
  [T.FLOAT4E2M1, 4],
  [T.FLOAT8E8M0, 8],
  [T.UINT2, 2],
  [T.INT2, 2],
])

function isExternal(tensor: TensorProto): boolean {
  return tensor.dataLocation === TensorProto_DataLocation.EXTERNAL
}

function checkTensor(tensor: TensorProto, path: string, { file, externalSizes }: PrecheckOptions): void {
  const fail = (code: string, got: string, expected?: string) =>
    new ModalignError({ code, file, field: path, got: `${tensor.name}: ${got}`, expected })
  const count = elements(tensor.dims)
  if (count === undefined)
    throw fail('ONNX_TENSOR_SIZE', `the shape [${tensor.dims.join(', ')}]`, 'sizes of 0 or more, at most 2^40 elements')
  if (tensor.segment !== undefined) throw fail('ONNX_MALFORMED', 'a tensor in segments', 'a whole tensor')
  const typed = [tensor.floatData, tensor.int32Data, tensor.int64Data, tensor.doubleData, tensor.uint64Data, tensor.stringData].filter(
    (data) => data.length > 0,
  )
  const raw = isFieldSet(tensor, TensorProtoSchema.field.rawData)
  if (typed.length + (raw ? 1 : 0) + (isExternal(tensor) ? 1 : 0) > 1) throw fail('ONNX_MALFORMED', 'elements in several fields', 'one')
  if (tensor.dataType === T.STRING) {
    if (raw || isExternal(tensor)) throw fail('ONNX_MALFORMED', 'strings outside string_data')
    if (tensor.stringData.length !== count) throw fail('ONNX_TENSOR_SIZE', `${tensor.stringData.length} strings`, `${count}`)
    return
  }
  const bits = bitsPerElement.get(tensor.dataType)
  if (bits === undefined) throw fail('ONNX_DTYPE_UNSUPPORTED', onnxDataTypeName(tensor.dataType))
  const bytes = Math.ceil((count * bits) / 8)
  if (isExternal(tensor)) {
    checkExternalRange(externalReference(tensor, file), bytes, externalSizes, fail)
  } else if (raw) {
    if (tensor.rawData.byteLength !== bytes) throw fail('ONNX_TENSOR_SIZE', `${tensor.rawData.byteLength} bytes`, `${bytes}`)
  } else {
    const wanted = typedCount(tensor.dataType, count, bits)
    const data = typedData(tensor)
    if (data.length !== wanted || (typed[0] !== undefined && typed[0] !== data)) {
      throw fail('ONNX_TENSOR_SIZE', `${data.length} values in the field for ${onnxDataTypeName(tensor.dataType)}`, `${wanted}`)
    }
  }
}

function checkExternalRange(
  reference: ExternalReference,
  bytes: number,
  sizes: ReadonlyMap<string, number> | undefined,
  fail: (code: string, got: string, expected?: string) => ModalignError,
): void {
  const { location, offset, length } = reference
  if (length !== undefined && length !== bytes) throw fail('ONNX_TENSOR_SIZE', `${length} bytes of external data`, `${bytes}`)
  if (sizes === undefined) return
  const size = sizes.get(location)
  if (size === undefined) throw fail('ONNX_EXTERNAL_MISSING', `no file ${location}`, 'the external data file beside the model')
  if (offset + bytes > size)
    throw fail('ONNX_EXTERNAL_DATA', `bytes ${offset} to ${offset + bytes} of ${location}`, `a range inside its ${size} bytes`)
}

/** The product of the sizes; undefined when one is negative or the product is beyond any tensor. */
function elements(dims: readonly bigint[]): number | undefined {
  if (dims.some((size) => size < 0n)) return undefined
  if (dims.includes(0n)) return 0
  let count = 1
  for (const size of dims) {
    count *= Number(size)
    if (count > 2 ** 40) return undefined
  }
  return count
}

/** onnx.proto: which field carries an element type where raw_data does not. */
function typedData(tensor: TensorProto): readonly (number | bigint)[] {
  switch (tensor.dataType) {
    case T.FLOAT:
    case T.COMPLEX64:
      return tensor.floatData
    case T.DOUBLE:
    case T.COMPLEX128:
      return tensor.doubleData
    case T.INT64:
      return tensor.int64Data
    case T.UINT32:
    case T.UINT64:
      return tensor.uint64Data
    default:
      return tensor.int32Data
  }
}

function typedCount(dataType: number, count: number, bits: number): number {
  if (dataType === T.COMPLEX64 || dataType === T.COMPLEX128) return 2 * count
  return bits < 8 ? Math.ceil((count * bits) / 8) : count
}

/** ONNX Runtime makes sparse tensors dense when it loads them, so their shape allocates memory that no byte of the file pays for. */
function checkSparse(sparse: SparseTensorProto, path: string, file: string | undefined): void {
  const count = elements(sparse.dims)
  if (count === undefined || count > 2 ** 28 || sparse.values === undefined) {
    throw new ModalignError({
      code: 'ONNX_TENSOR_SIZE',
      file,
      field: path,
      got: `a sparse tensor of shape [${sparse.dims.join(', ')}]`,
      expected: 'values, and at most 2^28 elements',
    })
  }
}
