/** Reverse-mode differentiation: a walk over the nodes between the trainables and the loss, and only those. */
import { ModalignError } from '../errors.ts'
import { productOf } from './dim.ts'
import { add } from './operators/add.ts'
import { expand } from './operators/expand.ts'
import { isFloating, type Node, type OperatorNode, scalar, type Tensor } from './tensor.ts'

/**
 * Gradients of a scalar with respect to tensors.
 *
 * @param loss rank 0 (or one element), floating point.
 * @param wrt any tensors of the graph: inputs, weights or intermediate results.
 * @param seed gradient of whatever follows with respect to `loss`; 1 by default.
 * @returns one tensor per member of `wrt`, of its shape and type; zeros where the loss does not depend on it.
 * @throws GRAPH_LOSS_NOT_SCALAR, GRAPH_NO_GRADIENT naming the operator that stands in the way.
 *
 * @example
 * const w = input('w', 'float32', [4])
 * const loss = reduceSum(mul(w, w), [0])
 * const [dw] = gradients(loss, [w]) // 2 w
 */
export function gradients(loss: Tensor, wrt: readonly Tensor[], seed?: Tensor): readonly Tensor[] {
  if (productOf(loss.shape) !== 1 || !isFloating(loss.dtype)) {
    throw new ModalignError({
      code: 'GRAPH_LOSS_NOT_SCALAR',
      got: `${loss.dtype} [${loss.shape.join(', ')}]`,
      expected: 'one floating-point number',
    })
  }
  const one = scalar(1, loss.dtype)
  const upstream = seed ?? (loss.shape.length === 0 ? one : expand(one, loss.shape))
  return pulledBack([loss], [upstream], wrt).map((gradient, index) => {
    const { dtype, shape } = wrt[index] ?? loss
    return gradient ?? expand(scalar(0, dtype), shape)
  })
}

/**
 * What arrives at `wrt` when `upstream` arrives at `outputs`; undefined where nothing does. Nothing below `leaves` is walked.
 */
function pulledBack(
  outputs: readonly Tensor[],
  upstream: readonly (Tensor | undefined)[],
  wrt: readonly Tensor[],
  leaves: ReadonlySet<Tensor> = new Set(),
): readonly (Tensor | undefined)[] {
  const order = operatorOrder(outputs, leaves)
  const targets = new Set(wrt)
  const dependent = new Set<Node>()
  const needsGradient = (tensor: Tensor | undefined): boolean =>
    tensor !== undefined && isFloating(tensor.dtype) && (targets.has(tensor) || (!leaves.has(tensor) && dependent.has(tensor.node)))
  for (const node of order) if (node.inputs.some(needsGradient)) dependent.add(node)

  const arrived = new Map<Tensor, Tensor>()
  const arrive = (target: Tensor, gradient: Tensor): void => {
    const before = arrived.get(target)
    arrived.set(target, before === undefined ? gradient : add(before, gradient))
  }
  for (const [index, output] of outputs.entries()) {
    const gradient = upstream[index]
    if (gradient !== undefined) arrive(output, gradient)
  }
  for (const node of [...order].reverse()) {
    if (!dependent.has(node)) continue
    const arriving = node.outputs.map((output) => arrived.get(output))
    if (arriving.every((gradient) => gradient === undefined)) continue
    const needs = node.inputs.map(needsGradient)
    const found = differentiate(node, arriving, needs)
    for (const [at, target] of node.inputs.entries()) {
      if (target === undefined || needs[at] !== true) continue
      const gradient = found[at]
      if (gradient === undefined) throw noGradient(node, at)
      if (gradient !== 'none') arrive(target, gradient)
    }
  }
  return wrt.map((tensor) => arrived.get(tensor))
}

/** Operator nodes that `outputs` need, each after the nodes that it reads. What lies below `leaves` is left out. */
export function operatorOrder(outputs: readonly Tensor[], leaves: ReadonlySet<Tensor> = new Set()): readonly OperatorNode[] {
  const order: OperatorNode[] = []
  const seen = new Set<Node>()
  const stack: { readonly node: Node; readonly done: boolean }[] = outputs
    .filter((tensor) => !leaves.has(tensor))
    .map(({ node }) => ({ node, done: false }))
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    const { node, done } = top
    if (node.kind !== 'operator') continue
    if (done) {
      order.push(node)
      continue
    }
    if (seen.has(node)) continue
    seen.add(node)
    stack.push({ node, done: true })
    for (const tensor of [...node.inputs].reverse())
      if (tensor !== undefined && !leaves.has(tensor) && !seen.has(tensor.node)) stack.push({ node: tensor.node, done: false })
  }
  return order
}

/** One gradient per input: undefined where the rule has none, 'none' where the input, through its formula, does not matter to what arrives. */
function differentiate(
  node: OperatorNode,
  upstream: readonly (Tensor | undefined)[],
  needs: readonly boolean[],
): readonly (Tensor | undefined | 'none')[] {
  const { operator, attributes, inputs, outputs } = node
  if (operator.kind === 'primitive' || operator.hasOwnGradient) return operator.gradientOf({ attributes, inputs, outputs, upstream, needs })
  // A formula is differentiated from its results to the composite's own inputs and no further: what lies below them, the walk outside reaches itself.
  const leaves = new Set(inputs.filter((tensor) => tensor !== undefined))
  const wanted = [...leaves].filter((tensor) => needs[inputs.indexOf(tensor)] === true)
  const found = pulledBack(operator.expansion(node), upstream, wanted, leaves)
  // A tensor that is two inputs at once has its whole gradient from the first of them.
  return inputs.map((tensor, at) => {
    if (tensor === undefined || inputs.indexOf(tensor) !== at) return 'none'
    return found[wanted.indexOf(tensor)] ?? 'none'
  })
}

function noGradient({ operator }: OperatorNode, at: number): ModalignError {
  return new ModalignError({
    code: 'GRAPH_NO_GRADIENT',
    field: `${operator.name}/${at}`,
    got: 'an input that needs a gradient',
    expected: 'an input for which the operator has one',
  })
}
