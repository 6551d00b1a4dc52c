/** The oracle: a plain evaluator in double precision. Slow and simple; tests and debugging only. */
import { ModalignError } from '../errors.ts'
import { type DataType, elementCount, type TensorValue } from '../tensors.ts'
import { evaluateDim, formatShape, plainName, type SizeBindings } from './dim.ts'
import { operatorOrder } from './gradients.ts'
import type { OperatorNode, Tensor } from './tensor.ts'

/** Every type is held as doubles: integers up to 2^53 and booleans (0, 1) are exact. */
export interface Value {
  readonly dtype: DataType
  readonly dims: readonly number[]
  readonly data: Float64Array
}

export function value(dtype: DataType, dims: readonly number[], data: Float64Array): Value {
  return { dtype, dims, data }
}

export function fromTensor(tensor: TensorValue): Value {
  return { dtype: tensor.dtype, dims: tensor.dims, data: doubles(tensor.data) }
}

function doubles(data: ArrayLike<number | bigint>): Float64Array {
  return data instanceof Float64Array ? data : Float64Array.from(data, Number)
}

/**
 * Values of tensors in double precision.
 *
 * @param feeds a value for each graph input that the tensors need; its sizes bind the named ones.
 * @throws GRAPH_FEED_MISSING, GRAPH_FEED_SHAPE, GRAPH_SIZE_UNBOUND
 *
 * @example
 * const x = input('x', 'float32', [2])
 * const [y] = evaluate([mul(x, 3)], { x: value('float32', [2], Float64Array.of(1, 2)) })
 * y.data // 3, 6
 */
export function evaluate(tensors: readonly Tensor[], feeds: Readonly<Record<string, Value | TensorValue>>): readonly Value[] {
  const values = new Map<Tensor, Value>()
  const bindings = new Map<string, number>()
  const order = expandedOrder(tensors)
  for (const tensor of leavesOf(order, tensors)) values.set(tensor, leafValue(tensor, feeds, bindings))
  const context = { resolve: (dim: Parameters<typeof evaluateDim>[0]) => evaluateDim(dim, bindings) }
  const valueFor = (tensor: Tensor): Value => {
    const known = values.get(tensor)
    if (known !== undefined) return known
    const { node } = tensor
    if (node.kind === 'operator' && node.operator.kind === 'composite') {
      const inner = node.operator.expansion(node)[tensor.index]
      if (inner !== undefined) return valueFor(inner)
    }
    throw new Error('internal: a tensor was used before it was evaluated')
  }
  for (const node of order) {
    if (node.operator.kind === 'composite') continue
    const results = node.operator.evaluateNode(
      node.attributes,
      node.inputs.map((tensor) => tensor && valueFor(tensor)),
      context,
    )
    for (const [index, output] of node.outputs.entries()) {
      const result = results[index]
      if (result !== undefined) values.set(output, checked(result, output, node.operator.name, bindings))
    }
  }
  return tensors.map(valueFor)
}

/** Operators in order, with the formulas of composites in the place of the composites. */
function expandedOrder(outputs: readonly Tensor[]): readonly OperatorNode[] {
  const order: OperatorNode[] = []
  const seen = new Set<OperatorNode>()
  const visit = (tensors: readonly Tensor[]): void => {
    for (const node of operatorOrder(tensors)) {
      if (seen.has(node)) continue
      seen.add(node)
      if (node.operator.kind === 'composite') visit(node.operator.expansion(node))
      order.push(node)
    }
  }
  visit(outputs)
  return order
}

function leavesOf(order: readonly OperatorNode[], outputs: readonly Tensor[]): ReadonlySet<Tensor> {
  const all = [...outputs, ...order.flatMap((node) => node.inputs.filter((tensor) => tensor !== undefined))]
  return new Set(all.filter((tensor) => tensor.node.kind !== 'operator'))
}

function leafValue(tensor: Tensor, feeds: Readonly<Record<string, Value | TensorValue>>, bindings: Map<string, number>): Value {
  const { node } = tensor
  if (node.kind === 'constant') return fromTensor(node.value)
  if (node.kind === 'weight' && node.source.kind === 'memory') return fromTensor(node.source.value)
  if (node.kind === 'operator') throw new Error('internal: not a leaf')
  const fed = feeds[node.name]
  if (fed === undefined)
    throw new ModalignError({ code: 'GRAPH_FEED_MISSING', field: node.name, expected: `a value of shape ${formatShape(tensor.shape)}` })
  bindSizes(tensor, fed.dims, bindings, node.name)
  return { dtype: tensor.dtype, dims: fed.dims, data: doubles(fed.data) }
}

function bindSizes(tensor: Tensor, dims: readonly number[], bindings: Map<string, number>, name: string): void {
  const fits =
    dims.length === tensor.shape.length &&
    tensor.shape.every((dim, axis) => {
      const actual = dims[axis]
      if (actual === undefined) return false
      const sizeName = plainName(dim)
      if (sizeName === undefined) return typeof dim !== 'number' || dim === actual
      const bound = bindings.get(sizeName)
      bindings.set(sizeName, actual)
      return bound === undefined || bound === actual
    })
  if (!fits)
    throw new ModalignError({ code: 'GRAPH_FEED_SHAPE', field: name, got: `[${dims.join(', ')}]`, expected: formatShape(tensor.shape) })
}

/** The shape rule and the evaluation are written apart; every evaluation checks one against the other. */
function checked(result: Value, output: Tensor, name: string, bindings: SizeBindings): Value {
  const expected = output.shape.map((dim) => evaluateDim(dim, bindings))
  if (
    expected.length !== result.dims.length ||
    expected.some((dim, axis) => dim !== result.dims[axis]) ||
    result.data.length !== elementCount(expected)
  ) {
    throw new Error(`internal: ${name} gave [${result.dims.join(', ')}] where its shape rule says [${expected.join(', ')}]`)
  }
  return result
}
