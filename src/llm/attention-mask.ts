import type { Dim } from '../graph/dim.ts'
import { and } from '../graph/operators/and.ts'
import { cumSum } from '../graph/operators/cum-sum.ts'
import { equal } from '../graph/operators/equal.ts'
import { expand } from '../graph/operators/expand.ts'
import { greater } from '../graph/operators/greater.ts'
import { greaterOrEqual } from '../graph/operators/greater-or-equal.ts'
import { sub } from '../graph/operators/sub.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import { where } from '../graph/operators/where.ts'
import { integers, scalar, type Tensor } from '../graph/tensor.ts'

/** Large enough to leave no weight, small enough that adding a score keeps it finite. */
const hidden = -1e30

/** 0, 1, 2, ... as int64 [length], whatever the length turns out to be. */
export function indices(length: Dim): Tensor {
  return cumSum(expand(integers([1]), [length]), 0, { exclusive: true })
}

/** What is added to scores: 0 where a query may look, -1e30 where it may not.  visible bool -> float32. */
export function additiveMask(visible: Tensor): Tensor {
  return where(visible, scalar(0), scalar(hidden))
}

export interface MaskOptions {
  /** int64 [batch, tokens]: a token sees its own segment alone. */
  readonly segments?: Tensor | undefined
  /** A token sees so many tokens, itself the last of them.   Beltagy et al. 2020; Jiang et al. 2023. */
  readonly window?: number | undefined
}

/**
 * Added to scores: 0 where a query may look, -1e30 where it may not. A token sees itself and what came before it, in its own segment and window.
 *
 * @returns [tokens, tokens], or [batch, 1, tokens, tokens] with segments.
 */
export function causalMask(tokens: Dim, { segments, window }: MaskOptions = {}): Tensor {
  const index = indices(tokens)
  const seen = within(unsqueeze(index, [1]), unsqueeze(index, [0]), window)
  if (segments === undefined) return additiveMask(seen)
  const together = equal(unsqueeze(segments, [1, 3]), unsqueeze(segments, [1, 2]))
  return additiveMask(and(together, seen))
}

/** For a cache of `length` places: a query at position p sees places 0 to p, of them the window's last.  positions int64 [batch, queries] -> [batch, 1, queries, length]. */
export function cacheMask(positions: Tensor, length: Dim, window?: number): Tensor {
  return additiveMask(within(unsqueeze(positions, [1, 3]), unsqueeze(indices(length), [0, 1, 2]), window))
}

function within(query: Tensor, key: Tensor, window: number | undefined): Tensor {
  const before = greaterOrEqual(query, key)
  return window === undefined ? before : and(before, greater(key, sub(query, window)))
}
