/** The text of an answer as it comes, and where it ends. */

/** Gives text out once it is certain: neither half a character nor the beginning of a stop string. */
export class AnswerText {
  readonly #decoder: TextDecoderOfIds
  readonly #stops: readonly string[]
  #held = ''

  constructor(decoder: TextDecoderOfIds, stopStrings: readonly string[] = []) {
    this.#decoder = decoder
    this.#stops = stopStrings
  }

  /** @returns the text that has become certain, and whether a stop string has come: then the text ended before it. */
  push(id: number): { readonly text: string; readonly stopped: boolean } {
    return this.#take(this.#decoder.push(id), false)
  }

  /** @returns what was held back. */
  end(): { readonly text: string; readonly stopped: boolean } {
    return this.#take(this.#decoder.end(), true)
  }

  #take(piece: string, last: boolean): { readonly text: string; readonly stopped: boolean } {
    const text = this.#held + piece
    const [first] = this.#stops
      .map((stop) => text.indexOf(stop))
      .filter((at) => at >= 0)
      .sort((a, b) => a - b)
    if (first !== undefined) {
      this.#held = ''
      return { text: text.slice(0, first), stopped: true }
    }
    const open = last ? 0 : longestOpening(text, this.#stops)
    this.#held = text.slice(text.length - open)
    return { text: text.slice(0, text.length - open), stopped: false }
  }
}

/** As `Tokenizer.streamDecoder` gives it. */
export interface TextDecoderOfIds {
  push(id: number): string
  end(): string
}

/** Length of the longest end of the text with which one of the stop strings begins. */
function longestOpening(text: string, stops: readonly string[]): number {
  let longest = 0
  for (const stop of stops)
    for (let length = Math.min(stop.length - 1, text.length); length > longest; length--)
      if (text.endsWith(stop.slice(0, length))) longest = length
  return longest
}
