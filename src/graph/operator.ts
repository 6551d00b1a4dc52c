/**
 * What an operator is. A primitive is exactly one standard ONNX operator (opset 21) with its shape rule, gradient rule and float64 evaluation in one file.
 * A composite is a formula over primitives that brings its own gradient, or that a provider may have as one fused operator.
 */
import { ModalignError } from '../errors.ts'
import type { Dim } from './dim.ts'
import type { Value } from './evaluate.ts'
import type { Node, Tensor, TensorType } from './tensor.ts'

export type Operator = Primitive | Composite

/** Inputs may be left out (undefined) where ONNX marks them optional. */
export type Inputs = readonly (Tensor | undefined)[]

export interface GradientRequest<A> {
  readonly inputs: Inputs
  readonly outputs: readonly Tensor[]
  /** Gradient of the loss with respect to each output; undefined where no gradient arrives. */
  readonly upstream: readonly (Tensor | undefined)[]
  /** Which inputs need a gradient: a rule builds nothing for the others. */
  readonly needs: readonly boolean[]
  readonly attributes: A
}
/** One gradient per input, of the input's shape; undefined for inputs that need none. */
export type GradientRule<A> = (request: GradientRequest<A>) => readonly (Tensor | undefined)[]

/** How the attributes are said in ONNX: true attributes, and operands that ONNX wants as input tensors. */
export interface OnnxForm {
  readonly attributes?: Readonly<Record<string, OnnxAttribute>>
  /** Appended to the inputs: int64 vectors, possibly over named sizes. `undefined` leaves an optional operand out. */
  readonly operands?: readonly (readonly Dim[] | undefined)[]
}
export type OnnxAttribute =
  | { readonly int: number }
  | { readonly float: number }
  | { readonly ints: readonly number[] }
  | { readonly floats: readonly number[] }
  | { readonly string: string }

export interface EvaluationContext {
  /** The number that a size has in this run. */
  resolve(dim: Dim): number
}

interface PrimitiveRules<A> {
  /** The ONNX operator's name. */
  readonly name: string
  shape(inputs: Inputs, attributes: A): readonly TensorType[]
  /** `'none'`: the operator has no gradient (its result is an index, a mask or a shape). Such operators are an asserted list. */
  readonly gradient: GradientRule<A> | 'none'
  evaluate(inputs: readonly (Value | undefined)[], attributes: A, context: EvaluationContext): readonly Value[]
  onnx?(attributes: A, inputs: Inputs): OnnxForm
}
interface CompositeRules<A> {
  readonly name: string
  /** The formula, over primitives and other composites. */
  expand(inputs: Inputs, attributes: A): readonly Tensor[]
  readonly gradient: GradientRule<A> | 'by-expansion'
}

export interface Primitive extends Omit<PrimitiveRules<never>, 'shape' | 'gradient' | 'evaluate' | 'onnx'> {
  readonly kind: 'primitive'
  readonly differentiable: boolean
  gradientOf(node: OperatorNodeView): readonly (Tensor | undefined)[]
  evaluateNode(attributes: unknown, inputs: readonly (Value | undefined)[], context: EvaluationContext): readonly Value[]
  onnxForm(attributes: unknown, inputs: Inputs): OnnxForm
}
export interface Composite {
  readonly kind: 'composite'
  readonly name: string
  readonly differentiable: true
  readonly hasOwnGradient: boolean
  gradientOf(node: OperatorNodeView): readonly (Tensor | undefined)[]
  /** The formula applied to a node's own inputs; built once for each node. */
  expansion(node: Node): readonly Tensor[]
}
export interface OperatorNodeView {
  readonly attributes: unknown
  readonly inputs: Inputs
  readonly outputs: readonly Tensor[]
  readonly upstream: readonly (Tensor | undefined)[]
  readonly needs: readonly boolean[]
}

/** Applies an operator: the only way in which operator nodes come into being, so a node's attributes always have its operator's type. */
export type Apply<A> = (inputs: Inputs, attributes: A) => readonly Tensor[]

const primitives = new Map<string, Primitive>()

/** Every primitive by its ONNX name: what the completeness tests walk over. */
export function definedPrimitives(): ReadonlyMap<string, Primitive> {
  return primitives
}

