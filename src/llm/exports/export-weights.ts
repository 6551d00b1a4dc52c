/**
 * The weights of an export by the names that Transformers gives them. Exporters write the path of a module into the names of its nodes (`/model/layers.0/attn/q_proj/MatMul`)
 * and keep the names of norms and biases; a matrix multiplied by is kept [in, out], or in blocks [out, in].
 */
import { ModalignError } from '../../errors.ts'
import { type Blocks, blockQuantised } from '../../graph/composites/block-quantised.ts'
import { matmulTransposed } from '../../graph/composites/linear.ts'
import { concat } from '../../graph/operators/concat.ts'
import { matmul } from '../../graph/operators/matmul.ts'
import { slice } from '../../graph/operators/slice.ts'
import { swapLastAxes } from '../../graph/operators/transpose.ts'
import type { Tensor } from '../../graph/tensor.ts'
import type { NodeProto } from '../../onnx/onnx_pb.ts'
import type { LinearLayer, WeightLookup } from '../decoder.ts'
import { blocksFrom } from './blocks.ts'
import { type ExportFile, numberOf, type StoredTensor, storedWeight } from './export-file.ts'
import { type IntegerMatrix, integerBlocks, integerOperand } from './integers.ts'

/** A matrix [out, in] as it is stored. */
export type StoredMatrix = { readonly out: number; readonly into: number } & (
  | { readonly layout: 'out-in' | 'in-out'; readonly stored: StoredTensor }
  | { readonly layout: 'blocks'; readonly blocks: Blocks }
)

export interface ExportWeights {
  /** By module. */
  readonly matrices: ReadonlyMap<string, StoredMatrix>
  /** Vectors by name. */
  readonly vectors: ReadonlyMap<string, StoredTensor>
  /** The token embeddings; undefined where this file begins with `inputs_embeds`. */
  readonly table: StoredMatrix | undefined
}

export interface TableSize {
  readonly vocabulary: number
  readonly width: number
}

/**
 * @throws ModalignError LLM_EXPORT_QUANTISATION for products with weights of a kind that is not understood
 */
export async function exportWeights(file: ExportFile, size: TableSize): Promise<ExportWeights> {
  const matrices = new Map<string, StoredMatrix>()
  const vectors = new Map<string, StoredTensor>()
  for (const [name, tensor] of file.tensors) if (tensor.dims.length === 1) vectors.set(canonicalName(name), tensor)
  let table: StoredMatrix | undefined
  for (const node of file.nodes) {
    if (refusedProducts.has(node.opType)) throw refusedProduct(file, node)
    const found = await matrixOf(file, node)
    if (found !== undefined) {
      const module = moduleOf(node)
      matrices.set(module, found)
      const place = biasPlaces[node.opType]
      const bias = place === undefined ? undefined : file.tensors.get(node.input[place] ?? '')
      if (bias !== undefined) vectors.set(`${module}.bias`, bias)
      continue
    }
    const inside = node.opType === 'MultiHeadAttention' ? file.tensors.get(node.input[3] ?? '') : undefined
    if (inside !== undefined) vectors.set(`${moduleOf(node)}.qkv_proj.bias`.replace(/\.attn\./, '.self_attn.'), inside)
    const vector = vectorOf(file, node)
    if (vector !== undefined && !vectors.has(vector.name)) vectors.set(vector.name, vector.stored)
    table ??= await tableOf(file, node, size)
  }
  return { matrices, vectors, table }
}

/** Which input of a product is its bias. */
const biasPlaces: Readonly<Record<string, number>> = { MatMulNBits: 5, MatMulIntegerToFloat: 6, DynamicQuantizeMatMul: 4, Gemm: 2 }
const refusedProducts = new Set(['QLinearMatMul', 'QGemm', 'MatMulBnb4', 'MatMulFpQ4'])

function refusedProduct(file: ExportFile, { opType, name }: NodeProto): ModalignError {
  return new ModalignError({
    code: 'LLM_EXPORT_QUANTISATION',
    file: file.path,
    field: name,
    got: opType,
    expected: 'MatMul in float32, float16 or 8-bit integers, or MatMulNBits',
    hint: 'take another variant of the export: model.onnx, model_fp16.onnx or model_q4.onnx',
  })
}

