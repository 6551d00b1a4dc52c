/** Byte-level scanning of JSON: where a value ends, without parsing it. */
import { isUtf8 } from 'node:buffer'

export const newline = 0x0a
export const quote = 0x22
const backslash = 0x5c
export const comma = 0x2c
export const bracketOpen = 0x5b
export const bracketClose = 0x5d
export const braceOpen = 0x7b
export const braceClose = 0x7d

/** What is known about a value while its bytes go by. `pairs` counts the colons outside strings: the keys that the parsed value must have. */
export interface Scan {
  depth: number
  deepest: number
  pairs: number
  newlines: number
  inString: boolean
  escaped: boolean
}

export const freshScan = (): Scan => ({ depth: 0, deepest: 0, pairs: 0, newlines: 0, inString: false, escaped: false })

/** Index after the value's last byte, or -1 if the value goes on after `to`. Brackets are counted, not matched: `JSON.parse` does that. */
export function scanNested(bytes: Uint8Array, from: number, to: number, scan: Scan): number {
  let { depth, deepest, pairs, newlines, inString, escaped } = scan
  let end = -1
  let i = from
  while (i < to) {
    if (inString) {
      if (escaped) {
        escaped = false
        i++
      }
      while (i < to) {
        const byte = bytes[i++]
        if (byte === undefined) break
        if (byte > quote && byte !== backslash) continue
        if (byte === quote) {
          inString = false
          break
        }
        if (byte === backslash) {
          if (i === to) escaped = true
          else i++
        } else if (byte === newline) newlines++
      }
      if (!inString && depth === 0) {
        end = i
        break
      }
      continue
    }
    const byte = bytes[i++]
    if (byte === quote) inString = true
    else if (byte === 0x3a) pairs++
    else if (byte === newline) newlines++
    else if (byte === braceOpen || byte === bracketOpen) {
      if (++depth > deepest) deepest = depth
    } else if ((byte === braceClose || byte === bracketClose) && --depth === 0) {
      end = i
      break
    }
  }
  scan.depth = depth
  scan.deepest = deepest
  scan.pairs = pairs
  scan.newlines = newlines
  scan.inString = inString
  scan.escaped = escaped
  return end
}

export const isSpace = (byte: number): boolean => byte === 0x20 || byte === newline || byte === 0x0d || byte === 0x09

/** A number or a word ends at a separator. */
export function scanScalar(bytes: Uint8Array, from: number, to: number): number {
  for (let i = from; i < to; i++) {
    const byte = bytes[i]
    if (byte === undefined || byte === comma || byte === bracketClose || byte === braceClose || isSpace(byte)) return i
  }
  return -1
}

/** Keys in the parsed value, or -1 if it holds something that a strict reader refuses. */
export function countPairs(value: unknown, escapes: boolean): number {
  if (typeof value === 'string') return escapes && /\p{Surrogate}/u.test(value) ? -1 : 0
  if (typeof value === 'number') return Number.isFinite(value) ? 0 : -1
  if (typeof value !== 'object' || value === null) return 0
  let pairs = 0
  if (Array.isArray(value)) {
    for (const item of value) {
      const inside = countPairs(item, escapes)
      if (inside < 0) return -1
      pairs += inside
    }
    return pairs
  }
  for (const [key, item] of Object.entries(value)) {
    const inside = countPairs(item, escapes)
    if (inside < 0 || (escapes && /\p{Surrogate}/u.test(key))) return -1
    pairs += inside + 1
  }
  return pairs
}

/** For messages. */
export const shownByte = (byte: number): string =>
  byte > 0x20 && byte < 0x7f ? String.fromCharCode(byte) : `byte 0x${byte.toString(16).padStart(2, '0')}`

export function countNewlines(bytes: Uint8Array): number {
  let count = 0
  for (const byte of bytes) if (byte === newline) count++
  return count
}

/** Index of the first byte that no well-formed UTF-8 text has there (Unicode 15, table 3-7). */
export function invalidUtf8(bytes: Uint8Array): number {
  let i = 0
  while (i < bytes.length) {
    const lead = bytes[i] ?? 0
    const length = lead < 0x80 ? 1 : lead >= 0xc2 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3 : lead >= 0xf0 && lead < 0xf5 ? 4 : 0
    if (length === 0 || !isUtf8(bytes.subarray(i, i + length)) || i + length > bytes.length) return i
    i += length
  }
  return i
}
