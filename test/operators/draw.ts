/** Random choices for operator cases, drawn through fast-check so that failures shrink and seeds repeat. */
import fc from 'fast-check'
import { type Dim, size } from '../../src/graph/dim.ts'

/** A size and what it is in this case: named sizes are bound by the value that is fed. */
export interface Axis {
  readonly dim: Dim
  readonly length: number
}

export interface Draw {
  int(min: number, max: number): number
  /** The length of an axis, or a number of channels. */
  length(): number
  bool(): boolean
  pick<T>(choices: readonly T[]): T
  /** A number for pseudo-random values: elements do not shrink one by one. */
  seed(): number
}

export function drawFrom(g: fc.GeneratorValue, lengths: readonly number[] = [1, 2, 3]): Draw {
  return {
    length: () => g(() => fc.constantFrom(...lengths)),
    int: (min, max) => g(fc.integer, { min, max }),
    bool: () => g(fc.boolean),
    pick: <T>(choices: readonly T[]): T => g(() => fc.constantFrom(...choices)),
    seed: () => g(fc.nat),
  }
}

/** Named sizes: one name means one length. */
export const batch: Axis = { dim: size('batch'), length: 2 }
export const tokens: Axis = { dim: size('tokens'), length: 3 }

/** An axis, fixed or named; now and then an empty one where `empty` allows it. */
export function axis(draw: Draw, { empty = false }: { readonly empty?: boolean } = {}): Axis {
  const kind = draw.int(0, 9)
  if (kind <= 2) return draw.pick([batch, tokens])
  if (kind === 3 && empty) return fixed(0)
  return fixed(draw.length())
}

export function fixed(length: number): Axis {
  return { dim: length, length }
}

export function axes(draw: Draw, minRank: number, maxRank: number, options: { readonly empty?: boolean } = {}): readonly Axis[] {
  return Array.from({ length: draw.int(minRank, maxRank) }, () => axis(draw, options))
}

/** Two lists of axes that broadcast against each other: each axis is whole in at least one of them, leading axes may be missing in one. */
export function broadcastPair(draw: Draw, options: { readonly empty?: boolean } = {}): readonly [readonly Axis[], readonly Axis[]] {
  const whole = axes(draw, 0, 3, options)
  const stretched = whole.map(() => draw.int(0, 3))
  const first = whole.map((one, index) => (stretched[index] === 1 ? fixed(1) : one))
  const second = whole.map((one, index) => (stretched[index] === 2 ? fixed(1) : one))
  const missing = draw.int(0, whole.length)
  return draw.bool() ? [first, second.slice(missing)] : [first.slice(missing), second]
}

/** A permutation of 0..count-1. */
export function permutation(draw: Draw, count: number): readonly number[] {
  return shuffled(
    Array.from({ length: count }, (_, index) => index),
    random(draw.seed()),
  )
}

/** Numbers in [0, 1) from a seed (mulberry32). */
export function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}

export function shuffled<T>(items: readonly T[], next: () => number): readonly T[] {
  const result = [...items]
  for (let last = result.length - 1; last > 0; last--) {
    const other = Math.floor(next() * (last + 1))
    const [a, b] = [result[last], result[other]]
    if (a !== undefined && b !== undefined) [result[last], result[other]] = [b, a]
  }
  return result
}
