/**
 * Lowering: from tensors to a ModelProto that stock ONNX Runtime runs. Frozen weights become external data that points into the file where they lie.
 */

import { ModalignError } from '../errors.ts'
import { type Dim, plainName, termsOf } from '../graph/dim.ts'
import { type OnnxAttribute, plainAttributes } from '../graph/operator.ts'
import { integers, type Node, type OperatorNode, type Tensor } from '../graph/tensor.ts'
import type { TensorValue } from '../tensors.ts'
import { makeExternalTensor, makeGraph, makeModel, makeNode, makeTensor, makeValueInfo } from './build.ts'
import { encodeModel } from './codec.ts'
import { commonRoot } from './external-root.ts'
import { type FusionRule, fusionOf } from './fusions.ts'
import type { ModelProto, NodeProto, TensorProto, ValueInfoProto } from './onnx_pb.ts'

export interface LowerRequest {
  /** By the names that the model's outputs shall have. */
  readonly outputs: Readonly<Record<string, Tensor>>
  /** Graph inputs that the model shall have in any case, first and in this order: for sizes that only they bind. Others follow as they are found. */
  readonly inputs?: readonly Tensor[]
  /** Use ONNX Runtime's fused operators (domain com.microsoft) where a composite has one. Default true; false gives plain standard ONNX. */
  readonly fused?: boolean
}

export interface LoweredModel {
  readonly model: ModelProto
  /** The model, encoded when this is first read. */
  readonly bytes: Uint8Array
  /** The folder to which the weights' locations are relative; absent where no weight lies in a file. */
  readonly externalRoot?: string
  /** Weights that lie in memory and are too large to write into the model; only where no weight lies in a file. */
  readonly externalData?: readonly { readonly path: string; readonly data: Uint8Array }[]
  readonly inputs: readonly string[]
  readonly outputs: readonly string[]
}

const opset = 21
/** Constants above this many bytes stay outside of the model's bytes. */
const largestInline = 65_536
/** Constants of at most this many elements are compared, so that equal ones are written once. */
const largestCompared = 1024

/**
 * @throws GRAPH_SIZE_UNBOUND where a named size stands alone in no input, GRAPH_INPUT_TWICE where two inputs share a name.
 *
 * @example
 * const x = input('x', 'float32', [size('batch'), 4])
 * const { bytes } = lower({ outputs: { y: softmax(x) } })
 */
export function lower({ outputs, inputs = [], fused = true }: LowerRequest): LoweredModel {
  const lowering = new Lowering(inputs, fused)
  // All inputs are known before the first node is written: any of them may be the one that says how large a named size is.
  for (const tensor of Object.values(outputs)) lowering.declareInputs(tensor)
  const names = Object.entries(outputs).map(([name, tensor]) => lowering.output(name, tensor))
  return lowering.finish(names)
}

/** The same weights with a model that was rewritten. */
export function withModel({ externalRoot, externalData }: LoweredModel, model: ModelProto): LoweredModel {
  const namesOf = (values: readonly ValueInfoProto[] = []): readonly string[] => values.map(({ name }) => name)
  const [inputs, outputs] = [namesOf(model.graph?.input), namesOf(model.graph?.output)]
  return loweredModel(model, {
    ...(externalRoot !== undefined && { externalRoot }),
    ...(externalData !== undefined && { externalData }),
    inputs,
    outputs,
  })
}

function loweredModel(model: ModelProto, rest: Omit<LoweredModel, 'model' | 'bytes'>): LoweredModel {
  let encoded: Uint8Array | undefined
  return {
    ...rest,
    model,
    get bytes() {
      encoded ??= encodeModel(model)
      return encoded
    },
  }
}

/** What a fusion rule may do. */
export interface FusionContext {
  /** The name of a tensor's value; '' for one left out. */
  value(tensor: Tensor | undefined): string
  /** Emits one node and returns its outputs' names. */
  node(
    opType: string,
    inputs: readonly string[],
    outputs: number,
    attributes?: Readonly<Record<string, OnnxAttribute>>,
    domain?: string,
  ): readonly string[]
}

class Lowering implements FusionContext {
  readonly #nodes: NodeProto[] = []
  readonly #initializers: TensorProto[] = []
  readonly #externalFiles: { readonly tensor: Tensor; readonly name: string }[] = []
  readonly #memoryWeights: { readonly name: string; readonly value: TensorValue }[] = []
  readonly #inputs = new Map<string, Tensor>()
  readonly #outputs = new Map<string, Tensor>()
  readonly #names = new Map<Tensor, string>()
  /** Equal computations share one node: keys are operator, attributes and input names. */
  readonly #known = new Map<string, readonly string[]>()
  readonly #declared = new Set<Node>()
  readonly #fused: boolean
  #serial = 0

  constructor(inputs: readonly Tensor[], fused: boolean) {
    this.#fused = fused
    for (const tensor of inputs) this.#leaf(tensor)
  }

  declareInputs(output: Tensor): void {
    const stack = [output]
    for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
      const tensor = this.#resolve(top)
      const { node } = tensor
      if (this.#declared.has(node)) continue
      this.#declared.add(node)
      if (node.kind === 'input') this.#leaf(tensor)
      else if (node.kind === 'operator') for (const operand of [...node.inputs].reverse()) if (operand !== undefined) stack.push(operand)
    }
  }

