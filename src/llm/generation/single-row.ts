/**
 * A graph of its own for calls that add one token to one row: there each operator takes microseconds, and what a graph for any number of rows needs beside them is a tenth of the
 * time. ONNX Runtime packs a weight that both graphs read once.
 */
import { makeGraph, makeNode, makeTensor, makeValueInfo } from '../../onnx/build.ts'
import { withFields } from '../../onnx/codec.ts'
import { type LoweredModel, withModel } from '../../onnx/lower.ts'
import type { GraphProto, NodeProto, TensorProto } from '../../onnx/onnx_pb.ts'
import { elementCount, float32Tensor, int64Tensor, type TensorValue } from '../../tensors.ts'
import { cacheNames, generationInputs } from './graph-names.ts'
import { Uses } from './uses.ts'

/** Values of one layer's keys up to which copying the cache is cheaper than asking at every layer whether to. Measured: at 450 places of 192 channels a twentieth less time a token. */
const mostCopied = 98_304
/** Packing so many bytes of blocks once more, only to find that they are packed, takes a fraction of a second; reading more takes so long at each token that nothing else counts. */
const mostBlockBytes = 2 ** 29
const part = (name: string): string => `single.${name}`

/**
 * @param appending the graph as `appendingCache` makes it
 * @param general what takes all other calls: the same graph with `uncopiedAttention`
 * @returns undefined where it would not be worth its time to load: without weights in blocks, or with very many
 */
export function singleRow(appending: LoweredModel, general: LoweredModel): LoweredModel | undefined {
  const [one, many] = [appending.model.graph, general.model.graph]
  if (one === undefined || many === undefined) return undefined
  const bytes = blockBytes(one)
  if (bytes === 0 || bytes > mostBlockBytes) return undefined
  const constants = new Map([one, many].flatMap((graph) => constantNodes(graph).map((node) => [node.output[0] ?? '', node] as const)))
  const branch = (graph: GraphProto, kind: 'one' | 'many'): GraphProto => {
    const nodes = graph.node.filter(({ output }) => !constants.has(output[0] ?? ''))
    const outputs = new Map(graph.output.map(({ name }) => [name, `${name}.${kind}`]))
    const renamed = (names: readonly string[]): string[] => names.map((name) => outputs.get(name) ?? name)
    return makeGraph({
      name: part(kind),
      nodes: nodes.map((node) => withFields(node, { input: renamed(node.input), output: renamed(node.output) })),
      inputs: [],
      outputs: [...outputs.values()].map((name) => makeValueInfo(name, 'float32')),
    })
  }
  const { nodes: lean, initializers } = withBiases(one)
  const either = makeNode({
    opType: 'If',
    name: part('either'),
    inputs: [part('wanted')],
    outputs: many.output.map(({ name }) => name),
    attributes: {
      then_branch: { graph: branch(withFields(one, { node: [...lean] }), 'one') },
      else_branch: { graph: branch(many, 'many') },
    },
  })
  const graph = withFields(many, {
    node: [...constants.values(), ...condition(), either],
    initializer: [...many.initializer, ...initializers],
  })
  return withModel(general, withFields(general.model, { graph }))
}

/** One token in all, and a cache that is cheaper copied. */
function condition(): readonly NodeProto[] {
  const size = (of: string, name: string): NodeProto => makeNode({ opType: 'Size', inputs: [of], outputs: [part(name)] })
  const constant = (name: string, value: number): NodeProto =>
    makeNode({
      opType: 'Constant',
      inputs: [],
      outputs: [part(name)],
      attributes: { value: { tensor: int64Tensor([value], []) } },
    })
  return [
    size(generationInputs.ids, 'tokens'),
    constant('token', 1),
    makeNode({ opType: 'Equal', inputs: [part('tokens'), part('token')], outputs: [part('alone')] }),
    size(cacheNames(0).past.key, 'cached'),
    constant('most', mostCopied),
    makeNode({ opType: 'Less', inputs: [part('cached'), part('most')], outputs: [part('small')] }),
    makeNode({ opType: 'And', inputs: [part('alone'), part('small')], outputs: [part('wanted')] }),
  ]
}

