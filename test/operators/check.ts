/** Gradients against central differences in the float64 evaluator. */
import { evaluate, type Value } from '../../src/graph/evaluate.ts'
import { gradients } from '../../src/graph/gradients.ts'
import { add } from '../../src/graph/operators/add.ts'
import { cast } from '../../src/graph/operators/cast.ts'
import { mul } from '../../src/graph/operators/mul.ts'
import { reduceSum } from '../../src/graph/operators/reduce-sum.ts'
import { input, isFloating, type Tensor } from '../../src/graph/tensor.ts'
import type { Case } from './cases.ts'
import { random } from './draw.ts'

/** A case as a graph: outputs, a random projection of the floating ones onto one number, and that number's gradients. */
export interface Built {
  readonly feeds: Readonly<Record<string, Value>>
  readonly inputs: readonly Tensor[]
  readonly outputs: readonly Tensor[]
  /** The inputs that have a gradient. */
  readonly variables: readonly Tensor[]
  /** sum over outputs of <output, direction>, absent where no output is floating point. */
  readonly loss?: Tensor
}

export function built({ inputs: feedList, build, frozen = [] }: Case, seed = 1, prefix = ''): Built {
  const inputs = feedList.map(({ shape, value }, index) => input(`${prefix}x${index}`, value.dtype, shape))
  const feeds: Record<string, Value> = Object.fromEntries(feedList.map(({ value }, index) => [`${prefix}x${index}`, value]))
  const [first, ...others] = inputs
  if (first === undefined) throw new Error('a case without inputs')
  const result = build(first, ...others)
  const outputs: readonly Tensor[] = 'node' in result ? [result] : result
  const next = random(seed)
  const terms = evaluate([...outputs, ...inputs], feeds).flatMap(({ dims, dtype }, index) => {
    const output = outputs[index]
    if (output === undefined || !isFloating(output.dtype)) return []
    const direction = input(`${prefix}r${index}`, output.dtype, output.shape)
    feeds[`${prefix}r${index}`] = { dtype, dims, data: Float64Array.from({ length: product(dims) }, () => Math.fround(2 * next() - 1)) }
    const weighted = mul(output, direction)
    return [cast(reduceSum(weighted, [...dims.keys()]), inputs.find((t) => isFloating(t.dtype))?.dtype ?? 'float32')]
  })
  const [loss, ...rest] = terms
  return {
    feeds,
    inputs,
    outputs,
    variables: inputs.filter(({ dtype }, index) => isFloating(dtype) && !frozen.includes(index)),
    ...(loss && { loss: rest.reduce((sum, term) => add(sum, term), loss) }),
  }
}

export function lossOf({ loss }: Built): Tensor {
  if (loss === undefined) throw new Error('no output is floating point')
  return loss
}

/** The largest difference between a gradient and the five-point stencil (8(f(x+h) - f(x-h)) - (f(x+2h) - f(x-2h))) / 12h, relative to the gradient's size. */
export function gradientError(graph: Built): number {
  const loss = lossOf(graph)
  // The inputs are evaluated too: they bind named sizes that a gradient may need without needing their values.
  const analytic = evaluate([...gradients(loss, graph.variables), ...graph.inputs], graph.feeds)
  return Math.max(
    0,
    ...graph.variables.map((variable, index) => {
      const numeric = stencil(graph, variable)
      const found = analytic[index]?.data
      if (found?.length !== numeric.length) throw new Error('a gradient has the wrong size')
      const scale = Math.max(1, ...numeric.map(Math.abs))
      return Math.max(0, ...numeric.map((expected, at) => Math.abs(expected - (found[at] ?? Number.NaN)) / scale))
    }),
  )
}

function stencil(graph: Built, variable: Tensor): readonly number[] {
  const { feeds, inputs } = graph
  const loss = lossOf(graph)
  const { node } = variable
  if (node.kind !== 'input') throw new Error('not an input')
  const value = feeds[node.name]
  if (value === undefined) throw new Error('not fed')
  const at = (position: number, step: number): number => {
    const data = Float64Array.from(value.data)
    data[position] = (data[position] ?? 0) + step
    return evaluate([loss, ...inputs], { ...feeds, [node.name]: { ...value, data } })[0]?.data[0] ?? Number.NaN
  }
  return Array.from(value.data, (element, position) => {
    const h = 1e-3 * Math.max(1, Math.abs(element))
    return (8 * (at(position, h) - at(position, -h)) - (at(position, 2 * h) - at(position, -2 * h))) / (12 * h)
  })
}

function product(dims: readonly number[]): number {
  return dims.reduce((total, dim) => total * dim, 1)
}
