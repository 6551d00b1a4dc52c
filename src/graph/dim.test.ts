import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ModalignError } from '../errors.ts'
import {
  addDims,
  type Dim,
  dimsEqual,
  divideDims,
  evaluateDim,
  multiplyDims,
  plainName,
  productOf,
  shapesEqual,
  size,
  sizeNames,
  subtractDims,
  sumOf,
  termsOf,
} from './dim.ts'

const names = ['a', 'b', 'c'] as const

/** Polynomials by construction, so that every way to write one occurs. */
const { dim } = fc.letrec<{ dim: Dim }>((tie) => ({
  dim: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    fc.integer({ min: -4, max: 4 }),
    fc.constantFrom(...names).map(size),
    fc.tuple(tie('dim'), tie('dim')).map(([x, y]) => addDims(x, y)),
    fc.tuple(tie('dim'), tie('dim')).map(([x, y]) => subtractDims(x, y)),
    fc
      .tuple(tie('dim'), fc.oneof(fc.integer({ min: -3, max: 3 }), fc.constantFrom(...names).map(size)))
      .map(([x, y]) => multiplyDims(x, y)),
  ),
}))
const bindings = fc.tuple(fc.nat(9), fc.nat(9), fc.nat(9)).map(([a, b, c]) => new Map(Object.entries({ a, b, c })))
const [a, b] = [size('a'), size('b')]

describe('a size is a polynomial', () => {
  test('sums, differences and products evaluate to those of the numbers', () => {
    fc.assert(
      fc.property(dim, dim, bindings, (x, y, bound) => {
        const [u, v] = [evaluateDim(x, bound), evaluateDim(y, bound)]
        expect(evaluateDim(addDims(x, y), bound)).toBe(u + v)
        expect(evaluateDim(subtractDims(x, y), bound)).toBe(u - v)
        expect(evaluateDim(multiplyDims(x, y), bound) === u * v).toBe(true)
      }),
    )
  })

  test('nothing is 0, whatever its sign was', () => {
    expect(multiplyDims(-1, 0)).toBe(0)
    expect(subtractDims(0, 0)).toBe(0)
  })

  test('in normal form: addition and multiplication commute, associate and distribute', () => {
    fc.assert(
      fc.property(dim, dim, dim, (x, y, z) => {
        expect(dimsEqual(addDims(x, y), addDims(y, x))).toBe(true)
        expect(dimsEqual(multiplyDims(x, y), multiplyDims(y, x))).toBe(true)
        expect(dimsEqual(addDims(addDims(x, y), z), addDims(x, addDims(y, z)))).toBe(true)
        expect(dimsEqual(multiplyDims(multiplyDims(x, y), z), multiplyDims(x, multiplyDims(y, z)))).toBe(true)
        expect(dimsEqual(multiplyDims(x, addDims(y, z)), addDims(multiplyDims(x, y), multiplyDims(x, z)))).toBe(true)
        expect(subtractDims(x, x)).toBe(0)
      }),
    )
  })

  // A polynomial of degree d that is not zero has a value that is not zero on any grid of more than d points an axis.
  test('equal if and only if equal for every binding', () => {
    const grid = [0, 1, 2, 3, 4, 5, 6, 7, 8]
    fc.assert(
      fc.property(dim, dim, (x, y) => {
        const degree = Math.max(...termsOf(subtractDims(x, y)).map((term) => term.names.length), 0)
        fc.pre(degree < grid.length)
        const agree = grid.every((i) =>
          grid.every((j) =>
            grid.every((k) => {
              const bound = new Map(Object.entries({ a: i, b: j, c: k }))
              return evaluateDim(x, bound) === evaluateDim(y, bound)
            }),
          ),
        )
        expect(dimsEqual(x, y)).toBe(agree)
      }),
    )
  })

  test('a quotient is exact: times the divisor it is the dividend', () => {
    fc.assert(
      fc.property(dim, dim, (x, y) => {
        const quotient = divideDims(x, y)
        if (quotient !== undefined) expect(dimsEqual(multiplyDims(quotient, y), x)).toBe(true)
      }),
    )
  })

  test('what was multiplied by one term divides by it again', () => {
    const monomial = fc
      .tuple(fc.integer({ min: 1, max: 5 }), fc.subarray([...names]))
      .map(([factor, some]) => productOf([factor, ...some.map(size)]))
    fc.assert(
      fc.property(dim, monomial, (x, y) => {
        expect(dimsEqual(divideDims(multiplyDims(x, y), y) ?? -1, x)).toBe(true)
      }),
    )
  })

  test('no quotient where something is left over', () => {
    expect(divideDims(7, 2)).toBeUndefined()
    expect(divideDims(addDims(a, 1), a)).toBeUndefined()
    expect(divideDims(a, b)).toBeUndefined()
    expect(divideDims(a, multiplyDims(a, a))).toBeUndefined()
    expect(divideDims(a, 0)).toBeUndefined()
    expect(divideDims(0, 0)).toBeUndefined()
    expect(divideDims(addDims(a, b), addDims(a, b))).toBe(1)
  })
})

describe('a size as text', () => {
  test('is its normal form', () => {
    expect(String(addDims(multiplyDims(2, size('tokens')), 1))).toBe('2*tokens+1')
    expect(String(subtractDims(multiplyDims(b, a), b))).toBe('a*b-b')
    expect(String(subtractDims(1, a))).toBe('-a+1')
    expect(String(multiplyDims(a, a))).toBe('a*a')
  })

  test('is equal if and only if the sizes are', () => {
    fc.assert(
      fc.property(dim, dim, (x, y) => {
        expect(String(x) === String(y)).toBe(dimsEqual(x, y))
      }),
    )
  })
})

test('names: which occur, and when one stands alone', () => {
  expect(sizeNames(addDims(multiplyDims(a, b), a))).toEqual(['a', 'b'])
  expect([plainName(a), plainName(addDims(a, 1)), plainName(multiplyDims(2, a)), plainName(3)]).toEqual([
    'a',
    undefined,
    undefined,
    undefined,
  ])
})

test('shapes: sums, products and equality', () => {
  expect(String(productOf([2, a, a]))).toBe('2*a*a')
  expect([productOf([]), sumOf([])]).toEqual([1, 0])
  expect(String(sumOf([a, 1, a]))).toBe('2*a+1')
  expect(shapesEqual([2, addDims(a, a)], [2, multiplyDims(2, a)])).toBe(true)
  expect([shapesEqual([a], [b]), shapesEqual([a], [a, 1]), shapesEqual([a], [2])]).toEqual([false, false, false])
})

test.each(['', '2a', 'a-b', 'a b', 'a*b'])('%j is no name', (name) => {
  expect(code(() => size(name))).toBe('GRAPH_SIZE_NAME')
})

test('a name without a value is refused', () => {
  expect(code(() => evaluateDim(a, new Map()))).toBe('GRAPH_SIZE_UNBOUND')
})

function code(act: () => unknown): string {
  try {
    act()
  } catch (error) {
    if (error instanceof ModalignError) return error.code
    throw error
  }
  throw new Error('nothing was thrown')
}
