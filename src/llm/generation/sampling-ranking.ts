/** The largest of many scores, without sorting them all where a few are asked for. */

/** Index of the largest; the first of equals. */
export function argMax(values: Float32Array): number {
  let best = 0
  for (let index = 1; index < values.length; index++) if ((values[index] ?? 0) > (values[best] ?? 0)) best = index
  return best
}

/** The same, or -1 where a value is NaN: one pass over what is looked at for every token. */
export function argMaxOfNumbers(values: Float32Array): number {
  let best = 0
  let largest = values[0] ?? 0
  for (let index = 0; index < values.length; index++) {
    const value = values[index] ?? 0
    if (value <= largest) continue
    if (!(value > largest)) return -1
    largest = value
    best = index
  }
  return best
}

/** Ids fit into what a double has beside 32 bits of score. */
const largestIds = 2 ** 21

/**
 * Ids of scores above a bound by falling score, the lower id first among equals; the first `count` of them (0: all).
 *
 * @example
 * leading(Float32Array.of(1, 3, 2, 3), Number.NEGATIVE_INFINITY, 3) // 1, 3, 2
 */
export function leading(scores: Float32Array, bound: number, count: number): Uint32Array {
  if (scores.length > largestIds) throw new Error(`internal: ${scores.length} scores`)
  const limit = count > 0 ? Math.min(count, scores.length) : scores.length
  const floor = limit < scores.length ? Math.max(bound, threshold(scores, limit)) : bound
  // Scores as integers in the same order, negated, and the id below them: one number a candidate, which sorts without a comparison function.
  const bits = new Int32Array(scores.buffer, scores.byteOffset, scores.length)
  const keys = new Float64Array(scores.length)
  let kept = 0
  for (let id = 0; id < scores.length; id++) {
    const score = scores[id] ?? 0
    if (!(score >= floor) || !(score > bound)) continue
    const raw = score === 0 ? 0 : (bits[id] ?? 0)
    keys[kept++] = (raw < 0 ? raw ^ 0x7fffffff : raw) * -largestIds + id
  }
  const sorted = keys.subarray(0, kept).sort().subarray(0, limit)
  return Uint32Array.from(sorted, (key) => ((key % largestIds) + largestIds) % largestIds)
}

/** A number that at least `count` scores reach, and few more: the smallest of a heap of the `count` largest. */
function threshold(scores: Float32Array, count: number): number {
  const heap = new Float32Array(count).fill(Number.NEGATIVE_INFINITY)
  for (let id = 0; id < scores.length; id++) {
    const score = scores[id] ?? 0
    if (!(score > (heap[0] ?? 0))) continue
    let at = 0
    for (;;) {
      const left = 2 * at + 1
      if (left >= count) break
      const child = left + 1 < count && (heap[left + 1] ?? 0) < (heap[left] ?? 0) ? left + 1 : left
      if ((heap[child] ?? 0) >= score) break
      heap[at] = heap[child] ?? 0
      at = child
    }
    heap[at] = score
  }
  return heap[0] ?? 0
}

/** log(sum(exp(scores))). */
export function logSumExp(scores: Float32Array): number {
  const largest = scores[argMax(scores)] ?? 0
  let total = 0
  for (let id = 0; id < scores.length; id++) total += Math.exp((scores[id] ?? 0) - largest)
  return largest + Math.log(total)
}
