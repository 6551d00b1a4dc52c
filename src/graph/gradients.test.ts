import { readdir } from 'node:fs/promises'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { differentiable, undifferentiable } from '../../test/operators/cases.ts'
import { built, gradientError, lossOf } from '../../test/operators/check.ts'
import { composites } from '../../test/operators/composite-cases.ts'
import { drawFrom, random as randomNumbers } from '../../test/operators/draw.ts'
import { ModalignError } from '../errors.ts'
import { scaledDotProductAttention } from './composites/attention.ts'
import { size } from './dim.ts'
import { evaluate, value } from './evaluate.ts'
import { gradients, operatorOrder } from './gradients.ts'
import { defineComposite, definedPrimitives, only, required } from './operator.ts'
import * as ops from './operators/index.ts'
import { input, type Tensor } from './tensor.ts'

const laws = Object.entries({ ...differentiable, ...composites })

describe('every primitive', () => {
  test('with a gradient has an entry in the table of laws', () => {
    const names = [...definedPrimitives().values()].filter(({ differentiable: has }) => has).map(({ name }) => name)
    expect(names.sort()).toEqual(Object.keys(differentiable).sort())
  })

  test('without a gradient is one of these', () => {
    const names = [...definedPrimitives().values()].filter(({ differentiable: has }) => !has).map(({ name }) => name)
    expect(names.sort()).toEqual([
      'And',
      'ArgMax',
      'Equal',
      'Floor',
      'Greater',
      'GreaterOrEqual',
      'Less',
      'LessOrEqual',
      'Not',
      'Or',
      'Range',
      'ReduceProd',
      'Shape',
      'Sign',
    ])
    expect(names.sort()).toEqual(Object.keys(undifferentiable).sort())
  })

  test('is exported, and lies in a file of its own', async () => {
    const files = (await readdir(new URL('./operators/', import.meta.url))).filter((name) => !/^index\.ts$|\.test\.ts$/.test(name))
    expect(files.length).toBe(definedPrimitives().size)
  })
})

/** Failures name seed and path; shrinking is left out, since it takes longer than reading the case. */
const random = { numRuns: 25, endOnFailure: true }

describe('gradients equal central differences', () => {
  test.each(laws)('%s', (_, caseOf) => {
    fc.assert(
      fc.property(fc.gen(), (g) => {
        expect(gradientError(built(caseOf(drawFrom(g), 'float64')))).toBeLessThan(1e-9)
      }),
      random,
    )
  })

  test('of a chain of broadcasts over named sizes', () => {
    const [batch, tokens] = [size('batch'), size('tokens')]
    const x = input('x', 'float64', [batch, tokens, 3])
    const scale = input('scale', 'float64', [3])
    const shift = input('shift', 'float64', [tokens, 1])
    const y = ops.mul(ops.add(ops.mul(x, scale), shift), x)
    const feeds = {
      x: numbersOf([2, 4, 3], 1),
      scale: numbersOf([3], 2),
      shift: numbersOf([4, 1], 3),
    }
    const loss = ops.reduceSum(ops.mul(y, y), [0, 1, 2])
    expect(gradientError({ loss, feeds, inputs: [x, scale, shift], variables: [x, scale, shift], outputs: [y] })).toBeLessThan(1e-9)
    expect(gradients(loss, [x, scale, shift]).map(({ shape }) => shape)).toEqual([x.shape, scale.shape, shift.shape])
  })
})

