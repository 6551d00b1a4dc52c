/**
 * A cache that stays outside the graph. ONNX Runtime's GroupQueryAttention gives the whole cache back at every call, and the binding copies what it gives: at eight rows that takes
 * longer than the model. Here only the new places come out, and the caller writes them where they belong.
 */
import { makeNode, makeValueInfo } from '../../onnx/build.ts'
import { withFields } from '../../onnx/codec.ts'
import { type LoweredModel, withModel } from '../../onnx/lower.ts'
import type { GraphProto } from '../../onnx/onnx_pb.ts'
import type { Decoder } from '../decoder.ts'
import { freshCache, freshPlaces } from './graph-names.ts'

/** The same graph with {@link freshCache} in place of its `present` outputs, where all of them are GroupQueryAttention's; otherwise undefined. */
export function appendingCache(lowered: LoweredModel, decoder: Pick<Decoder, 'kvHeads' | 'headDim'>): LoweredModel | undefined {
  const { graph } = lowered.model
  const sources = graph === undefined ? undefined : presentSources(graph)
  if (graph === undefined || sources === undefined) return undefined
  const isPresent = (name: string): boolean => sources.has(name)
  const fresh = Array.from(sources, ([name, source]) => ({ source, name: `${name}.fresh` }))
  const nodes = [
    ...graph.node.filter(({ output }) => !output.some(isPresent)),
    ...fresh.map(({ name, source }) => makeNode({ opType: 'GatherND', name, inputs: [source, freshPlaces], outputs: [name] })),
    makeNode({
      opType: 'Concat',
      name: freshCache,
      inputs: fresh.map(({ name }) => name),
      outputs: [freshCache],
      attributes: { axis: { int: 0 } },
    }),
  ]
  const output = [
    ...graph.output.filter(({ name }) => !isPresent(name)),
    makeValueInfo(freshCache, 'float32', ['', decoder.kvHeads, 'tokens', decoder.headDim]),
  ]
  const input = [...graph.input, makeValueInfo(freshPlaces, 'int64', ['batch', decoder.kvHeads, 'tokens', 3])]
  return withModel(lowered, withFields(lowered.model, { graph: withFields(graph, { node: nodes, input, output }) }))
}

/** Output -> what the Identity before it reads, in the order of the outputs; undefined where one is not GroupQueryAttention's. */
function presentSources({ node: nodes, output }: GraphProto): ReadonlyMap<string, string> | undefined {
  const producers = new Map(nodes.flatMap((node) => node.output.map((name) => [name, node] as const)))
  const sources = new Map<string, string>()
  for (const { name } of output) {
    if (!name.startsWith('present.')) continue
    const identity = producers.get(name)
    const [source = ''] = identity?.input ?? []
    if (identity?.opType !== 'Identity' || producers.get(source)?.opType !== 'GroupQueryAttention') return undefined
    sources.set(name, source)
  }
  return sources.size === 0 ? undefined : sources
}
