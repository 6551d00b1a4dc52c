import type { Dim } from '../graph/dim.ts'
import { and } from '../graph/operators/and.ts'
import { cumSum } from '../graph/operators/cum-sum.ts'
import { equal } from '../graph/operators/equal.ts'
import { expand } from '../graph/operators/expand.ts'
import { greaterOrEqual } from '../graph/operators/greater-or-equal.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import { where } from '../graph/operators/where.ts'
import { integers, scalar, type Tensor } from '../graph/tensor.ts'

/** Large enough to leave no weight, small enough that adding a score keeps it finite. */
const hidden = -1e30

/** 0, 1, 2, ... as int64 [length], whatever the length turns out to be. */
export function indices(length: Dim): Tensor {
  return cumSum(expand(integers([1]), [length]), 0, { exclusive: true })
}

/**
 * Added to scores: 0 where a query may look, -1e30 where it may not. A token sees itself and what came before it, in its own segment.
 *
 * @returns [tokens, tokens], or [batch, 1, tokens, tokens] with segments int64 [batch, tokens].
 */
export function causalMask(tokens: Dim, segments?: Tensor): Tensor {
  const index = indices(tokens)
  const before = greaterOrEqual(unsqueeze(index, [1]), unsqueeze(index, [0]))
  if (segments === undefined) return where(before, scalar(0), scalar(hidden))
  const together = equal(unsqueeze(segments, [1, 3]), unsqueeze(segments, [1, 2]))
  return where(and(together, before), scalar(0), scalar(hidden))
}

/** For a cache of `length` places: a query at position p sees places 0 to p.  positions int64 [batch, queries] -> [batch, 1, queries, length]. */
export function cacheMask(positions: Tensor, length: Dim): Tensor {
  return where(greaterOrEqual(unsqueeze(positions, [1, 3]), unsqueeze(indices(length), [0, 1, 2])), scalar(0), scalar(hidden))
}