/** Of the packed weights of its products. */
function blockBytes({ node: nodes, initializer }: GraphProto): number {
  const sizes = new Map(initializer.map(({ name, dims }) => [name, elementCount(dims.map(Number))]))
  const products = new Set(nodes.filter(({ opType }) => opType === 'MatMulNBits').flatMap(({ input }) => input[1] ?? []))
  // Products that were put together read a Concat of theirs.
  const parts = nodes.flatMap(({ opType, input, output }) => (opType === 'Concat' && products.has(output[0] ?? '') ? input : []))
  return [...products, ...parts].reduce((sum, name) => sum + (sizes.get(name) ?? 0), 0)
}

/** What hangs on constants alone stays outside of the branches: ONNX Runtime makes it as it loads, once. */
function constantNodes({ node: nodes, initializer }: GraphProto): readonly NodeProto[] {
  const known = new Set(initializer.map(({ name }) => name))
  return nodes.filter(({ opType, input, output }) => {
    const isConstant =
      opType !== 'If' && input.every((name) => name === '' || known.has(name)) && (input.length > 0 || opType === 'Constant')
    if (isConstant) for (const name of output) known.add(name)
    return isConstant
  })
}

/**
 * Minimums of blocks go into a product as its bias, which is of rank 1, and the sums that they are multiplied with are a product, too: fewer operators, and shorter ones. (For many rows
 * summing by a product takes longer.)
 */
function withBiases(graph: GraphProto): { readonly nodes: readonly NodeProto[]; readonly initializers: readonly TensorProto[] } {
  const uses = new Uses(graph)
  const replaced = new Map<NodeProto, NodeProto | undefined>()
  const initializers = new Map<string, TensorProto>()
  for (const add of graph.node) {
    const [levels, offsets] = add.input
    const product = uses.producer(levels, 'MatMulNBits')
    const small = uses.producer(offsets, 'MatMul')
    const sum = uses.producer(small?.input[0], 'ReduceSum')
    const spread = uses.producer(sum?.input[0], 'Reshape')
    if (add.opType !== 'Add' || product?.input.length !== 3 || sum === undefined || spread === undefined) continue
    const [columns, size] = [numberOf(product, 'K'), numberOf(product, 'block_size')]
    const shared = [levels, offsets, sum.output[0], spread.output[0]].some((name) => uses.consumers(name).length > 1)
    if (size === 0 || columns % size !== 0 || shared) continue
    const [row, ones] = [part(`row.${columns}`), part(`ones.${columns}x${size}`)]
    initializers.set(row, makeTensor(row, int64Tensor([columns], [1])))
    initializers.set(ones, makeTensor(ones, blockOnes(columns, size)))
    const { input, output } = spread
    replaced.set(spread, withFields(spread, { input: [input[0] ?? '', row] }))
    replaced.set(sum, makeNode({ opType: 'MatMul', name: sum.name, inputs: [output[0] ?? '', ones], outputs: sum.output }))
    replaced.set(product, undefined)
    replaced.set(add, withFields(product, { input: [...product.input, '', '', offsets ?? ''], output: [...add.output] }))
  }
  return {
    nodes: graph.node.flatMap((node) => (replaced.has(node) ? (replaced.get(node) ?? []) : [node])),
    initializers: [...initializers.values()],
  }
}

/** float32 [columns, blocks]: a row times it is the sums of the row's blocks. */
function blockOnes(columns: number, size: number): TensorValue {
  const blocks = columns / size
  const data = new Float32Array(columns * blocks)
  for (let column = 0; column < columns; column++) data[column * blocks + Math.floor(column / size)] = 1
  return float32Tensor(data, [columns, blocks])
}

function numberOf({ attribute }: NodeProto, name: string): number {
  return Number(attribute.find((one) => one.name === name)?.i ?? 0)
}
