/** Biases of attention scores by the distance of two tokens, in buckets that widen with it.   Raffel et al. 2020, section 2.1. */
import { add } from '../graph/operators/add.ts'
import { clip } from '../graph/operators/clip.ts'
import { gather } from '../graph/operators/gather.ts'
import { sub } from '../graph/operators/sub.ts'
import { transpose } from '../graph/operators/transpose.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import { integers, type Tensor } from '../graph/tensor.ts'

export interface RelativeBuckets {
  readonly buckets: number
  /** From this distance on all are one bucket. */
  readonly distance: number
  /** `past`: keys come before their query. `both`: half of the buckets are for keys after it. */
  readonly direction: 'past' | 'both'
}

/**
 * @param table float32 [buckets, heads].
 * @param queries int64 [1 or batch, queries], positions; `keys` int64 [1 or batch, keys].
 * @returns [1 or batch, heads, queries, keys].
 */
export function relativeBias(table: Tensor, queries: Tensor, keys: Tensor, buckets: RelativeBuckets): Tensor {
  const { distance } = buckets
  const list = Array.from({ length: 2 * distance + 1 }, (_, index) => relativeBucket(index - distance, buckets))
  const apart = clip(sub(unsqueeze(keys, [1]), unsqueeze(queries, [2])), { min: -distance, max: distance })
  return transpose(gather(table, gather(integers(list), add(apart, distance))), [0, 3, 1, 2])
}

/** The bucket of a key that stands `apart` places after its query. Half of a direction's buckets are single distances, the others grow as their logarithm. */
export function relativeBucket(apart: number, { buckets, distance, direction }: RelativeBuckets): number {
  const count = direction === 'both' ? Math.floor(buckets / 2) : buckets
  const offset = direction === 'both' && apart > 0 ? count : 0
  const far = direction === 'both' ? Math.abs(apart) : Math.max(-apart, 0)
  const exact = Math.floor(count / 2)
  if (far < exact) return offset + far
  // float32 as in the reference: a distance on the border of two buckets must fall to the same side.
  const { fround } = Math
  const growth = fround(fround(fround(Math.log(fround(far / exact))) / fround(Math.log(distance / exact))) * fround(count - exact))
  return offset + Math.min(exact + Math.trunc(growth), count - 1)
}
