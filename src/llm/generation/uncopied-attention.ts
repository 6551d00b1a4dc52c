/**
 * Attention of one new token a row over a cache that is read where it lies. ONNX Runtime's GroupQueryAttention first writes zeros over a new cache and copies the old one into it, at
 * every call: for many rows, or long ones, that takes longer than the attention. Here the scores of the cache and the score of the new token are made apart, and weighed together.
 */
import { type AttributeInput, attributeValue, makeGraph, makeNode, makeTensor, makeValueInfo } from '../../onnx/build.ts'
import { withFields } from '../../onnx/codec.ts'
import { type LoweredModel, withModel } from '../../onnx/lower.ts'
import type { GraphProto, NodeProto, TensorProto } from '../../onnx/onnx_pb.ts'
import { float32Tensor, int64Tensor, type TensorValue } from '../../tensors.ts'
import type { Decoder } from '../decoder.ts'
import { cacheNames, freshCache, generationInputs } from './graph-names.ts'

const microsoft = 'com.microsoft'
/** bool, one value: every row has one new token, and the cache is worth not copying. */
const wanted = 'uncopied.wanted'
/** Values of one layer's keys from which on: copying costs by their number, what is done instead a dozen small operators. Measured: as much at 256 places of 192 channels. */
const worthwhile = 49_152
/** int64 [1]. */
const tokenCount = 'tokens.count'
const sizes = 'uncopied.sizes'
const anyRank = `${freshCache}.any`
/** Tables of angles of more values are not kept a second time: queries are multiplied instead. */
const largeTable = 2 ** 20
const scaledOf = (table: string, scale: number): string => `${table}.times.${scale}`
const maskOf = (window: number | undefined): string => (window === undefined ? 'uncopied.mask' : `uncopied.mask.${window}`)

type Shape = Pick<Decoder, 'kvHeads' | 'headDim'>

/** An attention, and what gives the new places of its cache. */
interface Attention {
  readonly node: NodeProto
  readonly fresh: readonly NodeProto[]
  readonly heads: number
  readonly scale: number
  /** Names of its angles, and those for its queries, scaled; undefined: nothing is turned, or queries are scaled by themselves. */
  readonly angles: readonly string[] | undefined
  readonly queryAngles: readonly string[] | undefined
  readonly window: number | undefined
  readonly softcap: number | undefined
}

/** The same graph, made by `appendingCache`: calls with one new token a row read a large cache where it lies, others as before. */
export function uncopiedAttention(lowered: LoweredModel, shape: Shape): LoweredModel {
  const { graph } = lowered.model
  if (graph === undefined) return lowered
  const attentions = graph.node.flatMap((node) => (node.opType === 'GroupQueryAttention' ? [attentionOf(node, graph, shape)] : []))
  const [first] = attentions
  if (first === undefined) return lowered
  const replaced = new Map(attentions.map((attention) => [attention.node, eitherWay(attention, shape)]))
  const within = new Set(attentions.flatMap(({ fresh }) => fresh))
  const windows = [...new Set(attentions.map(({ window }) => window))]
  const node = [
    ...conditions(),
    masks(windows),
    ...scaledTables(attentions),
    ...graph.node
      .filter((one) => !within.has(one))
      .flatMap((one) => replaced.get(one) ?? (one.output[0] === freshCache ? ranked(one, shape) : [one])),
  ]
  return withModel(lowered, withFields(lowered.model, { graph: withFields(graph, { node }) }))
}

/** How many new tokens each row has, and whether they are one to be attended apart. */
function conditions(): readonly NodeProto[] {
  const part = (name: string): string => `${wanted}.${name}`
  const constant = (name: string, value: TensorValue): NodeProto =>
    makeNode({ opType: 'Constant', inputs: [], outputs: [part(name)], attributes: { value: { tensor: value } } })
  const shape = { inputs: [generationInputs.ids], outputs: [tokenCount], attributes: { start: { int: 1 }, end: { int: 2 } } }
  return [
    makeNode({ opType: 'Shape', ...shape }),
    constant('one', int64Tensor([1], [1])),
    makeNode({ opType: 'Equal', inputs: [tokenCount, part('one')], outputs: [part('single')] }),
    makeNode({ opType: 'Size', inputs: [cacheNames(0).past.key], outputs: [part('size')] }),
    constant('worth', int64Tensor([worthwhile], [])),
    makeNode({ opType: 'GreaterOrEqual', inputs: [part('size'), part('worth')], outputs: [part('large')] }),
    makeNode({ opType: 'And', inputs: [part('single'), part('large')], outputs: [wanted] }),
  ]
}