describe('gradients are transposed', () => {
  const affine = laws.filter(([, caseOf]) => caseOf(drawn(3), 'float64').affineIn !== undefined)

  // <f(x) - f(0), r> = <x, f*(r)>: no step size, so the bound is rounding alone.
  test.each(affine)('%s: dot products agree', (_, caseOf) => {
    fc.assert(
      fc.property(fc.gen(), (g) => {
        const drawnCase = caseOf(drawFrom(g), 'float64')
        const graph = built(drawnCase)
        for (const index of drawnCase.affineIn ?? []) {
          const x = graph.inputs[index]
          const fed = graph.feeds[`x${index}`]
          if (x === undefined || fed === undefined) throw new Error('no such input')
          const loss = lossOf(graph)
          const [atX, gradient] = evaluate([loss, ...gradients(loss, [x]), ...graph.inputs], graph.feeds)
          const [atZero] = evaluate([loss, ...graph.inputs], { ...graph.feeds, [`x${index}`]: { ...fed, data: fed.data.map(() => 0) } })
          const product = fed.data.reduce((sum, element, position) => sum + element * (gradient?.data[position] ?? Number.NaN), 0)
          const size = fed.data.reduce((sum, element, position) => sum + Math.abs(element * (gradient?.data[position] ?? Number.NaN)), 1)
          expect(Math.abs((atX?.data[0] ?? 0) - (atZero?.data[0] ?? 0) - product) / size).toBeLessThan(1e-13)
        }
      }),
      random,
    )
  })

  test.each(laws)('%s: linear in what arrives', (_, caseOf) => {
    fc.assert(
      fc.property(fc.gen(), fc.double({ min: -3, max: 3, noNaN: true }), (g, factor) => {
        const drawnCase = caseOf(drawFrom(g), 'float64')
        const graph = built(drawnCase, 1)
        const other = built(drawnCase, 2)
        const feedsOf = (combine: (a: number, b: number) => number) =>
          Object.fromEntries(
            Object.entries(graph.feeds).map(([name, fed]) => {
              const second = other.feeds[name]
              if (!name.startsWith('r') || second === undefined) return [name, fed]
              return [name, { ...fed, data: fed.data.map((a, position) => combine(a, second.data[position] ?? Number.NaN)) }]
            }),
          )
        const wanted = [...gradients(lossOf(graph), graph.variables), ...graph.inputs]
        const [first, second, combined] = [feedsOf((a) => a), feedsOf((_a, b) => b), feedsOf((a, b) => a + factor * b)].map((feeds) =>
          evaluate(wanted, feeds),
        )
        for (const index of graph.variables.keys()) {
          for (const [position, found] of (combined?.[index]?.data ?? []).entries()) {
            const expected = (first?.[index]?.data[position] ?? Number.NaN) + factor * (second?.[index]?.data[position] ?? Number.NaN)
            expect(Math.abs(found - expected)).toBeLessThan(1e-11 * Math.max(1, Math.abs(expected)))
          }
        }
      }),
      { ...random, numRuns: 8 },
    )
  })
})

