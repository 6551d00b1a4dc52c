/**
 * Sizes. A size is an integer or a polynomial with integer coefficients over named sizes (`batch`, `tokens`, `2*tokens+1`), kept in a normal form, so that
 * equality of two sizes is decidable before any number is known (the same idea as the symbolic dimensions of jax.export).
 */
import { ModalignError } from '../errors.ts'

export type Dim = number | SymbolicDim
export type Shape = readonly Dim[]
/** What each named size is in one run. */
export type SizeBindings = ReadonlyMap<string, number>

interface Term {
  readonly coefficient: number
  /** Names, sorted, repeated for powers. */
  readonly names: readonly string[]
}

export class SymbolicDim {
  readonly terms: readonly Term[]
  /** The normal form as text: equal sizes have equal keys. */
  readonly key: string

  constructor(terms: readonly Term[]) {
    this.terms = terms
    this.key = terms.map(renderTerm).join('+').replaceAll('+-', '-')
    Object.freeze(this)
  }

  toString(): string {
    return this.key
  }
}

/**
 * A named size. Every name must stand alone as a size of some graph input, where its value is read.
 *
 * @example
 * const tokens = size('tokens')
 * String(addDims(multiplyDims(2, tokens), 1)) // '2*tokens+1'
 */
export function size(name: string): SymbolicDim {
  if (!/^[A-Za-z_][A-Za-z0-9_.]*$/.test(name))
    throw new ModalignError({ code: 'GRAPH_SIZE_NAME', got: name, expected: 'letters, digits, _ and .' })
  return new SymbolicDim([{ coefficient: 1, names: [name] }])
}

export function addDims(a: Dim, b: Dim): Dim {
  if (typeof a === 'number' && typeof b === 'number') return a + b
  return normalised([...termsOf(a), ...termsOf(b)])
}

export function subtractDims(a: Dim, b: Dim): Dim {
  return addDims(a, multiplyDims(-1, b))
}

export function multiplyDims(a: Dim, b: Dim): Dim {
  // -1 times 0 is -0, which is no size.
  if (typeof a === 'number' && typeof b === 'number') return a * b + 0
  return normalised(
    termsOf(a).flatMap((x) =>
      termsOf(b).map((y) => ({ coefficient: x.coefficient * y.coefficient, names: [...x.names, ...y.names].sort() })),
    ),
  )
}

/** The exact quotient, or undefined where the division leaves a remainder or the divisor has more than one term. */
export function divideDims(dividend: Dim, divisor: Dim): Dim | undefined {
  if (dimsEqual(dividend, divisor) && dividend !== 0) return 1
  const [by, ...others] = termsOf(divisor)
  if (by === undefined || others.length > 0) return undefined
  const quotient: Term[] = []
  for (const term of termsOf(dividend)) {
    const names = [...term.names]
    for (const name of by.names) {
      const at = names.indexOf(name)
      if (at < 0) return undefined
      names.splice(at, 1)
    }
    if (term.coefficient % by.coefficient !== 0) return undefined
    quotient.push({ coefficient: term.coefficient / by.coefficient, names })
  }
  return normalised(quotient)
}

export function dimsEqual(a: Dim, b: Dim): boolean {
  return typeof a === 'number' || typeof b === 'number' ? a === b : a.key === b.key
}

export function shapesEqual(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dim, axis) => dimsEqual(dim, b[axis] ?? -1))
}

/** Number of elements. */
export function productOf(dims: Shape): Dim {
  return dims.reduce<Dim>(multiplyDims, 1)
}

export function sumOf(dims: Shape): Dim {
  return dims.reduce<Dim>(addDims, 0)
}

/** The names that occur. */
export function sizeNames(dim: Dim): readonly string[] {
  return typeof dim === 'number' ? [] : [...new Set(dim.terms.flatMap((term) => term.names))]
}

/** The name, if the size is one name and nothing else. */
export function plainName(dim: Dim): string | undefined {
  if (typeof dim === 'number') return undefined
  const [term, ...others] = dim.terms
  return term !== undefined && others.length === 0 && term.coefficient === 1 && term.names.length === 1 ? term.names[0] : undefined
}

/** The number that a size has in one run. @throws GRAPH_SIZE_UNBOUND */
export function evaluateDim(dim: Dim, bindings: SizeBindings): number {
  if (typeof dim === 'number') return dim
  let total = 0
  for (const term of dim.terms) {
    let product = term.coefficient
    for (const name of term.names) {
      const value = bindings.get(name)
      if (value === undefined)
        throw new ModalignError({ code: 'GRAPH_SIZE_UNBOUND', field: name, expected: 'a graph input that has this size' })
      product *= value
    }
    total += product
  }
  return total
}

export function formatShape(shape: Shape): string {
  return `[${shape.join(', ')}]`
}

/** The terms of any size: what lowering turns into integer arithmetic. */
export function termsOf(dim: Dim): readonly Term[] {
  if (typeof dim !== 'number') return dim.terms
  return dim === 0 ? [] : [{ coefficient: dim, names: [] }]
}

function normalised(terms: readonly Term[]): Dim {
  const byNames = new Map<string, Term>()
  for (const term of terms) {
    const key = term.names.join('*')
    const coefficient = (byNames.get(key)?.coefficient ?? 0) + term.coefficient
    if (coefficient === 0) byNames.delete(key)
    else byNames.set(key, { coefficient, names: term.names })
  }
  const sorted = [...byNames.entries()].sort(([a], [b]) => (a === '' ? 1 : b === '' ? -1 : a < b ? -1 : 1)).map(([, term]) => term)
  const [first, ...others] = sorted
  if (first === undefined) return 0
  if (others.length === 0 && first.names.length === 0) return first.coefficient
  return new SymbolicDim(sorted)
}

function renderTerm({ coefficient, names }: Term): string {
  if (names.length === 0) return String(coefficient)
  const product = names.join('*')
  return coefficient === 1 ? product : coefficient === -1 ? `-${product}` : `${coefficient}*${product}`
}