/** Angles for queries that are scaled, too: ONNX Runtime makes these constants as it loads. */
function scaledTables(attentions: readonly Attention[]): readonly NodeProto[] {
  const made = attentions.flatMap(({ scale, angles, queryAngles }) => {
    if (angles === undefined || queryAngles === undefined) return []
    const number = `scale.${scale}`
    const constant = makeNode({
      opType: 'Constant',
      inputs: [],
      outputs: [number],
      attributes: { value: { tensor: float32Tensor(Float32Array.of(scale), []) } },
    })
    return [constant, ...angles.map((table) => makeNode({ opType: 'Mul', inputs: [table, number], outputs: [scaledOf(table, scale)] }))]
  })
  return [...new Map(made.map((one) => [one.output[0], one])).values()]
}

/** The new places come with one dimension more where heads that share them are one. */
function ranked(concat: NodeProto, { kvHeads, headDim }: Shape): readonly NodeProto[] {
  const part = (name: string): string => `${freshCache}.${name}`
  const ints = (name: string, ...values: readonly number[]): NodeProto =>
    makeNode({ opType: 'Constant', inputs: [], outputs: [part(name)], attributes: { value_ints: { ints: values } } })
  return [
    withFields(concat, { output: [anyRank] }),
    ints('lead', -1, kvHeads),
    ints('last', headDim),
    makeNode({
      opType: 'Concat',
      inputs: [part('lead'), tokenCount, part('last')],
      outputs: [part('shape')],
      attributes: { axis: { int: 0 } },
    }),
    makeNode({ opType: 'Reshape', inputs: [anyRank, part('shape')], outputs: [freshCache] }),
  ]
}

function attentionOf(node: NodeProto, { node: nodes, initializer }: GraphProto, { headDim }: Shape): Attention {
  const attributes = new Map(node.attribute.map((one) => [one.name, attributeValue(one)]))
  const number = (name: string): number | undefined => {
    const value = attributes.get(name)
    if (value === undefined) return undefined
    return 'int' in value ? Number(value.int) : 'float' in value ? value.float : undefined
  }
  const given = number('scale') ?? 0
  const scale = given === 0 ? headDim ** -0.5 : given
  const [cos = '', sin = ''] = node.input.slice(7, 9)
  const angles = cos === '' ? undefined : [cos, sin]
  const table = initializer.find(({ name }) => name === cos)
  const small = table !== undefined && table.dims.reduce((product, dim) => product * Number(dim), 1) <= largeTable
  const window = number('local_window_size') ?? -1
  const softcap = number('softcap') ?? 0
  return {
    node,
    fresh: node.output.slice(1).flatMap((present) => nodes.filter(({ input }) => input[0] === present)),
    heads: number('num_heads') ?? 0,
    scale,
    angles,
    queryAngles: small ? angles?.map((one) => scaledOf(one, scale)) : undefined,
    window: window < 0 ? undefined : window,
    softcap: softcap === 0 ? undefined : softcap,
  }
}

/** Nodes of a branch, their constants, and names that no other branch has. */
class Branch {
  readonly nodes: NodeProto[] = []
  readonly initializers: TensorProto[] = []
  readonly #name: string

  constructor(name: string) {
    this.#name = name
  }

  value(value: TensorValue): string {
    const name = `${this.#name}.c${this.initializers.length}`
    this.initializers.push(makeTensor(name, value))
    return name
  }

  ints(...values: readonly number[]): string {
    return this.value(int64Tensor(values, [values.length]))
  }

  number(value: number): string {
    return this.value(float32Tensor(Float32Array.of(value), []))
  }

  /** @returns the names of its outputs. */
  add(
    opType: string,
    inputs: readonly string[],
    outputs: number,
    attributes: Readonly<Record<string, AttributeInput>> = {},
    domain = '',
  ): readonly string[] {
    const names = Array.from({ length: outputs }, (_, index) => `${this.#name}.${this.nodes.length}.${index}`)
    this.nodes.push(makeNode({ opType, domain, inputs, outputs: names, attributes }))
    return names
  }

  /** Adds a node of one output. */
  one(
    ...node: readonly [opType: string, inputs: readonly string[], attributes?: Readonly<Record<string, AttributeInput>>, domain?: string]
  ): string {
    const [opType, inputs, attributes, domain] = node
    const [output = ''] = this.add(opType, inputs, 1, attributes, domain)
    return output
  }

  graph(outputs: readonly string[], dtype: readonly ('float32' | 'int64')[]) {
    return makeGraph({
      name: this.#name,
      nodes: this.nodes,
      inputs: [],
      outputs: outputs.map((name, index) => makeValueInfo(name, dtype[index] ?? 'float32')),
      initializers: this.initializers,
    })
  }
}

function eitherWay(attention: Attention, shape: Shape): NodeProto {
  const { node, fresh } = attention
  const [output = ''] = node.output
  const outputs = [output, ...fresh.map((one) => one.output[0] ?? '')]
  const renamed = (one: NodeProto): NodeProto =>
    withFields(one, {
      input: one.input.map((name) => (node.output.includes(name) ? `${name}.copied` : name)),
      output: one.output.map((name) => `${name}.copied`),
    })
  const copied = makeGraph({
    name: `${output}.copied`,
    nodes: [node, ...fresh].map(renamed),
    inputs: [],
    outputs: outputs.map((name) => makeValueInfo(`${name}.copied`, 'float32')),
  })
  return makeNode({
    opType: 'If',
    name: `${output}.either`,
    inputs: [wanted],
    outputs,
    attributes: { then_branch: { graph: inPlace(attention, shape) }, else_branch: { graph: copied } },
  })
}