describe('the walk', () => {
  test('adds up every use of a tensor', () => {
    const x = input('x', 'float64', [3])
    const y = ops.add(ops.mul(x, x), ops.mul(ops.exp(x), x))
    const [dx] = evaluate(gradients(ops.reduceSum(y, [0]), [x]), { x: numbersOf([3], 5) })
    const expected = [...numbersOf([3], 5).data].map((v) => 2 * v + Math.exp(v) * (1 + v))
    for (const [position, found] of (dx?.data ?? []).entries()) expect(found).toBeCloseTo(expected[position] ?? Number.NaN, 12)
  })

  test('gives zeros, in the right shape, for what the loss does not depend on', () => {
    const [x, unused] = [input('x', 'float64', [2]), input('unused', 'float64', [size('n'), 4])]
    const [, dUnused] = gradients(ops.reduceSum(x, [0]), [x, unused])
    expect(dUnused?.shape.map(String)).toEqual(['n', '4'])
    const [zeros] = evaluate(dUnused === undefined ? [] : [dUnused, unused], { unused: numbersOf([3, 4], 1) })
    expect([...(zeros?.data ?? [1])]).toEqual(new Array(12).fill(0))
  })

  test('passes no gradient through integers, and none is missed', () => {
    const x = input('x', 'float64', [3])
    const rounded = ops.cast(ops.cast(x, 'int64'), 'float64')
    const [dx] = evaluate(gradients(ops.reduceSum(ops.mul(rounded, x), [0]), [x]), { x: numbersOf([3], 5) })
    expect([...(dx?.data ?? [])]).toEqual([...numbersOf([3], 5).data].map(Math.trunc))
  })

  test('takes intermediate tensors and the loss itself as targets, and a seed', () => {
    const x = input('x', 'float64', [3])
    const y = ops.mul(x, x)
    const loss = ops.reduceSum(ops.exp(y), [0])
    const seed = input('seed', 'float64', [])
    const feeds = { x: numbersOf([3], 5), seed: value('float64', [], Float64Array.of(2)) }
    const [dy, dLoss] = evaluate(gradients(loss, [y, loss], seed), feeds)
    expect(dLoss?.data[0]).toBe(2)
    expect([...(dy?.data ?? [])]).toEqual([...feeds.x.data].map((v) => 2 * Math.exp(v * v)))
  })

  test('a second derivative', () => {
    const x = input('x', 'float64', [4])
    const [dx] = gradients(ops.reduceSum(ops.gelu(ops.mul(ops.softmax(x), x)), [0]), [x])
    if (dx === undefined) throw new Error('no gradient')
    const loss = ops.reduceSum(ops.mul(dx, dx), [0])
    expect(gradientError({ loss, feeds: { x: numbersOf([4], 9) }, inputs: [x], variables: [x], outputs: [dx] })).toBeLessThan(1e-9)
  })

  describe('builds nothing for what needs no gradient', () => {
    const asked: boolean[][] = []
    const apply = defineComposite<undefined>({
      name: 'Witness',
      expand: (inputs) => [ops.mul(required(inputs, 0, 'Witness'), required(inputs, 1, 'Witness'))],
      gradient({ upstream: [g], needs }) {
        asked.push([...needs])
        return needs.map((need) => (need ? g : undefined))
      },
    })
    const witness = (a: Tensor, b: Tensor): Tensor => only(apply([a, b], undefined))

    test('rules see which inputs need one, and are not called off the path', () => {
      asked.length = 0
      const [w, frozen, data] = [input('w', 'float32', [2]), input('frozen', 'float32', [2]), input('data', 'float32', [2])]
      const features = witness(data, frozen) // no trainable below: never asked
      const hidden = witness(features, w)
      const aside = witness(w, w) // not between w and the loss: never asked
      gradients(ops.reduceSum(witness(frozen, hidden), [0]), [w])
      expect(aside.node).not.toBe(hidden.node)
      expect(asked).toEqual([
        [false, true],
        [false, true],
      ])
    })

    test('a frozen weight costs no product', () => {
      const [x, w1, w2] = [input('x', 'float32', [4, 8]), input('w1', 'float32', [8, 8]), input('w2', 'float32', [8, 8])]
      const loss = ops.reduceSum(ops.matmul(ops.relu(ops.matmul(x, w1)), w2), [0, 1])
      const products = (wrt: readonly Tensor[]): number =>
        operatorOrder(gradients(loss, wrt)).filter(({ operator }) => operator.name === 'MatMul').length
      // The forward product that ReLU's mask needs, and one product per gradient and per step down the chain.
      expect([products([w2]), products([w1]), products([x]), products([x, w1, w2])]).toEqual([2, 3, 3, 5])
    })
  })
})

