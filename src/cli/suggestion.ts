/**
 * The name that was probably meant: the nearest by insertions, deletions, replacements and swaps of neighbours (Damerau 1964), if it is near enough. Case and the
 * difference between `learning_rate`, `learning-rate` and `learningRate` do not count.
 *
 * @example
 * suggestion('lerning_rate', ['learningRate', 'epochs']) // 'learningRate'
 */
export function suggestion(given: string, known: Iterable<string>): string | undefined {
  const wanted = folded(given)
  let best: { readonly name: string; readonly distance: number } | undefined
  for (const name of known) {
    const distance = editDistance(wanted, folded(name))
    const near = distance <= Math.max(1, Math.floor(Math.max(wanted.length, name.length) / 3))
    if (near && (best === undefined || distance < best.distance)) best = { name, distance }
  }
  return best?.name
}

/** The same as a hint. */
export function didYouMean(given: string, known: Iterable<string>): string | undefined {
  const name = suggestion(given, known)
  return name === undefined ? undefined : `did you mean ${name}?`
}

const folded = (name: string): string => name.slice(0, 64).toLowerCase().replace(/[-_]/g, '')

function editDistance(a: string, b: string): number {
  let before: number[] = []
  let above = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1
      let distance = Math.min((above[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (above[j - 1] ?? 0) + cost)
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) distance = Math.min(distance, (before[j - 2] ?? 0) + 1)
      row.push(distance)
    }
    before = above
    above = row
  }
  return above[b.length] ?? 0
}