/** Heads that share keys and values are a dimension of their own, so that each score is a product of one row, which ONNX Runtime does without packing the cache. */
function inPlace({ node, heads, scale, angles, queryAngles, window, softcap }: Attention, { kvHeads, headDim }: Shape) {
  const [query = '', key = '', value = '', pastKey = '', pastValue = ''] = node.input
  const b = new Branch(`${node.output[0]}.uncopied`)
  const group = heads / kvHeads
  const packed = [heads, kvHeads, kvHeads].map((count) => count * headDim)
  const [q0 = '', k0 = '', v0 = ''] =
    key === '' ? b.add('Split', [query, b.ints(...packed)], 3, { axis: { int: -1 } }) : [query, key, value]
  const turned = (x: string, by: readonly string[] | undefined): string =>
    by === undefined ? x : b.one('RotaryEmbedding', [x, generationInputs.positions, ...by], {}, microsoft)
  const scaled = queryAngles === undefined ? b.one('Mul', [turned(q0, angles), b.number(scale)]) : turned(q0, queryAngles)
  const q = b.one('Reshape', [scaled, b.ints(-1, kvHeads, group, 1, headDim)])
  const one = b.ints(-1, kvHeads, 1, 1, headDim)
  const [newKey, newValue] = [b.one('Reshape', [turned(k0, angles), one]), b.one('Reshape', [v0, one])]
  const spread = b.ints(0, 0, 1, -1, headDim)
  const [keys, values] = [b.one('Reshape', [pastKey, spread]), b.one('Reshape', [pastValue, spread])]
  const scores = (of: string): string =>
    b.one('FusedMatMul', [q, of], { transA: { int: 0 }, transB: { int: 1 }, alpha: { float: 1 } }, microsoft)
  const all = b.one('Concat', [scores(keys), scores(newKey)], { axis: { int: -1 } })
  const bent = softcap === undefined ? all : b.one('Mul', [b.one('Tanh', [b.one('Mul', [all, b.number(1 / softcap)])]), b.number(softcap)])
  const weights = b.one('Softmax', [b.one('Add', [bent, maskOf(window)])], { axis: { int: -1 } })
  const [ofCache = '', ofNew = ''] = b.add('Split', [weights, sizes], 2, { axis: { int: -1 } })
  const sum = b.one('Add', [b.one('MatMul', [ofCache, values]), b.one('Mul', [ofNew, newValue])])
  const output = b.one('Reshape', [sum, b.ints(-1, 1, heads * headDim)])
  return b.graph([output, newKey, newValue], [])
}

/** What all layers share: how long the cache is, and which of its places a row sees. float32 [batch, 1, 1, 1, places + 1], the new token last. */
function masks(windows: readonly (number | undefined)[]): NodeProto {
  const b = new Branch('uncopied.masks')
  const places = b.one('Shape', [cacheNames(0).past.key], { start: { int: 2 }, end: { int: 3 } })
  const lengths = b.one('Concat', [places, b.ints(1)], { axis: { int: 0 } })
  const place = b.one('Squeeze', [places])
  const [zero, one] = [b.value(int64Tensor([0], [])), b.value(int64Tensor([1], []))]
  const indices = b.one('Range', [zero, b.one('Add', [place, one]), one])
  const last = b.one('Unsqueeze', [b.one('Cast', [generationInputs.lastPlaces], { to: { int: 7 } }), b.ints(1)])
  const before = b.one('Less', [indices, last])
  const isNew = b.one('Equal', [indices, place])
  const [seen, unseen] = [b.number(0), b.number(-3.4028234663852886e38)]
  const made = windows.map((window) => {
    const near =
      window === undefined
        ? before
        : b.one('And', [before, b.one('Greater', [indices, b.one('Sub', [last, b.value(int64Tensor([window], []))])])])
    return b.one('Unsqueeze', [b.one('Where', [b.one('Or', [near, isNew]), seen, unseen]), b.ints(1, 2, 3)])
  })
  const none = new Branch('copied.masks')
  const empty = windows.map(() => none.one('Identity', [none.number(0)]))
  const outputs = [sizes, ...windows.map(maskOf)]
  return makeNode({
    opType: 'If',
    name: 'uncopied.masks',
    inputs: [wanted],
    outputs,
    attributes: {
      then_branch: { graph: b.graph([lengths, ...made], ['int64']) },
      else_branch: { graph: none.graph([none.one('Identity', [none.ints(0, 0)]), ...empty], ['int64']) },
    },
  })
}
