/** Changes to a ModelProto that work on any model, whatever its operators. Models come in and stay as they are; changed ones go out. */
import { create } from '@bufbuild/protobuf'
import { ModalignError } from '../errors.ts'
import type { DataType } from '../tensors.ts'
import { valueDescription } from './build.ts'
import { withFields } from './codec.ts'
import { dataTypeOf } from './dtypes.ts'
import { calledFunction, functionKey, subgraphs } from './functions.ts'
import { type GraphProto, type ModelProto, type NodeProto, type TensorProto, type ValueInfoProto, ValueInfoProtoSchema } from './onnx_pb.ts'

/** A value of a model's main graph. */
export interface TensorListing {
  readonly name: string
  readonly origin: 'input' | 'initializer' | 'node'
  /** The operator that makes it. */
  readonly opType?: string
  /** Known only where the file says it. */
  readonly dtype?: DataType
  /** Numbers, names, '' for unknown sizes; known only where the file says it. */
  readonly dims?: readonly (number | string)[]
}

/**
 * The values of the main graph in the order in which they come about: inputs, initializers, nodes' outputs. Values inside subgraphs (If, Loop) are not listed.
 *
 * @throws ModalignError ONNX_MALFORMED for a model without a graph.
 * @example
 * listTensors(model).filter(({ opType }) => opType === 'LayerNormalization').map(({ name }) => name)
 */
export function listTensors(model: ModelProto): TensorListing[] {
  const graph = mainGraph(model)
  const described = new Map([...graph.valueInfo, ...graph.output, ...graph.input].map((info) => [info.name, valueDescription(info)]))
  const listing = new Map<string, TensorListing>()
  for (const { name } of graph.input) listing.set(name, { ...described.get(name), name, origin: 'input' })
  for (const tensor of graph.initializer) {
    const dtype = dataTypeOf(tensor.dataType)
    listing.set(tensor.name, {
      name: tensor.name,
      origin: 'initializer',
      ...(dtype === undefined ? {} : { dtype }),
      dims: tensor.dims.map(Number),
    })
  }
  for (const { values } of graph.sparseInitializer) {
    if (values !== undefined) listing.set(values.name, { name: values.name, origin: 'initializer' })
  }
  for (const node of graph.node) {
    for (const name of node.output) {
      if (name !== '') listing.set(name, { ...described.get(name), name, origin: 'node', opType: node.opType })
    }
  }
  return [...listing.values()]
}

export interface ExposeOptions {
  /** Whether the named values become the only outputs, and everything that they do not need is dropped. Default true; false adds them to the outputs. */
  readonly prune?: boolean
}

/**
 * Makes values of the main graph outputs. Order of outputs: as named. Types are declared where the file knows them; ONNX Runtime infers the others.
 *
 * @throws ModalignError ONNX_TENSOR_UNKNOWN, which lists the names nearest to the one that is not there.
 * @example
 * const vision = exposeTensors(model, ['/vision_model/encoder/layers.22/Add_1_output_0'])
 */
export function exposeTensors(model: ModelProto, names: readonly string[], { prune = true }: ExposeOptions = {}): ModelProto {
  const graph = mainGraph(model)
  const known = new Map(listTensors(model).map((tensor) => [tensor.name, tensor]))
  for (const name of names) if (!known.has(name)) throw unknownTensor(name, known, graph)
  const wanted = new Set(names)
  if (wanted.size === 0)
    throw new ModalignError({ code: 'ONNX_TENSOR_UNKNOWN', got: 'no names', expected: 'at least one tensor to expose' })

  const infos = new Map([...graph.valueInfo, ...graph.input, ...graph.output].map((info) => [info.name, info]))
  const info = (name: string): ValueInfoProto => infos.get(name) ?? create(ValueInfoProtoSchema, { name })
  if (prune) return pruned(withFields(model, { graph: withFields(graph, { output: [...wanted].map(info) }) }))
  const present = new Set(graph.output.map(({ name }) => name))
  const added = [...wanted].filter((name) => !present.has(name)).map(info)
  return withFields(model, { graph: withFields(graph, { output: [...graph.output, ...added] }) })
}