async function matrixOf(file: ExportFile, node: NodeProto): Promise<StoredMatrix | undefined> {
  const operand = (index: number): StoredTensor | undefined => file.tensors.get(node.input[index] ?? '')
  if (node.opType === 'MatMulNBits') {
    const [packed, scales] = [operand(1), operand(2)]
    if (packed === undefined || scales === undefined) return undefined
    const [into, out] = [numberOf(node, 'K', 0), numberOf(node, 'N', 0)]
    const blocks = await blocksFrom({
      packed,
      scales,
      zeroPoints: operand(3),
      rows: out,
      columns: into,
      bits: numberOf(node, 'bits', 4),
      blockSize: numberOf(node, 'block_size', 32),
      file: file.path,
    })
    return { layout: 'blocks', blocks, out, into }
  }
  const integers = node.opType === 'Gather' ? undefined : integerOperand(file, node)
  if (integers !== undefined) return integerMatrix(file, integers)
  if (node.opType !== 'MatMul' && node.opType !== 'Gemm' && node.opType !== 'FusedMatMul') return undefined
  const stored = operand(1)
  if (stored?.dims.length !== 2) return undefined
  const [first = 0, second = 0] = stored.dims
  const turned = numberOf(node, 'transB', 0) === 1
  return turned ? { layout: 'out-in', stored, out: first, into: second } : { layout: 'in-out', stored, out: second, into: first }
}

async function integerMatrix(file: ExportFile, matrix: IntegerMatrix): Promise<StoredMatrix> {
  return { layout: 'blocks', blocks: await integerBlocks(matrix, file.path), out: matrix.rows, into: matrix.columns }
}

/** The weight of a norm, or a bias, by the path of the node that uses it: exporters write equal vectors once, under the name of one of them. */
function vectorOf(file: ExportFile, node: NodeProto): { readonly name: string; readonly stored: StoredTensor } | undefined {
  const kind = node.opType === 'Add' ? 'bias' : vectorUsers.has(node.opType) ? 'weight' : undefined
  const stored = node.input.map((name) => file.tensors.get(name)).find((tensor) => tensor?.dims.length === 1)
  if (kind === undefined || stored === undefined) return undefined
  return { name: canonicalName(`${moduleOf(node)}.${kind}`), stored }
}

const vectorUsers = new Set(['Mul', 'SimplifiedLayerNormalization', 'SkipSimplifiedLayerNormalization', 'RMSNormalization'])

/** The table that a node takes rows of, where it has the size of the token embeddings. */
async function tableOf(file: ExportFile, node: NodeProto, { vocabulary, width }: TableSize): Promise<StoredMatrix | undefined> {
  const stored = (index: number): StoredTensor | undefined => file.tensors.get(node.input[index] ?? '')
  const data = stored(0)
  if (node.opType === 'Gather' && data === undefined) {
    // The head's matrix, turned: exports whose table is tied to it keep one of the two.
    const turned = file.producers.get(node.input[0] ?? '')
    const head = turned?.opType === 'Transpose' ? file.tensors.get(turned.input[0] ?? '') : undefined
    const fits = head?.dims.length === 2 && head.dims[0] === width && head.dims[1] === vocabulary
    return head !== undefined && fits ? { layout: 'in-out', stored: head, out: vocabulary, into: width } : undefined
  }
  if (data === undefined) return undefined
  if (node.opType === 'Gather') {
    const integers = integerOperand(file, node)
    if (integers !== undefined)
      return integers.rows === vocabulary && integers.columns === width ? integerMatrix(file, integers) : undefined
    const fits = numberOf(node, 'axis', 0) === 0 && data.dims.length === 2 && data.dims[0] === vocabulary && data.dims[1] === width
    return fits ? { layout: 'out-in', stored: data, out: vocabulary, into: width } : undefined
  }
  if (node.opType !== 'GatherBlockQuantized') return undefined
  const scales = stored(2)
  if (scales === undefined) return undefined
  const blocks = await blocksFrom({
    packed: data,
    scales,
    zeroPoints: stored(3),
    rows: vocabulary,
    columns: width,
    bits: numberOf(node, 'bits', 4),
    blockSize: numberOf(node, 'block_size', 128),
    file: file.path,
  })
  return { layout: 'blocks', blocks, out: vocabulary, into: width }
}

