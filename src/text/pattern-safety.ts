/** Whether a regular expression from a stranger's file can hang: JavaScript's engine backtracks and cannot be interrupted. */

interface Group {
  /** Holds an alternation or something repeated without bound. */
  risky: boolean
}

/**
 * Finds `(a+)+`, `(a|a)*` and their like: a group that repeats without bound around something that can match in several ways. Without such groups
 * matching takes at most polynomial time. No pre-tokenizer of a published language model has one.
 *
 * @returns the position of the offending quantifier, or undefined
 * @example
 * nestedQuantifier('(a+)+$') // 4
 * nestedQuantifier(" ?\\p{L}+|\\s+(?!\\S)") // undefined
 */
export function nestedQuantifier(pattern: string): number | undefined {
  const groups: Group[] = [{ risky: false }]
  let closed: Group | undefined
  for (let i = 0; i < pattern.length; i++) {
    const char = pattern[i]
    const before = closed
    closed = undefined
    const group = groups.at(-1)
    if (char === '\\') i++
    else if (char === '[') i = endOfClass(pattern, i)
    else if (char === '(') {
      groups.push({ risky: false })
      if (pattern[i + 1] === '?') i++
    } else if (char === ')') {
      closed = groups.length > 1 ? groups.pop() : undefined
      const outer = groups.at(-1)
      if (outer !== undefined && closed?.risky === true) outer.risky = true
    } else if (char === '|') {
      if (group !== undefined) group.risky = true
    } else if (char === '*' || char === '+' || (char === '{' && /^\{\d*,\}/.test(pattern.slice(i, i + 16)))) {
      if (before?.risky === true) return i
      if (group !== undefined) group.risky = true
    }
  }
  return undefined
}

/** The index of the `]` that ends the class opened at `start`; classes may nest. */
function endOfClass(pattern: string, start: number): number {
  let depth = 0
  for (let i = start; i < pattern.length; i++) {
    if (pattern[i] === '\\') i++
    else if (pattern[i] === '[') depth++
    else if (pattern[i] === ']' && --depth === 0) return i
  }
  return pattern.length
}
