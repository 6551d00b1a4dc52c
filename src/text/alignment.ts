/** Which characters each token stands for. `@huggingface/tokenizers` does not say, so it is worked out from what the pipeline can do to text. */
import { ModalignError } from '../errors.ts'

/** From character `start` to `end` (not included). Equal for a token that stands for nothing, such as a word mark that was put in. */
export interface Extent {
  readonly start: number
  readonly end: number
}

export interface Alphabet {
  /** Unknown characters next to each other become one token. */
  readonly fuseUnknown: boolean
  readonly isKnown: (token: string) => boolean
}

/** byte -> its printable stand-in in GPT-2's alphabet. */
export const byteStandIns: readonly string[] = (() => {
  const printable = (byte: number) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
  let next = 0x100
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++))
})()

const encoder = new TextEncoder()

/**
 * For every UTF-16 unit of the joined pre-tokens, the place in `text` that it came from, and one more for the end. Pre-tokenizers spell text in bytes, replace
 * spaces by a word mark, put marks in, and leave white space out; anything else is refused.
 *
 * @throws ModalignError `TOKENIZER_UNSUPPORTED` where the pre-tokenizer rewrites text in another way
 */
export function pretokenOrigins(text: string, pretokens: readonly string[], byteLevel: boolean): Uint32Array {
  const joined = pretokens.join('')
  const { units, places } = byteLevel ? byteUnits(text) : characterUnits(text)
  const origins = new Uint32Array(joined.length + 1)
  let unit = 0
  for (let i = 0; i < joined.length; i++) {
    const char = joined[i] ?? ''
    if (!same(units[unit], char, byteLevel)) {
      if (char === '▁' || char === byteStandIns[0x20]) {
        origins[i] = places[unit] ?? text.length
        continue
      }
      while (unit < units.length && !same(units[unit], char, byteLevel)) unit++
      if (unit === units.length) {
        throw new ModalignError({
          code: 'TOKENIZER_UNSUPPORTED',
          field: '/pre_tokenizer',
          got: `pre-tokens ${JSON.stringify(joined.slice(0, 60))}`,
          expected: `a spelling of ${JSON.stringify(text.slice(0, 60))}`,
        })
      }
    }
    origins[i] = places[unit] ?? text.length
    unit++
  }
  origins[joined.length] = text.length
  return origins
}

function same(unit: string | undefined, char: string, byteLevel: boolean): boolean {
  return unit === char || (!byteLevel && unit === ' ' && char === '▁')
}

function byteUnits(text: string): { readonly units: readonly string[]; readonly places: readonly number[] } {
  const units: string[] = []
  const places: number[] = []
  let place = 0
  for (const char of text) {
    for (const byte of encoder.encode(char)) {
      units.push(byteStandIns[byte] ?? '')
      places.push(place)
    }
    place += char.length
  }
  return { units, places }
}

function characterUnits(text: string): { readonly units: readonly string[]; readonly places: readonly number[] } {
  const units = text.split('')
  return { units, places: units.map((_, i) => i) }
}

/** Where in one pre-token each of its tokens lies. */
export function tokenExtents(pretoken: string, tokens: readonly string[], { fuseUnknown, isKnown }: Alphabet): readonly Extent[] {
  const extents: Extent[] = []
  let at = 0
  let bytesLeft = 0
  for (const token of tokens) {
    const char = String.fromCodePoint(pretoken.codePointAt(at) ?? 0)
    if (bytesLeft === 0 && pretoken.startsWith(token, at)) {
      extents.push({ start: at, end: at + token.length })
      at += token.length
    } else if (/^<0x[0-9A-F]{2}>$/.test(token)) {
      if (bytesLeft === 0) bytesLeft = encoder.encode(char).length
      bytesLeft--
      extents.push({ start: at, end: Math.min(at + char.length, pretoken.length) })
      if (bytesLeft === 0) at += char.length
    } else {
      const start = at
      do at += String.fromCodePoint(pretoken.codePointAt(at) ?? 0).length
      while (fuseUnknown && at < pretoken.length && !isKnown(String.fromCodePoint(pretoken.codePointAt(at) ?? 0)))
      extents.push({ start, end: Math.min(at, pretoken.length) })
    }
  }
  return extents
}
