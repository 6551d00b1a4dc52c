/**
 * The hidden states of a transformer in an ONNX file that gives only its last one: found by how the graph is made, not by names, which differ with every exporter and
 * are lost to optimizers. A layer adds twice to what came before it; each sum is a value to which both the earlier value and something computed from it are added.
 */
import { ModalignError } from '../../src/errors.ts'
import type { GraphProto, ModelProto, NodeProto } from '../../src/onnx/onnx_pb.ts'

/**
 * Names of the hidden states, Transformers' `hidden_states`: after the embeddings, then after each layer. undefined for one that the file does not hold (the last sum,
 * where it was fused with the norm behind it).
 *
 * @param output the model's output behind the last layer
 * @throws {ModalignError} `ENCODER_LAYER`
 */
export function hiddenStates(model: ModelProto, output: string, file: string | undefined): readonly (string | undefined)[] {
  const { graph } = model
  if (graph === undefined)
    throw new ModalignError({ code: 'ONNX_MALFORMED', file, field: '/graph', got: 'no graph', expected: 'an ONNX model' })
  const flow = new DataFlow(graph)
  const sums: string[] = []
  let value: string | undefined = output
  while (value !== undefined) {
    const earlier: string | undefined = flow.residualOf(value)
    if (earlier !== undefined) {
      sums.unshift(value)
      value = earlier
    } else if (sums.length === 0) {
      value = flow.before(value)
    } else {
      sums.unshift(value)
      // Two sums a layer, and the embeddings before them.
      if (sums.length % 2 === 1)
        return sums.filter((_, index) => index % 2 === 0).map((name) => (name.startsWith(unnamed) ? undefined : name))
      break
    }
  }
  throw new ModalignError({
    code: 'ENCODER_LAYER',
    file,
    got: sums.length === 0 ? `no residual sums before ${output}` : `${sums.length - 1} residual sums before ${output}`,
    expected: 'two a layer, as transformers have them',
    hint: 'name the tensor with onnxImage: `modalign inspect FILE` lists them',
  })
}

/** Marks the sum inside of a fused norm that does not give it as an output, by the norm's own output. No tensor's name begins so. */
const unnamed = '\0'

class DataFlow {
  readonly #producers: ReadonlyMap<string, NodeProto>
  readonly #constants: ReadonlySet<string>
  /** Positions of nodes in the file, which lists them in the order in which they run. */
  readonly #order: ReadonlyMap<NodeProto, number>

  constructor(graph: GraphProto) {
    this.#producers = new Map(graph.node.flatMap((node) => node.output.filter((name) => name !== '').map((name) => [name, node] as const)))
    this.#order = new Map(graph.node.map((node, index) => [node, index]))
    const constants = new Set(graph.initializer.map(({ name }) => name))
    // What is computed from constants alone (dequantised or cast weights) is constant too; nodes stand in the order in which they run.
    for (const node of graph.node) {
      if (node.input.every((name) => name === '' || constants.has(name))) for (const name of node.output) constants.add(name)
    }
    this.#constants = constants
  }

  /** The earlier value, if this one is the sum of it and of something that was computed from it. */
  residualOf(value: string): string | undefined {
    const inside = value.startsWith(unnamed)
    const node = this.#producers.get(inside ? value.slice(unnamed.length) : value)
    if (node === undefined) return undefined
    // ONNX Runtime's fusion of the sum and the norm after it: the fourth output is the sum.
    const fused = node.opType === 'SkipLayerNormalization' && (inside || node.output[3] === value)
    if (node.opType !== 'Add' && !fused) return undefined
    const [a, b] = node.input
    if (a === undefined || b === undefined || this.#constants.has(a) || this.#constants.has(b)) return undefined
    if (this.#dependsOn(b, a)) return this.#unfused(a)
    return this.#dependsOn(a, b) ? this.#unfused(b) : undefined
  }

  /** What a value was computed from in the first place: the way back through norms, slices and products with weights. */
  before(value: string): string | undefined {
    const node = this.#producers.get(value)
    if (node === undefined) return undefined
    if (node.opType === 'SkipLayerNormalization' && node.output[0] === value) return node.output[3] || `${unnamed}${value}`
    return node.input.find((name) => name !== '' && !this.#constants.has(name))
  }

  /** Casts between a sum and the next one (mixed precision) are the same value. */
  #unfused(value: string): string {
    const node = this.#producers.get(value)
    const [input] = node?.input ?? []
    return node?.opType === 'Cast' && input !== undefined ? this.#unfused(input) : value
  }

  /** Whether `value` is computed from `earlier`; its size alone (Shape) does not count. */
  #dependsOn(value: string, earlier: string): boolean {
    const from = this.#producers.get(earlier)
    const first = from === undefined ? -1 : (this.#order.get(from) ?? -1)
    const seen = new Set<NodeProto>()
    const waiting = [value]
    for (let name = waiting.pop(); name !== undefined; name = waiting.pop()) {
      const node = this.#producers.get(name)
      // A fused norm gives the sum and its norm side by side.
      if (name === earlier || (node !== undefined && node === from && node.opType === 'SkipLayerNormalization')) return true
      // Nothing that runs before `earlier` depends on it.
      if (node === undefined || seen.has(node) || node.opType === 'Shape' || (this.#order.get(node) ?? 0) < first) continue
      seen.add(node)
      waiting.push(...node.input)
    }
    return false
  }
}
