/**
 * The sums of an activation's blocks, which the minimums of weights in blocks are multiplied with, as one product with a matrix of ones and zeros. ONNX Runtime takes longer
 * over a reshape and a sum: on one row of SmolLM2-135M that is a quarter of a token's time.
 */
import { makeNode, makeTensor } from '../../onnx/build.ts'
import { withFields } from '../../onnx/codec.ts'
import type { GraphProto, NodeProto } from '../../onnx/onnx_pb.ts'
import { float32Tensor } from '../../tensors.ts'

/** The product reads columns^2 / blockSize ones and zeros; up to this width that is less than what an operator costs. */
const widest = 2048

export interface BlockSums {
  /** Name of the activation [..., columns]. */
  readonly input: string
  /** Name of its sums [..., columns / blockSize]. */
  readonly sums: string
  readonly columns: number
  readonly blockSize: number
}

/** The same graph with each of `wanted` made so, but of those too wide for it. */
export function sumByProduct(graph: GraphProto, wanted: readonly BlockSums[]): GraphProto {
  const bySums = new Map(wanted.filter(({ columns }) => columns <= widest).map((one) => [one.sums, one]))
  const matrices = new Map<string, BlockSums>()
  const replaced = (node: NodeProto): NodeProto => {
    const own = node.opType === 'ReduceSum' ? bySums.get(node.output[0] ?? '') : undefined
    if (own === undefined) return node
    const matrix = `blocks.of.${own.columns}.by.${own.blockSize}`
    matrices.set(matrix, own)
    return makeNode({ opType: 'MatMul', name: node.name, inputs: [own.input, matrix], outputs: [own.sums] })
  }
  const node = graph.node.map(replaced)
  if (matrices.size === 0) return graph
  const initializer = [...graph.initializer, ...Array.from(matrices, ([name, sums]) => makeTensor(name, ones(sums)))]
  return withFields(graph, { node: withoutUnread(node, new Set(graph.output.map(({ name }) => name))), initializer })
}

/** ONNX Runtime runs a reshape that nothing reads, too. */
function withoutUnread(nodes: readonly NodeProto[], outputs: ReadonlySet<string>): NodeProto[] {
  const read = new Set(nodes.flatMap(({ input }) => input))
  return nodes.filter(({ opType, output: [output = ''] }) => opType !== 'Reshape' || read.has(output) || outputs.has(output))
}

/** [columns, blocks]: 1 where the column is in the block. */
function ones({ columns, blockSize }: BlockSums) {
  const blocks = columns / blockSize
  const data = new Float32Array(columns * blocks)
  for (let column = 0; column < columns; column++) data[column * blocks + Math.floor(column / blockSize)] = 1
  return float32Tensor(data, [columns, blocks])
}
