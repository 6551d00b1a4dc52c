import type { GraphProto, NodeProto } from '../../onnx/onnx_pb.ts'

/** Who makes and who reads a value. Outputs of the graph are made by nodes of their own (see `lower`), so no other node's value is one. */
export class Uses {
  readonly #producers = new Map<string, NodeProto>()
  readonly #consumers = new Map<string, NodeProto[]>()
  readonly #initializers: ReadonlySet<string>

  constructor({ node: nodes, initializer }: GraphProto) {
    this.#initializers = new Set(initializer.map(({ name }) => name))
    for (const node of nodes) {
      for (const name of node.output) if (name !== '') this.#producers.set(name, node)
      for (const name of node.input) this.#consumers.set(name, [...(this.#consumers.get(name) ?? []), node])
    }
  }

  isConstant(name: string | undefined): boolean {
    return name !== undefined && this.#initializers.has(name)
  }

  producer(name: string | undefined, opType: string): NodeProto | undefined {
    const node = this.#producers.get(name ?? '')
    return node?.opType === opType ? node : undefined
  }

  consumers(name: string | undefined): readonly NodeProto[] {
    return this.#consumers.get(name ?? '') ?? []
  }
}
