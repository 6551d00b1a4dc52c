import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { StreamDecoder } from '../../text/stream-decoder.ts'
import { AnswerText } from './answer-text.ts'

/** A tokenizer of bytes: characters come in pieces. */
const bytesDecoder = (): StreamDecoder => new StreamDecoder((ids) => new TextDecoder().decode(Uint8Array.from(ids)))

function pieces(text: string, stopStrings: readonly string[]): { readonly given: readonly string[]; readonly stopped: boolean } {
  const answer = new AnswerText(bytesDecoder(), stopStrings)
  const given: string[] = []
  for (const byte of new TextEncoder().encode(text)) {
    const { text: piece, stopped } = answer.push(byte)
    given.push(piece)
    if (stopped) return { given, stopped }
  }
  const { text: piece, stopped } = answer.end()
  return { given: [...given, piece], stopped }
}

describe('text as it comes', () => {
  const text = fc.string({ unit: fc.constantFrom('a', 'b', 'c', 'é', '漢', '👍🏽', '\n'), maxLength: 20 })
  const stops = fc.array(fc.string({ unit: fc.constantFrom('a', 'b', 'c', 'é', '漢'), minLength: 1, maxLength: 3 }), { maxLength: 3 })

  test('ends before the first stop string, wherever tokens were cut, and never holds half a character', () => {
    fc.assert(
      fc.property(text, stops, (whole, stopStrings) => {
        const { given, stopped } = pieces(whole, stopStrings)
        const ends = stopStrings.map((stop) => whole.indexOf(stop)).filter((at) => at >= 0)
        // Of several stop strings the one that is whole first decides; none stands before what was given out.
        const joined = given.join('')
        expect(stopped).toBe(ends.length > 0)
        if (ends.length === 0) expect(joined).toBe(whole)
        else {
          expect(whole.startsWith(joined)).toBe(true)
          expect(stopStrings.some((stop) => whole.startsWith(stop, joined.length))).toBe(true)
          expect(stopStrings.some((stop) => joined.includes(stop))).toBe(false)
        }
        expect(given.some((piece) => piece.includes('\ufffd') || /[\ud800-\udbff]$|^[\udc00-\udfff]/.test(piece))).toBe(false)
      }),
      { seed: 6, numRuns: 500 },
    )
  })

  test('comes at once where it cannot become a stop string', () => {
    expect(pieces('one two', ['two!', 'x']).given).toEqual(['o', 'n', 'e', ' ', '', '', '', 'two'])
    expect(pieces('one two', []).given.join('|')).toBe('o|n|e| |t|w|o|')
  })
})