/** Drops the nodes, initializers, inputs, annotations and functions that the outputs do not need, and training graphs, whose bindings might dangle. */
function pruned(model: ModelProto): ModelProto {
  const graph = mainGraph(model)
  const producers = new Map(graph.node.flatMap((node) => node.output.filter((name) => name !== '').map((name) => [name, node] as const)))
  const needed = new Set<string>()
  const nodes = new Set<NodeProto>()
  const waiting = graph.output.map(({ name }) => name)
  for (let name = waiting.pop(); name !== undefined; name = waiting.pop()) {
    if (name === '' || needed.has(name)) continue
    needed.add(name)
    const producer = producers.get(name)
    if (producer === undefined || nodes.has(producer)) continue
    nodes.add(producer)
    for (const input of reads(producer)) waiting.push(input)
  }
  for (const node of nodes) for (const name of node.output) needed.add(name)
  const keep = (name: string): boolean => needed.has(name)
  const kept = withFields(graph, {
    node: graph.node.filter((node) => nodes.has(node)),
    initializer: graph.initializer.filter(({ name }) => keep(name)),
    sparseInitializer: graph.sparseInitializer.filter(({ values }) => values !== undefined && keep(values.name)),
    input: graph.input.filter(({ name }) => keep(name)),
    valueInfo: graph.valueInfo.filter(({ name }) => keep(name)),
    quantizationAnnotation: graph.quantizationAnnotation.filter(({ tensorName }) => keep(tensorName)),
  })
  return withFields(model, { graph: kept, functions: usedFunctions(model, kept), trainingInfo: [] })
}

/**
 * The outer values that a node reads: its inputs, and in its subgraphs every name that is not made there. Taking a name that a subgraph also makes as
 * an outer one would only keep a node too many, but names are unique across a valid model's nested scopes.
 */
function reads(node: NodeProto): Set<string> {
  const names = new Set(node.input)
  const graphs = subgraphs(node)
  for (let graph = graphs.pop(); graph !== undefined; graph = graphs.pop()) {
    for (const { name } of graph.output) names.add(name)
    for (const inner of graph.node) {
      for (const name of inner.input) names.add(name)
      graphs.push(...subgraphs(inner))
    }
  }
  return names
}

function usedFunctions(model: ModelProto, graph: GraphProto): ModelProto['functions'] {
  const functions = new Map(model.functions.map((definition) => [functionKey(definition), definition]))
  const used = new Set<string>()
  const lists: (readonly NodeProto[])[] = [graph.node]
  for (let list = lists.pop(); list !== undefined; list = lists.pop()) {
    for (const node of list) {
      for (const inner of subgraphs(node)) lists.push(inner.node)
      const key = calledFunction(node)
      const definition = functions.get(key)
      if (definition === undefined || used.has(key)) continue
      used.add(key)
      lists.push(definition.node)
    }
  }
  return model.functions.filter((definition) => used.has(functionKey(definition)))
}

function unknownTensor(name: string, known: ReadonlyMap<string, TensorListing>, graph: GraphProto): ModalignError {
  const inner = graph.node.flatMap(subgraphs).some((subgraph) => subgraph.node.some((node) => node.output.includes(name)))
  const near = [...known.keys()]
    .map((candidate) => ({ candidate, distance: editDistance(name.slice(-80), candidate.slice(-80)) }))
    .sort((a, b) => a.distance - b.distance)
    .slice(0, 4)
    .map(({ candidate }) => `'${candidate}'`)
  return new ModalignError({
    code: 'ONNX_TENSOR_UNKNOWN',
    got: `'${name}'`,
    expected: inner ? 'a tensor of the main graph; this one lies inside a branch or loop' : `one of the ${known.size} tensors of the graph`,
    ...(near.length === 0 ? {} : { hint: `near it: ${near.join(', ')}` }),
  })
}

/** Levenshtein's distance: insertions, deletions and substitutions that turn one text into the other. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const substitution = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(substitution, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[b.length] ?? 0
}

/** @throws ModalignError ONNX_MALFORMED when there is none. */
export function mainGraph(model: ModelProto): GraphProto {
  if (model.graph === undefined)
    throw new ModalignError({ code: 'ONNX_MALFORMED', field: '/graph', got: 'no graph', expected: 'an ONNX model' })
  return model.graph
}

/** Names of the initializers that are not also inputs (a caller may override those that are). */
export function constantInitializers(graph: GraphProto): TensorProto[] {
  const inputs = new Set(graph.input.map(({ name }) => name))
  return graph.initializer.filter(({ name }) => !inputs.has(name))
}
