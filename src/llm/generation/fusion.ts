/** What decoding one token gains from fewer, larger operators: products with one input become one, and a residual's sum joins the norm after it. */
import { type AttributeValue, attributeValue, makeNode, makeTensor } from '../../onnx/build.ts'
import { withFields } from '../../onnx/codec.ts'
import { type LoweredModel, withModel } from '../../onnx/lower.ts'
import type { GraphProto, NodeProto, TensorProto } from '../../onnx/onnx_pb.ts'
import { int64Tensor } from '../../tensors.ts'
import { Uses } from './uses.ts'

const microsoft = 'com.microsoft'

/**
 * The same graph with
 *
 * * the products of weights in blocks that read one input as one product of their rows together, which ONNX Runtime puts together as it loads; query, key and value go to
 *   their attention as they come out of it;
 * * `SkipSimplifiedLayerNormalization` where a sum is normalised and goes on as it is, too.
 *
 * On one row, where each operator takes microseconds, that is a fifth of the time.
 */
export function fuseGeneration(lowered: LoweredModel): LoweredModel {
  const { graph } = lowered.model
  if (graph === undefined) return lowered
  return withModel(lowered, withFields(lowered.model, { graph: joinNorms(mergeProducts(graph)) }))
}

type Attributes = Readonly<Record<string, AttributeValue>>

function attributesOf({ attribute }: NodeProto): Attributes {
  return Object.fromEntries(attribute.map((one) => [one.name, attributeValue(one)]))
}

/** A product of a weight in blocks, with the second product of its minimums where it has some. */
interface Product {
  readonly nodes: readonly NodeProto[]
  /** Where the whole of it is known. */
  readonly last: NodeProto
  readonly input: string
  readonly rows: number
  readonly packed: string
  readonly scales: string
  readonly minimums: { readonly weight: string; readonly sums: string } | undefined
  readonly attributes: Attributes
}

function productOf(node: NodeProto, uses: Uses): Product | undefined {
  const [input = '', packed = '', scales = '', ...others] = node.input
  if (node.opType !== 'MatMulNBits' || others.length > 0 || !uses.isConstant(packed) || !uses.isConstant(scales)) return undefined
  const attributes = attributesOf(node)
  const rows = attributes.N !== undefined && 'int' in attributes.N ? Number(attributes.N.int) : 0
  const plain: Product = { nodes: [node], last: node, input, rows, packed, scales, minimums: undefined, attributes }
  const [add, ...more] = uses.consumers(node.output[0])
  if (add?.opType !== 'Add' || more.length > 0 || add.input[0] !== node.output[0]) return plain
  const small = uses.producer(add.input[1], 'MatMul')
  const turned = uses.producer(small?.input[1], 'Transpose')
  const [weight] = turned?.input ?? []
  if (small === undefined || turned === undefined || weight === undefined || !uses.isConstant(weight)) return plain
  if (uses.consumers(small.output[0]).length > 1 || uses.consumers(turned.output[0]).length > 1) return plain
  return { ...plain, nodes: [node, turned, small, add], last: add, minimums: { weight, sums: small.input[0] ?? '' } }
}

function mergeProducts(graph: GraphProto): GraphProto {
  const uses = new Uses(graph)
  const groups = new Map<string, Product[]>()
  for (const node of graph.node) {
    const product = productOf(node, uses)
    if (product === undefined) continue
    const { N: _, ...kind } = product.attributes
    const key = JSON.stringify([product.input, product.minimums?.sums, kind], (_, value: unknown) =>
      typeof value === 'bigint' ? Number(value) : value,
    )
    groups.set(key, [...(groups.get(key) ?? []), product])
  }
  const replaced = new Set<NodeProto>()
  const inserted = new Map<NodeProto, readonly NodeProto[]>()
  const initializer = [...graph.initializer]
  for (const products of groups.values()) {
    const [first] = products
    if (first === undefined || products.length < 2) continue
    for (const { nodes } of products) for (const node of nodes) replaced.add(node)
    const { nodes, sizes, attention } = merged(products, first, uses)
    inserted.set(first.last, nodes)
    if (sizes !== undefined) initializer.push(sizes)
    if (attention !== undefined) inserted.set(attention.replaced, [attention.by])
  }
  return withFields(graph, { initializer, node: graph.node.flatMap((node) => inserted.get(node) ?? (replaced.has(node) ? [] : [node])) })
}