describe('a composite without a gradient of its own', () => {
  const apply = defineComposite<undefined>({
    name: 'Formula',
    expand(inputs) {
      const [a, b] = [required(inputs, 0, 'Formula'), required(inputs, 1, 'Formula')]
      return [ops.mul(ops.exp(a), b), a, ops.sin(b)]
    },
    gradient: 'by-expansion',
  })
  const differentiated = (build: (x: Tensor) => readonly Tensor[]): number => {
    const x = input('x', 'float64', [3])
    const loss = build(x)
      .map((y) => ops.reduceSum(ops.mul(y, y), [0]))
      .reduce((sum, term) => ops.add(sum, term))
    return gradientError({ loss, feeds: { x: numbersOf([3], 4) }, inputs: [x], variables: [x], outputs: [] })
  }

  test('is differentiated through its formula, all outputs or some', () => {
    expect(differentiated((x) => apply([x, ops.cos(x)], undefined))).toBeLessThan(1e-9)
    expect(differentiated((x) => apply([x, ops.cos(x)], undefined).slice(1))).toBeLessThan(1e-9)
    expect(differentiated((x) => apply([x, ops.cos(x)], undefined).slice(2))).toBeLessThan(1e-9)
  })

  test('also where one input is made from the other, or is the other', () => {
    expect(differentiated((x) => apply([ops.tanh(x), ops.exp(ops.tanh(x))], undefined))).toBeLessThan(1e-9)
    expect(differentiated((x) => apply([x, x], undefined))).toBeLessThan(1e-9)
    const nested = (x: Tensor): readonly Tensor[] => apply([x, apply([ops.sin(x), x], undefined)[0] ?? x], undefined)
    expect(differentiated(nested)).toBeLessThan(1e-9)
  })
})

describe('refusals', () => {
  const x = input('x', 'float32', [3])

  test('a loss that is not one number', () => {
    expect(code(() => gradients(x, [x]))).toBe('GRAPH_LOSS_NOT_SCALAR')
    expect(code(() => gradients(ops.cast(ops.reduceSum(x, [0]), 'int64'), [x]))).toBe('GRAPH_LOSS_NOT_SCALAR')
  })

  test('the operator that stands in the way is named', () => {
    const failure = failureOf(() => gradients(ops.reduceSum(ops.floor(x), [0]), [x]))
    expect([failure.code, failure.details.field]).toEqual(['GRAPH_NO_GRADIENT', 'Floor'])
  })

  test('so is the input for which an operator has no gradient: it is never silently zero', () => {
    const [q, mask] = [input('q', 'float32', [1, 1, 2, 4]), input('mask', 'float32', [2, 2])]
    const loss = ops.reduceSum(scaledDotProductAttention(q, q, q, { mask }), [0, 1, 2, 3])
    const failure = failureOf(() => gradients(loss, [mask]))
    expect([failure.code, failure.details.field]).toEqual(['GRAPH_NO_GRADIENT', 'ScaledDotProductAttention/3'])
    expect(gradients(loss, [q])).toHaveLength(1)
  })

  test('a feed that is missing, misshapen or contradicts another', () => {
    const [a, b] = [input('a', 'float64', [size('n')]), input('b', 'float64', [size('n')])]
    const y = ops.add(a, b)
    expect(code(() => evaluate([y], { a: numbersOf([2], 1) }))).toBe('GRAPH_FEED_MISSING')
    expect(code(() => evaluate([y], { a: numbersOf([2], 1), b: numbersOf([3], 1) }))).toBe('GRAPH_FEED_SHAPE')
    expect(code(() => evaluate([y], { a: numbersOf([2, 1], 1), b: numbersOf([2], 1) }))).toBe('GRAPH_FEED_SHAPE')
    expect(code(() => evaluate([ops.range(size('m'))], {}))).toBe('GRAPH_SIZE_UNBOUND')
  })
})

function failureOf(act: () => unknown): ModalignError {
  try {
    act()
  } catch (error) {
    if (error instanceof ModalignError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

function code(act: () => unknown): string {
  return failureOf(act).code
}

function numbersOf(dims: readonly number[], seed: number) {
  const next = randomNumbers(seed)
  return value(
    'float64',
    dims,
    Float64Array.from({ length: dims.reduce((product, dim) => product * dim, 1) }, () => 4 * next() - 2),
  )
}

/** One draw without fast-check. */
function drawn(seed: number) {
  return fc.sample(fc.gen().map(drawFrom), { seed, numRuns: 1 })[0] ?? expect.unreachable()
}