  output(name: string, tensor: Tensor): string {
    this.#emitAll(this.#resolve(tensor))
    // A node of its own gives the output its name, also where two outputs are one tensor, or an output is an input.
    this.#nodes.push(makeNode({ opType: 'Identity', name: `output ${name}`, inputs: [this.value(tensor)], outputs: [name] }))
    this.#outputs.set(name, tensor)
    return name
  }

  value(tensor: Tensor | undefined): string {
    if (tensor === undefined) return ''
    const name = this.#names.get(this.#resolve(tensor))
    if (name === undefined) throw new Error('internal: a value was named before it was emitted')
    return name
  }

  node(
    opType: string,
    inputs: readonly string[],
    outputs: number,
    attributes: Readonly<Record<string, OnnxAttribute>> = {},
    domain = '',
  ): readonly string[] {
    const key = JSON.stringify([domain, opType, inputs, attributes, outputs])
    const known = this.#known.get(key)
    if (known !== undefined) return known
    const serial = this.#serial++
    const results = Array.from({ length: outputs }, (_, index) => (index === 0 ? `v${serial}` : `v${serial}.${index}`))
    this.#nodes.push(makeNode({ opType, domain, name: `${opType}_${serial}`, inputs, outputs: results, attributes }))
    this.#known.set(key, results)
    return results
  }

  finish(outputs: readonly string[]): LoweredModel {
    const external = commonRoot(this.#externalFiles.map(({ tensor }) => fileOf(tensor)))
    for (const { tensor, name } of this.#externalFiles) {
      const { node } = tensor
      if (node.kind !== 'weight' || node.source.kind !== 'file' || external === undefined)
        throw new Error('internal: not a weight in a file')
      const { file, offset, byteLength } = node.source
      this.#initializers.push(
        makeExternalTensor(name, tensor.dtype, fixedShape(tensor), { location: external.locationOf(file), offset, length: byteLength }),
      )
    }
    const externalData: { readonly path: string; readonly data: Uint8Array }[] = []
    for (const { name, value } of this.#memoryWeights) {
      const { data, dtype, dims } = value
      // ONNX Runtime takes external data from files or from memory, not from both in one model: beside files, memory's weights are written into the model.
      if (external !== undefined || data.byteLength <= largestInline) {
        this.#initializers.push(makeTensor(name, value))
        continue
      }
      this.#initializers.push(makeExternalTensor(name, dtype, dims, { location: name, offset: 0, length: data.byteLength }))
      externalData.push({ path: name, data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) })
    }
    const model = makeModel({
      graph: makeGraph({
        name: 'modalign',
        nodes: this.#nodes,
        initializers: this.#initializers,
        inputs: [...this.#inputs].map(([name, { dtype, shape }]) => makeValueInfo(name, dtype, shape.map(dimLabel))),
        outputs: outputs.map((name) => {
          const tensor = this.#outputs.get(name)
          if (tensor === undefined) throw new Error('internal: an output without a tensor')
          return makeValueInfo(name, tensor.dtype, tensor.shape.map(dimLabel))
        }),
      }),
      opsets: { '': opset, 'com.microsoft': 1 },
    })
    return loweredModel(model, {
      ...(external === undefined ? {} : { externalRoot: external.root }),
      ...(externalData.length === 0 ? {} : { externalData }),
      inputs: [...this.#inputs.keys()],
      outputs,
    })
  }

  /** The primitive, fused composite or leaf that a tensor really is: composites without a fused operator are their formula. */
  #resolve(tensor: Tensor): Tensor {
    let current = tensor
    for (;;) {
      const { node, index } = current
      if (node.kind !== 'operator' || node.operator.kind !== 'composite' || this.#fusion(node) !== undefined) return current
      const inner = node.operator.expansion(node)[index]
      if (inner === undefined) throw new Error(`internal: ${node.operator.name} has no output ${index}`)
      current = inner
    }
  }

  #fusion(node: OperatorNode): FusionRule | undefined {
    return this.#fused ? fusionOf(node) : undefined
  }

  /** Emits what a tensor needs, each node after its inputs; without recursion, since training graphs are deep. */
  #emitAll(tensor: Tensor): void {
    const stack: { readonly tensor: Tensor; readonly ready: boolean }[] = [{ tensor, ready: false }]
    const opened = new Set<Node>()
    for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
      const { node } = top.tensor
      if (this.#names.has(top.tensor)) continue
      if (node.kind !== 'operator') this.#leaf(top.tensor)
      else if (top.ready) this.#emit(node)
      else if (!opened.has(node)) {
        opened.add(node)
        stack.push({ tensor: top.tensor, ready: true })
        for (const operand of [...node.inputs].reverse())
          if (operand !== undefined) stack.push({ tensor: this.#resolve(operand), ready: false })
      }
    }
  }

  #emit(node: OperatorNode): void {
    const fusion = this.#fusion(node)
    const names = fusion !== undefined ? fusion(this, node, plainAttributes(node.attributes)) : this.#primitive(node)
    for (const [index, output] of node.outputs.entries()) {
      const name = names[index]
      if (name !== undefined) this.#names.set(output, name)
    }
  }

