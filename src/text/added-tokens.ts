/** Finding added tokens in text: the first thing a tokenizer does, before anything is normalized. */
import type { AddedToken } from './tokenizer-file.ts'

interface Node {
  readonly next: Map<number, Node>
  token?: AddedToken
}

/** A stretch of text: an added token, or what lies between two of them. `start` to `end` includes the white space that the token swallows, `core` does not. */
export interface Section {
  readonly start: number
  readonly end: number
  readonly token?: AddedToken
  readonly coreStart: number
  readonly coreEnd: number
}

const whiteSpace = /\p{White_Space}/u
const wordCharacter = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]/u

export class AddedTokenFinder {
  readonly #root: Node = { next: new Map() }
  readonly #empty: boolean

  /** @param tokens with the text by which each is found */
  constructor(tokens: Iterable<readonly [string, AddedToken]>) {
    let empty = true
    for (const [text, token] of tokens) {
      if (text === '') continue
      empty = false
      let node = this.#root
      for (let i = 0; i < text.length; i++) {
        const unit = text.charCodeAt(i)
        let child = node.next.get(unit)
        if (child === undefined) {
          child = { next: new Map() }
          node.next.set(unit, child)
        }
        node = child
      }
      node.token = token
    }
    this.#empty = empty
  }

  /**
   * Cuts the text at its added tokens: from the left, the longest first. A token for which `permitted` says no is no token at that place, and its
   * characters stay text.
   */
  split(text: string, permitted: (start: number, end: number, token: AddedToken) => boolean): readonly Section[] {
    const sections: Section[] = []
    let done = 0
    for (let i = 0; i < text.length && !this.#empty; ) {
      const found = this.#longest(text, i, permitted)
      if (found === undefined) {
        i++
        continue
      }
      const coreEnd = i + found.length
      const start = found.token.lstrip ? spaceBefore(text, i, done) : Math.max(i, done)
      const end = found.token.rstrip ? spaceAfter(text, coreEnd) : coreEnd
      if (start > done) sections.push({ start: done, end: start, coreStart: done, coreEnd: start })
      sections.push({ start, end, token: found.token, coreStart: i, coreEnd })
      done = end
      i = coreEnd
    }
    if (done < text.length) sections.push({ start: done, end: text.length, coreStart: done, coreEnd: text.length })
    return sections
  }

  #longest(text: string, start: number, permitted: (start: number, end: number, token: AddedToken) => boolean) {
    let node: Node | undefined = this.#root
    let best: { readonly token: AddedToken; readonly length: number } | undefined
    for (let i = start; i < text.length; i++) {
      node = node.next.get(text.charCodeAt(i))
      if (node === undefined) break
      const { token } = node
      if (token !== undefined && (!token.singleWord || standsAlone(text, start, i + 1)) && permitted(start, i + 1, token))
        best = { token, length: i + 1 - start }
    }
    return best
  }
}

function standsAlone(text: string, start: number, end: number): boolean {
  const before = Array.from(text.slice(Math.max(0, start - 2), start)).at(-1) ?? ''
  const [after = ''] = text.slice(end, end + 2)
  return !wordCharacter.test(before) && !wordCharacter.test(after)
}

function spaceBefore(text: string, end: number, from: number): number {
  let start = end
  while (start > from && whiteSpace.test(text[start - 1] ?? '')) start--
  return start
}

function spaceAfter(text: string, start: number): number {
  let end = start
  while (end < text.length && whiteSpace.test(text[end] ?? '')) end++
  return end
}
