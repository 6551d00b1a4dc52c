import { ModalignError } from '../errors.ts'

/**
 * Patterns for paths: `*` and `?` match within one name (not a leading dot), `**` as a whole name matches any number of folders, `{a,b}` offers alternatives.
 * Matching takes time linear in the length of a name for each `*`: no pattern can hang it.
 */
export interface Glob {
  /** The leading names without special characters: where to begin looking. */
  readonly base: string
  /** `path`: relative to `base`, with `/`. */
  matches(path: string): boolean
  /** Whether anything below this folder could match; `path` as for `matches`. */
  mayContain(path: string): boolean
}

const mostAlternatives = 1000

export function hasGlobCharacters(text: string): boolean {
  return /[*?{]/.test(text)
}

/**
 * @throws ModalignError `GLOB_MALFORMED`: an unclosed brace, or more than 1000 alternatives
 * @example
 * parseGlob('photos/**\/*.{jpg,png}').matches('cats/1.jpg') // true; the base is 'photos'
 */
export function parseGlob(pattern: string): Glob {
  const alternatives = expandBraces(pattern).map((text) => text.split('/'))
  const [first = []] = alternatives
  let common = 0
  // The last name is never part of the base: it is what is matched.
  while (
    alternatives.every((names) => common < names.length - 1 && names[common] === first[common] && !hasGlobCharacters(names[common] ?? ''))
  )
    common++
  const rests = alternatives.map((names) => names.slice(common))
  const base = first.slice(0, common).join('/')
  return {
    base: base === '' ? (pattern.startsWith('/') ? '/' : '.') : base,
    matches: (path) => rests.some((names) => matchNames(names, path.split('/'), 'whole')),
    mayContain: (path) => path === '' || rests.some((names) => matchNames(names, path.split('/'), 'prefix')),
  }
}

/** `prefix`: some path below could match. */
function matchNames(pattern: readonly string[], path: readonly string[], mode: 'whole' | 'prefix'): boolean {
  // Reachable pattern positions after each name: linear, where backtracking over several ** would not be.
  let positions = closure(new Set([0]), pattern)
  for (const name of path) {
    const next = new Set<number>()
    for (const position of positions) {
      const part = pattern[position]
      if (part === undefined) continue
      if (part === '**') {
        if (!name.startsWith('.')) next.add(position)
      } else if (matchName(part, name)) next.add(position + 1)
    }
    positions = closure(next, pattern)
  }
  return mode === 'whole' ? positions.has(pattern.length) : [...positions].some((position) => position < pattern.length)
}

/** `**` may also match no folder at all. */
function closure(positions: Set<number>, pattern: readonly string[]): Set<number> {
  for (const position of positions) if (pattern[position] === '**') positions.add(position + 1)
  return positions
}

function matchName(pattern: string, name: string): boolean {
  if (name.startsWith('.') && !pattern.startsWith('.')) return false
  const wanted = [...pattern]
  const given = [...name]
  let p = 0
  let star = -1
  let resume = 0
  for (let n = 0; n < given.length; ) {
    if (wanted[p] === '*') {
      star = p++
      resume = n
    } else if (p < wanted.length && (wanted[p] === '?' || wanted[p] === given[n])) {
      p++
      n++
    } else if (star >= 0) {
      // Only the last star can need another length.
      p = star + 1
      n = ++resume
    } else return false
  }
  while (wanted[p] === '*') p++
  return p === wanted.length
}

function expandBraces(pattern: string): readonly string[] {
  const open = pattern.indexOf('{')
  if (open < 0) return [pattern]
  let depth = 0
  const cuts: number[] = [open]
  for (let i = open; i < pattern.length; i++) {
    if (pattern[i] === '{') depth++
    if (pattern[i] === ',' && depth === 1) cuts.push(i)
    if (pattern[i] !== '}' || --depth > 0) continue
    cuts.push(i)
    const options = cuts.slice(1).map((end, k) => pattern.slice((cuts[k] ?? open) + 1, end))
    const expanded: string[] = []
    for (const option of options) {
      for (const text of expandBraces(pattern.slice(0, open) + option + pattern.slice(i + 1))) {
        expanded.push(text)
        if (expanded.length > mostAlternatives)
          throw new ModalignError({ code: 'GLOB_MALFORMED', got: pattern, expected: `at most ${mostAlternatives} alternatives` })
      }
    }
    return expanded
  }
  throw new ModalignError({ code: 'GLOB_MALFORMED', got: pattern, expected: 'a closing }' })
}
