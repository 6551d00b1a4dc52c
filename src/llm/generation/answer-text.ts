/** The text of an answer as it comes, and where it ends. */
import type { GenerationEvent } from './generate-tokens.ts'

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

/** Gives the events of a batch of answers their text, and ends the answers that a stop string ends. */
export class AnswerTexts {
  readonly #texts: readonly (AnswerText | undefined)[]
  readonly #stopped = new Set<number>()

  /** @param decoderOf undefined where there is no tokenizer: events have no text, and there are no stop strings */
  constructor(rows: number, decoderOf: () => TextDecoderOfIds | undefined, stopStrings?: readonly string[]) {
    this.#texts = Array.from({ length: rows }, () => {
      const decoder = decoderOf()
      return decoder === undefined ? undefined : new AnswerText(decoder, stopStrings)
    })
  }

  /** What an event without text becomes: nothing for an answer that has ended, two events where a token ends it. */
  of(event: GenerationEvent): readonly GenerationEvent[] {
    const { row } = event
    if (this.#stopped.has(row)) return []
    const text = this.#texts[row]
    if (text === undefined) return [event]
    if (event.type === 'end') {
      const { text: rest, stopped } = text.end()
      return [{ ...event, reason: stopped ? 'stop' : event.reason, text: rest }]
    }
    const { text: said, stopped } = text.push(event.id)
    if (!stopped) return [{ ...event, text: said }]
    this.#stopped.add(row)
    return [
      { ...event, text: said },
      { type: 'end', row, reason: 'stop', text: '' },
    ]
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