export function defineOperator<A>(rules: PrimitiveRules<A>): Apply<A> {
  // A node keeps its attributes as `unknown`; this is the one place that made them, so reading them back as A is sound.
  const own = new WeakMap<object, { readonly attributes: A }>()
  const read = (attributes: unknown): A => stored(own, attributes, rules.name)
  const { gradient } = rules
  const primitive: Primitive = {
    kind: 'primitive',
    name: rules.name,
    differentiable: gradient !== 'none',
    gradientOf(node) {
      if (gradient === 'none')
        throw new ModalignError({
          code: 'GRAPH_NO_GRADIENT',
          field: rules.name,
          expected: 'an operator with a gradient between the trainables and the loss',
        })
      return gradient({ ...node, attributes: read(node.attributes) })
    },
    evaluateNode: (attributes, inputs, context) => rules.evaluate(inputs, read(attributes), context),
    onnxForm: (attributes, inputs) => rules.onnx?.(read(attributes), inputs) ?? {},
  }
  primitives.set(rules.name, primitive)
  return (inputs, attributes) => {
    const box = Object.freeze({ attributes })
    own.set(box, box)
    return makeNode(primitive, box, inputs, rules.shape(inputs, attributes))
  }
}

export function defineComposite<A>(rules: CompositeRules<A>): Apply<A> {
  const own = new WeakMap<object, { readonly attributes: A }>()
  const expansions = new WeakMap<Node, readonly Tensor[]>()
  const { gradient } = rules
  const composite: Composite = {
    kind: 'composite',
    name: rules.name,
    differentiable: true,
    hasOwnGradient: gradient !== 'by-expansion',
    gradientOf(node) {
      if (gradient === 'by-expansion') throw new Error(`internal: ${rules.name} is differentiated through its expansion`)
      return gradient({ ...node, attributes: stored(own, node.attributes, rules.name) })
    },
    expansion(node) {
      const known = expansions.get(node)
      if (known !== undefined) return known
      if (node.kind !== 'operator') throw new Error('internal: only operator nodes expand')
      const expanded = rules.expand(node.inputs, stored(own, node.attributes, rules.name))
      expansions.set(node, expanded)
      return expanded
    },
  }
  return (inputs, attributes) => {
    const expanded = rules.expand(inputs, attributes)
    const box = Object.freeze({ attributes })
    own.set(box, box)
    const outputs = makeNode(composite, box, inputs, expanded)
    const [first] = outputs
    if (first !== undefined) expansions.set(first.node, expanded)
    return outputs
  }
}

/** The attributes as written, for keys and debugging. */
export function plainAttributes(attributes: unknown): unknown {
  return typeof attributes === 'object' && attributes !== null && 'attributes' in attributes ? attributes.attributes : attributes
}

/** An input that must be there. */
export function required(inputs: Inputs, index: number, operator: string): Tensor {
  const tensor = inputs[index]
  if (tensor === undefined) throw new ModalignError({ code: 'GRAPH_INPUT_MISSING', field: `${operator}/${index}`, expected: 'a tensor' })
  return tensor
}

/** The first output of an application that has exactly one. */
export function only(outputs: readonly Tensor[]): Tensor {
  const [tensor, ...others] = outputs
  if (tensor === undefined || others.length > 0) throw new Error(`internal: expected one output, got ${outputs.length}`)
  return tensor
}

function stored<A>(own: WeakMap<object, { readonly attributes: A }>, attributes: unknown, name: string): A {
  const box = typeof attributes === 'object' && attributes !== null ? own.get(attributes) : undefined
  if (box === undefined) throw new Error(`internal: attributes of another operator reached ${name}`)
  return box.attributes
}

function makeNode(operator: Operator, attributes: object, inputs: Inputs, types: readonly TensorType[]): readonly Tensor[] {
  const outputs: Tensor[] = []
  const node: Node = Object.freeze({ kind: 'operator', operator, attributes, inputs: Object.freeze([...inputs]), outputs })
  types.forEach(({ dtype, shape }, index) => {
    outputs.push(Object.freeze({ dtype, shape: Object.freeze([...shape]), node, index }))
  })
  Object.freeze(outputs)
  return outputs
}
