/** Every operator's values and gradients against PyTorch: in the float64 evaluator tightly, in float32 on ONNX Runtime by PyTorch's own measure. */
import { describe, expect, test } from 'vitest'
import { evaluate, type Value } from '../src/graph/evaluate.ts'
import { gradients } from '../src/graph/gradients.ts'
import { definedPrimitives } from '../src/graph/operator.ts'
import { add } from '../src/graph/operators/add.ts'
import { mul } from '../src/graph/operators/mul.ts'
import { reduceSum } from '../src/graph/operators/reduce-sum.ts'
import { input, type Tensor } from '../src/graph/tensor.ts'
import { lower } from '../src/onnx/lower.ts'
import { createLocalSession } from '../src/runtime/local.ts'
import { composites } from './operators/composite-cases.ts'
import { difference, tensorOf } from './operators/kernels.ts'
import { applied, arrayValue, type PytorchCase, pytorchCases } from './operators/pytorch-cases.ts'

/** The defaults of torch.testing.assert_close for float32. */
const float32Tolerance = { relative: 1.3e-6, absolute: 1e-5 }
const tight = { relative: 1e-9, absolute: 1e-9 }

const labelled = pytorchCases.map((one) => [`${one.operator} ${one.label}`, one] as const)

test('every primitive and every composite has a case', () => {
  const found = new Set(pytorchCases.map(({ operator }) => operator))
  expect([...found].sort()).toEqual([...definedPrimitives().keys(), ...Object.keys(composites)].sort())
})

describe('in double precision', () => {
  test.each(labelled)('%s', (_, one) => {
    // The loss of the language-model head is float32 by definition; the evaluator computes in doubles all the same.
    const { tensors, feeds, expected } = graphOf(one, one.operator === 'linearCrossEntropy' ? 'float32' : 'float64')
    const values = evaluate(Object.values(tensors), feeds)
    const found = Object.fromEntries(Object.keys(tensors).map((name, index) => [name, valueAt(values, index)]))
    expect(difference(found, expected, tight)).toBeUndefined()
  })
})

describe('in float32 on ONNX Runtime', () => {
  test.each(labelled)('%s', async (_, one) => {
    const { tensors, feeds, expected } = graphOf(one, 'float32')
    for (const fused of [true, false]) {
      const lowered = lower({ outputs: tensors, fused })
      await using session = await createLocalSession(lowered, { device: 'cpu' })
      const outputs = await session.run(Object.fromEntries(lowered.inputs.map((name) => [name, tensorOf(feeds[name])])))
      expect(difference(outputs, expected, float32Tolerance)).toBeUndefined()
    }
  })
})

/** The outputs, and the gradients of sum(output * direction). */
function graphOf(one: PytorchCase, floating: 'float32' | 'float64') {
  const feeds: Record<string, Value> = {}
  const fed = (name: string, value: Value): Tensor => {
    feeds[name] = value
    return input(name, value.dtype, value.dims)
  }
  const inputs = one.inputs.map((array, index) => fed(`x${index}`, arrayValue(array, floating)))
  const results = applied(one, inputs, floating)
  const tensors: Record<string, Tensor> = {}
  const expected: Record<string, Value> = {}
  for (const [index, array] of one.outputs.entries()) {
    const result = results[index]
    if (result === undefined) throw new Error('an output is missing')
    tensors[`y${index}`] = result
    expected[`y${index}`] = { ...arrayValue(array, floating), dtype: result.dtype }
  }
  const terms = one.directions.flatMap((array, index) => {
    const result = results[index]
    if (array === null || result === undefined) return []
    return [reduceSum(mul(result, fed(`r${index}`, arrayValue(array, floating))), [...array.dims.keys()])]
  })
  const wanted = one.gradients.flatMap((array, index) => {
    const x = inputs[index]
    return array === null || x === undefined ? [] : [{ array, index, x }]
  })
  const [loss, ...others] = terms
  if (loss !== undefined && wanted.length > 0) {
    const found = gradients(
      others.reduce((sum, term) => add(sum, term), loss),
      wanted.map(({ x }) => x),
    )
    for (const [position, { array, index }] of wanted.entries()) {
      const gradient = found[position]
      if (gradient === undefined) throw new Error('a gradient is missing')
      tensors[`d${index}`] = gradient
      expected[`d${index}`] = arrayValue(array, floating)
    }
  }
  return { tensors, feeds, expected }
}

function valueAt(values: readonly Value[], index: number): Value {
  const value = values[index]
  if (value === undefined) throw new Error('no value')
  return value
}