/** `/model/layers.0/attn/q_proj/MatMul_Q4` -> `model.layers.0.self_attn.q_proj`. Where a node has no such name, its weight's has to do. */
function moduleOf({ name, input }: NodeProto): string {
  const parts = name.split('/').filter((part) => part !== '')
  if (parts.length >= 2) return canonicalName(parts.slice(0, -1).join('.'))
  return canonicalName((input[1] ?? '').replace(/(\.MatMul)?\.weight(_\w+)?$/, ''))
}

/** As Transformers names it, from what onnxruntime-genai's builder makes of it. */
function canonicalName(name: string): string {
  return name
    .replace(/\.attn\./, '.self_attn.')
    .replace(/\.([qk]_norm)\.layernorm\./, '.$1.')
    .replace(/^model\.layers\.\d+\.final_norm_layernorm\./, 'model.norm.')
    .replace(/\.Add\.bias$/, '.bias')
}

/** Where one projection lies in the product of several. */
interface Part {
  readonly matrix: StoredMatrix
  readonly start: number
  readonly end: number
}

export interface LookupOptions {
  readonly file: string
  readonly embeddingsName: string
  readonly table: StoredMatrix
  /** Rows of the query's, key's and value's projections, which exporters join. */
  readonly attention: { readonly query: number; readonly key: number; readonly value: number }
  /** Told the name of every stored matrix, and of every vector, that is used. */
  readonly used: (name: string) => void
}

