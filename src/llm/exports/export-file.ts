/** What an ONNX export of a language model holds: its nodes, and its initializers where they lie. */
import { join } from 'node:path'
import { ModalignError } from '../../errors.ts'
import { cast } from '../../graph/operators/cast.ts'
import { isFloating, type Tensor, type WeightSource, weight } from '../../graph/tensor.ts'
import { fileSource } from '../../io/byte-source.ts'
import { attributeValue, tensorValue } from '../../onnx/build.ts'
import { dataTypeOf, onnxDataTypeName, tensorFromBytes } from '../../onnx/dtypes.ts'
import { externalReference } from '../../onnx/external.ts'
import { subgraphs } from '../../onnx/functions.ts'
import { readOnnxFile } from '../../onnx/load.ts'
import { type GraphProto, type NodeProto, type TensorProto, TensorProto_DataLocation, TensorProto_DataType } from '../../onnx/onnx_pb.ts'
import { mainGraph } from '../../onnx/surgery.ts'
import { bytesPerElement, type DataType, elementCount, type TensorValue } from '../../tensors.ts'

/** One initializer. 4-bit integers count as `uint8` with two values a byte, the first in the low half. */
export interface StoredTensor {
  readonly name: string
  readonly dtype: DataType
  readonly dims: readonly number[]
  /** 4-bit integers: whether they are signed. */
  readonly nibbles?: 'signed' | 'unsigned' | undefined
  readonly source: WeightSource
}

export interface ExportFile {
  readonly path: string
  /** Absolute paths of everything that holds weights. */
  readonly files: readonly string[]
  /** Of the main graph and of all its branches. */
  readonly nodes: readonly NodeProto[]
  /** By name, their own and those of their casts. */
  readonly tensors: ReadonlyMap<string, StoredTensor>
  /** Names of the main graph's inputs. */
  readonly inputs: readonly string[]
  /** The node that makes a value. */
  readonly producers: ReadonlyMap<string, NodeProto>
  /** The nodes that take a value. */
  readonly consumers: ReadonlyMap<string, readonly NodeProto[]>
}

/**
 * @throws ModalignError what `readOnnxFile` throws, LLM_EXPORT_TENSOR for an initializer that cannot be referred to
 */
export async function readExport(path: string): Promise<ExportFile> {
  const { model, externalFolder } = await readOnnxFile(path)
  const main = mainGraph(model)
  const [nodes, tensors, files]: [NodeProto[], Map<string, StoredTensor>, Set<string>] = [[], new Map(), new Set([path])]
  const graphs: GraphProto[] = [main]
  for (let graph = graphs.pop(); graph !== undefined; graph = graphs.pop()) {
    for (const tensor of graph.initializer) {
      const stored = storedTensor(tensor, externalFolder, path)
      if (stored === undefined) continue
      tensors.set(tensor.name, stored)
      if (stored.source.kind === 'file') files.add(stored.source.file)
    }
    for (const node of graph.node) {
      nodes.push(node)
      graphs.push(...subgraphs(node))
    }
  }
  // What a node only widens, renames or sees in another shape is still that initializer.
  for (const {
    opType,
    input: [from = ''],
    output: [to = ''],
  } of nodes) {
    const stored = tensors.get(from)
    if (stored !== undefined && seen.has(opType)) tensors.set(to, stored)
  }
  const producers = new Map(nodes.flatMap((node) => node.output.map((name) => [name, node] as const)))
  const consumers = new Map<string, NodeProto[]>()
  for (const node of nodes) {
    for (const name of new Set(node.input)) {
      const known = consumers.get(name)
      if (known === undefined) consumers.set(name, [node])
      else known.push(node)
    }
  }
  return { path, files: [...files], nodes, tensors, inputs: main.input.map(({ name }) => name), producers, consumers }
}

const seen = new Set(['Cast', 'Identity', 'Reshape'])

/** Undefined for element types that no weight of ours has: strings, 8-bit floats. */
function storedTensor(tensor: TensorProto, folder: string, file: string): StoredTensor | undefined {
  const { name, dataType } = tensor
  const nibbles = dataType === TensorProto_DataType.UINT4 ? 'unsigned' : dataType === TensorProto_DataType.INT4 ? 'signed' : undefined
  const dims = tensor.dims.map(Number)
  const dtype = nibbles === undefined ? dataTypeOf(dataType) : 'uint8'
  if (dtype === undefined) return undefined
  const byteLength = nibbles === undefined ? elementCount(dims) * bytesPerElement[dtype] : Math.ceil(elementCount(dims) / 2)
  const own = { name, dtype, dims, nibbles } as const
  if (tensor.dataLocation === TensorProto_DataLocation.EXTERNAL) {
    const { location, offset, length } = externalReference(tensor, file)
    if (length !== undefined && length !== byteLength)
      throw new ModalignError({
        code: 'LLM_EXPORT_TENSOR',
        file,
        field: name,
        got: `${length} bytes`,
        expected: `${byteLength} for ${onnxDataTypeName(dataType)} [${dims.join(', ')}]`,
      })
    return { ...own, source: { kind: 'file', file: join(folder, location), offset, byteLength } }
  }
  if (nibbles === undefined) return { ...own, source: { kind: 'memory', value: tensorValue(tensor) } }
  const bytes = tensor.rawData.length > 0 ? tensor.rawData : Uint8Array.from(tensor.int32Data)
  return { ...own, source: { kind: 'memory', value: tensorFromBytes('uint8', [byteLength], bytes, name) } }
}

/** The elements of a stored tensor, in its own type. @throws ModalignError LLM_EXPORT_TENSOR where its file is too short */
export async function readStored({ name, dtype, dims, nibbles, source }: StoredTensor): Promise<TensorValue> {
  if (source.kind === 'memory') return source.value
  const opened = await fileSource(source.file)
  if (source.offset + source.byteLength > opened.size)
    throw new ModalignError({
      code: 'LLM_EXPORT_TENSOR',
      file: source.file,
      field: name,
      got: `${opened.size} bytes`,
      expected: `at least ${source.offset + source.byteLength}`,
    })
  const shape = nibbles === undefined ? dims : [source.byteLength]
  return tensorFromBytes(dtype, shape, await opened.read(source.offset, source.byteLength), name)
}

/** The same bytes as a weight of a graph, seen in a shape of as many elements; floating-point ones as float32. */
export function storedWeight(stored: StoredTensor, shape: readonly number[]): Tensor {
  const known = weights.get(stored) ?? new Map<string, Tensor>()
  weights.set(stored, known)
  const key = String(shape)
  const tensor = known.get(key) ?? madeWeight(stored, shape)
  known.set(key, tensor)
  return tensor
}

/** A head and a table that are one initializer are one weight: names are given once in a graph. */
const weights = new WeakMap<StoredTensor, Map<string, Tensor>>()

function madeWeight({ name, dtype, dims, source }: StoredTensor, shape: readonly number[]): Tensor {
  const seen: WeightSource = source.kind === 'memory' ? { kind: 'memory', value: { ...source.value, dims: shape } } : source
  const tensor = weight(String(dims) === String(shape) ? name : `${name}[${shape.join(',')}]`, dtype, shape, seen)
  return isFloating(dtype) ? cast(tensor, 'float32') : tensor
}

/** An integer or float attribute; `otherwise` where the node does not say it. */
export function numberOf(node: NodeProto, name: string, otherwise: number): number {
  const found = node.attribute.find((one) => one.name === name)
  if (found === undefined) return otherwise
  const value = attributeValue(found)
  return 'int' in value ? Number(value.int) : 'float' in value ? value.float : otherwise
}
