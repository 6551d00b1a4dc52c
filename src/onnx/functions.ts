/** Functions that a model defines for itself. Runtimes replace each call by the function's nodes, so a small file can ask for endless work. */
import { ModalignError } from '../errors.ts'
import type { FunctionProto, GraphProto, ModelProto, NodeProto } from './onnx_pb.ts'

/** What identifies a function, and what a node calls. */
export function functionKey({
  domain,
  name,
  overload,
}: {
  readonly domain: string
  readonly name: string
  readonly overload: string
}): string {
  return JSON.stringify([domain === 'ai.onnx' ? '' : domain, name, overload])
}

/** The key of the function that a node would call, if one of that name exists. */
export function calledFunction(node: NodeProto): string {
  return functionKey({ domain: node.domain, name: node.opType, overload: node.overload })
}

const maxExpandedNodes = 5_000_000

/**
 * @throws ModalignError ONNX_MALFORMED for two functions of one name, ONNX_FUNCTION_EXPANSION when a function calls itself, directly or through others, or
 *   when the model with every call replaced would have more than 5 million nodes.
 */
export function checkFunctions(model: ModelProto, file?: string): void {
  const functions = new Map<string, FunctionProto>()
  for (const definition of model.functions) {
    const key = functionKey(definition)
    if (functions.has(key))
      throw new ModalignError({ code: 'ONNX_MALFORMED', file, field: '/functions', got: `two functions ${definition.name}` })
    functions.set(key, definition)
  }
  const fail = (got: string) => new ModalignError({ code: 'ONNX_FUNCTION_EXPANSION', file, field: '/functions', got })

  // Depth first with an explicit stack: a chain of calls may be longer than JavaScript's own stack.
  const sizes = new Map<string, number>()
  const open = new Set<string>()
  for (const root of functions.keys()) {
    const stack = [root]
    for (let key = stack.at(-1); key !== undefined; key = stack.at(-1)) {
      const definition = functions.get(key)
      if (definition === undefined || sizes.has(key)) {
        stack.pop()
        continue
      }
      if (!open.has(key)) {
        open.add(key)
        for (const callee of new Set(allNodes(definition.node).map(calledFunction))) {
          if (open.has(callee) && !sizes.has(callee)) throw fail(`function ${definition.name}, which calls itself`)
          stack.push(callee)
        }
        continue
      }
      sizes.set(key, expandedSize(definition.node, sizes))
      stack.pop()
    }
  }
  const total = expandedSize(model.graph?.node ?? [], sizes)
  if (total > maxExpandedNodes) throw fail(`${total} nodes once every call is replaced by its function`)
}

function expandedSize(nodes: readonly NodeProto[], sizes: ReadonlyMap<string, number>): number {
  return allNodes(nodes).reduce((sum, node) => sum + (sizes.get(calledFunction(node)) ?? 1), 0)
}

/** The nodes and those of their subgraphs. */
function allNodes(nodes: readonly NodeProto[]): NodeProto[] {
  const found: NodeProto[] = []
  const graphs: (readonly NodeProto[])[] = [nodes]
  for (let list = graphs.pop(); list !== undefined; list = graphs.pop()) {
    for (const node of list) {
      found.push(node)
      for (const graph of subgraphs(node)) graphs.push(graph.node)
    }
  }
  return found
}

/** The graphs that a node carries in its attributes (If, Loop, Scan). */
export function subgraphs(node: NodeProto): GraphProto[] {
  return node.attribute.flatMap(({ g, graphs }) => (g === undefined ? graphs : [g, ...graphs]))
}