/** @throws (the lookup) ModalignError TENSOR_MISSING, WEIGHT_SHAPE */
export function exportLookup({ matrices, vectors }: ExportWeights, options: LookupOptions): WeightLookup {
  const { file, embeddingsName, table, attention, used } = options
  const known = new Map<string, Tensor>()
  const ranges: Readonly<Record<string, readonly [number, number]>> = {
    q_proj: [0, attention.query],
    k_proj: [attention.query, attention.query + attention.key],
    v_proj: [attention.query + attention.key, attention.query + attention.key + attention.value],
  }
  const joined = (module: string): { readonly module: string; readonly start: number; readonly end: number } | undefined => {
    const [, layer, projection = ''] = /^(.*\.)([qkv]_proj)$/.exec(module) ?? []
    const range = Object.hasOwn(ranges, projection) ? ranges[projection] : undefined
    return layer === undefined || range === undefined ? undefined : { module: `${layer}qkv_proj`, start: range[0], end: range[1] }
  }
  const partOf = (module: string): Part | undefined => {
    const own = matrices.get(module)
    if (own !== undefined) {
      used(module)
      return { matrix: own, start: 0, end: own.out }
    }
    const place = joined(module)
    const matrix = place && matrices.get(place.module)
    if (place === undefined || matrix === undefined) return undefined
    used(place.module)
    return { matrix, start: place.start, end: place.end }
  }
  const wholes = new Map<StoredMatrix, Tensor>()
  /** [out, in], or [in, out] for that layout. */
  const whole = (matrix: StoredMatrix): Tensor => {
    const tensor = wholes.get(matrix) ?? made(matrix)
    wholes.set(matrix, tensor)
    return tensor
  }
  const vector = (name: string): Tensor | undefined => {
    const own = vectors.get(name)
    if (own !== undefined) {
      used(name)
      return storedWeight(own, own.dims)
    }
    const place = name.endsWith('.bias') ? joined(name.slice(0, -'.bias'.length)) : undefined
    const stored = place && vectors.get(`${place.module}.bias`)
    if (stored !== undefined) used(`${place?.module}.bias`)
    return stored && place && slice(storedWeight(stored, stored.dims), [{ axis: 0, start: place.start, end: place.end }])
  }
  /** The modules that a joined one is made of, where the exporter has taken it apart: Phi-3's. */
  const apart = (module: string): readonly string[] | undefined => {
    const [, layer, name = ''] = /^(.*\.)(\w+)$/.exec(module) ?? []
    const parts = Object.hasOwn(joinedModules, name) ? joinedModules[name]?.map((part) => `${layer}${part}`) : undefined
    return parts?.every((part) => matrices.has(part)) ? parts : undefined
  }
  const matrix = (name: string): Tensor | undefined => {
    if (name === embeddingsName) return table.layout === 'in-out' ? swapLastAxes(whole(table)) : whole(table)
    const module = name.endsWith('.weight') ? name.slice(0, -'.weight'.length) : ''
    const part = partOf(module)
    if (part === undefined) {
      const parts = apart(module)?.map((one) => matrix(`${one}.weight`))
      return (
        parts &&
        concat(
          parts.flatMap((one) => one ?? []),
          0,
        )
      )
    }
    const all = part.matrix.layout === 'in-out' ? swapLastAxes(whole(part.matrix)) : whole(part.matrix)
    return part.end - part.start === part.matrix.out ? all : slice(all, [{ axis: 0, start: part.start, end: part.end }])
  }
  const wrongShape = (field: string, got: readonly unknown[], expected: readonly number[]): ModalignError =>
    new ModalignError({
      code: 'WEIGHT_SHAPE',
      file,
      field,
      got: `[${got.join(', ')}]`,
      expected: `[${expected.join(', ')}] by config.json`,
    })
  const lookup = (name: string, shape: readonly number[]): Tensor => {
    const seen = known.get(name)
    const tensor = seen ?? (shape.length === 1 ? vector(name) : matrix(name))
    if (tensor === undefined)
      throw new ModalignError({
        code: 'TENSOR_MISSING',
        file,
        got: `no weight ${JSON.stringify(name)}`,
        expected: 'every weight of the model that config.json describes',
      })
    if (String(tensor.shape) !== String(shape)) throw wrongShape(name, tensor.shape, shape)
    known.set(name, tensor)
    return tensor
  }
  const product = (x: Tensor, part: Part): Tensor => {
    // Equal products are emitted once, so that a joined projection is multiplied by once for its three parts.
    const all = part.matrix.layout === 'in-out' ? matmul(x, whole(part.matrix)) : matmulTransposed(x, whole(part.matrix))
    return part.end - part.start === part.matrix.out ? all : slice(all, [{ axis: x.shape.length - 1, start: part.start, end: part.end }])
  }
  return Object.assign(lookup, {
    has: (name: string) => {
      const module = name.replace(/\.weight$/, '')
      return vectors.has(name) || name === embeddingsName || partOf(module) !== undefined || apart(module) !== undefined
    },
    linear(x: Tensor, { module, inFeatures, outFeatures }: LinearLayer, plain: () => Tensor): Tensor {
      const modules = apart(module) ?? [module]
      const parts = modules.flatMap((one) => partOf(one) ?? [])
      if (parts.length < modules.length) return plain()
      const rows = parts.reduce((sum, { start, end }) => sum + end - start, 0)
      const wrong = parts.find(({ matrix }) => matrix.into !== inFeatures)
      if (rows !== outFeatures || wrong !== undefined)
        throw wrongShape(module, [rows, wrong?.matrix.into ?? inFeatures], [outFeatures, inFeatures])
      const products = parts.map((part) => product(x, part))
      const [only, second] = products
      if (only === undefined) return plain()
      return second === undefined ? only : concat(products, x.shape.length - 1)
    },
  })
}

const joinedModules: Readonly<Record<string, readonly string[]>> = {
  qkv_proj: ['q_proj', 'k_proj', 'v_proj'],
  gate_up_proj: ['gate_proj', 'up_proj'],
}

function made(matrix: StoredMatrix): Tensor {
  if (matrix.layout === 'blocks') return blockQuantised(matrix.blocks)
  return storedWeight(matrix.stored, matrix.stored.dims)
}
