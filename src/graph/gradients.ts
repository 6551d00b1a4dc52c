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
  const order = operatorOrder([loss])
  const targets = new Set(wrt)
  const dependent = new Set<Node>()
  const needsGradient = (tensor: Tensor | undefined): boolean =>
    tensor !== undefined && isFloating(tensor.dtype) && (targets.has(tensor) || dependent.has(tensor.node))
  for (const node of order) if (node.inputs.some(needsGradient)) dependent.add(node)

  const arrived = new Map<Tensor, Tensor>()
  const one = scalar(1, loss.dtype)
  arrived.set(loss, seed ?? (loss.shape.length === 0 ? one : expand(one, loss.shape)))
  for (const node of [...order].reverse()) {
    if (!dependent.has(node)) continue
    const upstream = node.outputs.map((output) => arrived.get(output))
    if (upstream.every((gradient) => gradient === undefined)) continue
    const needs = node.inputs.map(needsGradient)
    for (const [at, gradient] of differentiate(node, upstream, needs).entries()) {
      const target = node.inputs[at]
      if (gradient === undefined || target === undefined || needs[at] !== true) continue
      const before = arrived.get(target)
      arrived.set(target, before === undefined ? gradient : add(before, gradient))
    }
  }
  return wrt.map((tensor) => arrived.get(tensor) ?? expand(scalar(0, tensor.dtype), tensor.shape))
}

/** Operator nodes that `outputs` need, each after the nodes that it reads. Composites that are differentiated through their formula are replaced by it. */
export function operatorOrder(outputs: readonly Tensor[]): readonly OperatorNode[] {
  const order: OperatorNode[] = []
  const seen = new Set<Node>()
  const stack: { readonly node: Node; readonly done: boolean }[] = outputs.map(({ node }) => ({ node, done: false }))
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
      if (tensor !== undefined && !seen.has(tensor.node)) stack.push({ node: tensor.node, done: false })
  }
  return order
}

function differentiate(
  node: OperatorNode,
  upstream: readonly (Tensor | undefined)[],
  needs: readonly boolean[],
): readonly (Tensor | undefined)[] {
  return node.operator.gradientOf({ attributes: node.attributes, inputs: node.inputs, outputs: node.outputs, upstream, needs })
}