interface Merged {
  readonly nodes: readonly NodeProto[]
  /** A constant that the nodes read. */
  readonly sizes?: TensorProto
  /** The node that reads them now. */
  readonly attention?: { readonly replaced: NodeProto; readonly by: NodeProto }
}

function merged(products: readonly Product[], first: Product, uses: Uses): Merged {
  const name = `${first.packed}.merged`
  const together = (part: string, weights: readonly string[]): NodeProto =>
    makeNode({ opType: 'Concat', name: `${name}.${part}`, inputs: weights, outputs: [`${name}.${part}`], attributes: { axis: { int: 0 } } })
  const rows = products.reduce((sum, product) => sum + product.rows, 0)
  const nodes = [
    together(
      'packed',
      products.map(({ packed }) => packed),
    ),
    together(
      'scales',
      products.map(({ scales }) => scales),
    ),
    makeNode({
      opType: 'MatMulNBits',
      domain: microsoft,
      name,
      inputs: [first.input, `${name}.packed`, `${name}.scales`],
      outputs: [`${name}.levels`],
      attributes: { ...first.attributes, N: { int: rows } },
    }),
  ]
  let out = `${name}.levels`
  if (first.minimums !== undefined) {
    nodes.push(
      together(
        'minimums',
        products.flatMap(({ minimums }) => minimums?.weight ?? []),
      ),
      makeNode({
        opType: 'Transpose',
        name: `${name}.turn`,
        inputs: [`${name}.minimums`],
        outputs: [`${name}.turned`],
        attributes: { perm: { ints: [1, 0] } },
      }),
      makeNode({ opType: 'MatMul', name: `${name}.offset`, inputs: [first.minimums.sums, `${name}.turned`], outputs: [`${name}.offsets`] }),
      makeNode({ opType: 'Add', name: `${name}.sum`, inputs: [out, `${name}.offsets`], outputs: [`${name}.whole`] }),
    )
    out = `${name}.whole`
  }
  const outputs = products.map(({ last }) => last.output[0] ?? '')
  const [attention] = uses.consumers(outputs[0])
  const packed =
    attention?.opType === 'GroupQueryAttention' &&
    outputs.length === 3 &&
    outputs.every((output, index) => attention.input[index] === output && uses.consumers(output).length === 1)
  if (packed) {
    const by = withFields(attention, { input: [out, '', '', ...attention.input.slice(3)] })
    return { nodes, attention: { replaced: attention, by } }
  }
  const sizes = int64Tensor(
    products.map((product) => product.rows),
    [products.length],
  )
  const split = { inputs: [out, `${name}.sizes`], outputs, attributes: { axis: { int: -1 } } }
  return { nodes: [...nodes, makeNode({ opType: 'Split', name: `${name}.split`, ...split })], sizes: makeTensor(`${name}.sizes`, sizes) }
}

function joinNorms(graph: GraphProto): GraphProto {
  const uses = new Uses(graph)
  const replaced = new Set<NodeProto>()
  const inserted = new Map<NodeProto, NodeProto>()
  for (const norm of graph.node) {
    if (norm.opType !== 'SimplifiedLayerNormalization') continue
    const sum = uses.producer(norm.input[0], 'Add')
    const [x, skip] = sum?.input ?? []
    // A sum that is only normalised may be one with a bias, which has another shape; one that goes on is a residual's.
    if (sum === undefined || x === undefined || skip === undefined || uses.isConstant(x) || uses.isConstant(skip)) continue
    if (uses.consumers(sum.output[0]).length < 2 || inserted.has(sum)) continue
    const { epsilon } = attributesOf(norm)
    if (epsilon === undefined || !('float' in epsilon)) continue
    replaced.add(norm)
    inserted.set(
      sum,
      makeNode({
        opType: 'SkipSimplifiedLayerNormalization',
        domain: microsoft,
        name: `${norm.name}.skip`,
        inputs: [x, skip, norm.input[1] ?? ''],
        outputs: [norm.output[0] ?? '', '', '', sum.output[0] ?? ''],
        attributes: { epsilon },
      }),
    )
  }
  return withFields(graph, { node: graph.node.flatMap((node) => inserted.get(node) ?? (replaced.has(node) ? [] : [node])) })
}
