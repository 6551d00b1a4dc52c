/** Text out of ids that arrive one by one. */

const replacement = '\ufffd'
/** No character needs more tokens than this; what still has no end is not UTF-8. */
const longestWait = 64

/** Gives text as soon as no later id can change it. Joined, the pieces are what decoding all ids at once gives. */
export class StreamDecoder {
  readonly #decode: (ids: readonly number[]) => string
  /** Ids since the last but one character boundary: spaces between words depend on the token before. */
  #window: number[] = []
  #boundary = 0
  /** How much of the window's text has been given out. */
  #given = 0

  constructor(decode: (ids: readonly number[]) => string) {
    this.#decode = decode
  }

  /** @returns the text that has become certain: never a part of a character, often nothing */
  push(id: number): string {
    this.#window.push(id)
    const text = this.#decode(this.#window)
    const open = text.endsWith(replacement) && this.#window.length - this.#boundary < longestWait
    const certain = open ? text.length - 1 : text.length
    const piece = text.slice(this.#given, certain)
    this.#given = Math.max(this.#given, certain)
    if (open) return piece
    if (piece !== '') {
      this.#window = this.#window.slice(this.#boundary)
      this.#boundary = this.#window.length
      this.#given = this.#decode(this.#window).length
    } else if (this.#boundary > 0 && this.#window.length === this.#boundary + 1) {
      // Says nothing (a special token left out): it must not become what stands before the next word.
      this.#window.pop()
    }
    return piece
  }

  /** @returns what was held back: U+FFFD for a character that never became whole */
  end(): string {
    const piece = this.#decode(this.#window).slice(this.#given)
    this.#window = []
    this.#boundary = 0
    this.#given = 0
    return piece
  }
}