  #primitive(node: OperatorNode): readonly string[] {
    const { operator } = node
    if (operator.kind !== 'primitive') throw new Error(`internal: ${operator.name} was to be expanded`)
    const { attributes, operands = [] } = operator.onnxForm(node.attributes, node.inputs)
    const inputs = [
      ...node.inputs.map((tensor) => this.value(tensor)),
      ...operands.map((dims) => (dims === undefined ? '' : this.#dims(dims, operator.name))),
    ]
    while (inputs.at(-1) === '') inputs.pop()
    // A computed size that turns out to be 0 is 0, not what the input has in that place.
    const computed = operator.name === 'Reshape' && operands.some((dims) => dims !== undefined && dims.filter(isNamed).length > 1)
    return this.node(operator.name, inputs, node.outputs.length, computed ? { ...attributes, allowzero: { int: 1 } } : attributes)
  }

  #leaf(tensor: Tensor): void {
    const { node } = tensor
    if (this.#names.has(tensor)) return
    if (node.kind === 'input') {
      if (this.#inputs.has(node.name))
        throw new ModalignError({ code: 'GRAPH_INPUT_TWICE', field: node.name, expected: 'one tensor for each input name' })
      this.#inputs.set(node.name, tensor)
      this.#names.set(tensor, node.name)
    } else if (node.kind === 'constant') {
      this.#names.set(tensor, this.#constant(node.value))
    } else if (node.kind === 'weight') {
      const name = this.#inputs.has(node.name) ? `${node.name}.frozen` : node.name
      this.#names.set(tensor, name)
      if (node.source.kind === 'file') this.#externalFiles.push({ tensor, name })
      else this.#memoryWeights.push({ name, value: node.source.value })
    }
  }

  #constant(value: TensorValue): string {
    const { data } = value
    const key = data.length <= largestCompared ? `constant ${value.dtype} [${value.dims.join()}] ${data.join()}` : undefined
    const known = key === undefined ? undefined : this.#known.get(key)?.[0]
    if (known !== undefined) return known
    const name = `c${this.#serial++}`
    this.#memoryWeights.push({ name, value })
    if (key !== undefined) this.#known.set(key, [name])
    return name
  }

  /** An int64 vector of sizes: a constant where all are numbers, else computed from the shapes of inputs. */
  #dims(dims: readonly Dim[], operator: string): string {
    const numbers = dims.filter((dim) => typeof dim === 'number')
    if (numbers.length === dims.length) return this.#leafName(integers(numbers))
    // Reshape works one unknown size out by itself, if no other is 0.
    if (operator === 'Reshape' && numbers.length === dims.length - 1 && !numbers.includes(0)) {
      return this.#leafName(integers(dims.map((dim) => (typeof dim === 'number' ? dim : -1))))
    }
    const [joined] = this.node(
      'Concat',
      dims.map((dim) => this.#dim(dim)),
      1,
      { axis: { int: 0 } },
    )
    return joined ?? ''
  }

  #dim(dim: Dim): string {
    const terms = termsOf(dim).map(({ coefficient, names }) => {
      const sizes = names.map((name) => this.#size(name))
      const factors = coefficient === 1 && sizes.length > 0 ? sizes : [this.#leafName(integers([coefficient])), ...sizes]
      return factors.reduce((product, factor) => this.node('Mul', [product, factor], 1)[0] ?? '')
    })
    const [first = this.#leafName(integers([0])), ...others] = terms
    return others.reduce((sum, term) => this.node('Add', [sum, term], 1)[0] ?? '', first)
  }

  /** A named size as an int64 vector of one element, read off an input that has it. */
  #size(name: string): string {
    for (const [inputName, { shape }] of this.#inputs) {
      const axis = shape.findIndex((dim) => plainName(dim) === name)
      if (axis >= 0) return this.node('Shape', [inputName], 1, { start: { int: axis }, end: { int: axis + 1 } })[0] ?? ''
    }
    throw new ModalignError({
      code: 'GRAPH_SIZE_UNBOUND',
      field: name,
      expected: 'a graph input that has this size alone along an axis',
      hint: 'pass that input in `inputs`',
    })
  }

  #leafName(tensor: Tensor): string {
    this.#leaf(tensor)
    return this.value(tensor)
  }
}

function fileOf({ node }: Tensor): string {
  if (node.kind !== 'weight' || node.source.kind !== 'file') throw new Error('internal: not a weight in a file')
  return node.source.file
}

function fixedShape({ shape }: Tensor): readonly number[] {
  return shape.map((dim) => {
    if (typeof dim !== 'number') throw new Error('internal: a weight has numbers as sizes')
    return dim
  })
}

const isNamed = (dim: Dim): boolean => typeof dim !== 'number'

/** What the model says of a size: its number, its name, or its formula as a name (ONNX knows no arithmetic there). */
function dimLabel(dim: Dim): number | string {
  return typeof dim === 'number' ? dim : dim.key
}
