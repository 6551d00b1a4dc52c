/**
 * A strict reading of one JSON text (RFC 8259) that says where and how it is wrong. It is the slow twin of `JSON.parse`: the stream calls it only after
 * `JSON.parse` or a cheap count has shown that something is wrong, so it may take its time to find the exact place.
 */

export interface JsonFault {
  /** `JSON_SYNTAX`, `JSON_NAN`, `JSON_DUPLICATE_KEY`, ... */
  readonly code: string
  /** UTF-16 index into the text. */
  readonly index: number
  /** JSON Pointer to the value that holds the fault; empty for the text as a whole. */
  readonly pointer: string
  readonly got: string
  readonly expected?: string
  readonly hint?: string
  /** The text stopped in the middle of a value. */
  readonly ended: boolean
  /** Quotes or brackets do not match, so where the value ends is a guess, and so is everything that follows it. */
  readonly lost: boolean
}

export interface JsonFaultOptions {
  /** How many objects and arrays may lie inside one another; default 64. */
  readonly maxDepth?: number
  /** Called for every number with the keys that lead to it and its digits as written. */
  readonly onNumber?: (path: readonly (string | number)[], source: string) => void
}

/** `['a/b', 0]` -> `/a~1b/0` (RFC 6901). */
export function jsonPointer(path: readonly (string | number)[]): string {
  return path.map((key) => `/${String(key).replaceAll('~', '~0').replaceAll('/', '~1')}`).join('')
}

/**
 * The first fault of a JSON text, or undefined if a strict reader accepts it. Beyond RFC 8259 these are faults: a key that occurs twice in one object, a lone
 * surrogate, a number too large for a double, and nesting deeper than `maxDepth`.
 *
 * @example
 * findJsonFault('{"loss": NaN}')?.code // 'JSON_NAN'
 */
export function findJsonFault(text: string, options: JsonFaultOptions = {}): JsonFault | undefined {
  return new Inspection(text, options).run()
}

const numberPattern = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y
const wordPattern = /[+\-.\w]+/y
const loneSurrogate = /\p{Surrogate}/u
const simpleEscapes: Readonly<Record<string, string>> = { '"': '"', '\\': '\\', '/': '/', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' }
const notNumbers = new Set(['NaN', '-NaN', '+NaN', 'Infinity', '-Infinity', '+Infinity', 'nan', 'inf', '-inf'])
const otherLanguages = new Set(['True', 'False', 'None', 'undefined', 'nil', 'TRUE', 'FALSE', 'NULL', 'Null'])

type FirstFault = Omit<JsonFault, 'lost'>

class Inspection {
  private readonly text: string
  private readonly maxDepth: number
  private readonly onNumber: JsonFaultOptions['onNumber']
  private index = 0
  private readonly path: (string | number)[] = []
  private fault: FirstFault | undefined
  private lost = false

  constructor(text: string, options: JsonFaultOptions) {
    this.text = text
    this.maxDepth = options.maxDepth ?? 64
    this.onNumber = options.onNumber
  }

  run(): JsonFault | undefined {
    if (this.value(0)) {
      this.skipSpace()
      if (this.index < this.text.length) this.afterRoot()
    }
    return this.fault && { ...this.fault, lost: this.lost }
  }

  private afterRoot(): void {
    if (this.text[this.index] === ',') {
      this.note('JSON_TRAILING_COMMA', 'a comma after the value', 'nothing', 'lines of JSON stand alone, without commas between them')
      this.index++
      this.skipSpace()
      if (this.index === this.text.length) return
    }
    const hint = this.text.includes('\r') ? 'lines end with a lone carriage return: convert them to newlines' : undefined
    this.stop(`${this.here()} after the value`, 'nothing', hint)
  }

  /** Every method below returns false when the reading cannot go on. */
  private value(depth: number): boolean {
    this.skipSpace()
    const character = this.text[this.index]
    if (character === undefined) return this.stop('the end', 'a value')
    if (character === '{') return depth === this.maxDepth ? this.tooDeep() : this.object(depth + 1)
    if (character === '[') return depth === this.maxDepth ? this.tooDeep() : this.array(depth + 1)
    if (character === '"') return this.string() !== undefined
    if (character === ',' || character === '}' || character === ']') {
      this.note('JSON_SYNTAX', this.here(), 'a value')
      return true
    }
    return this.word()
  }

  private tooDeep(): boolean {
    this.note('JSON_DEPTH', `more than ${this.maxDepth} objects and arrays inside one another`, `at most ${this.maxDepth}`)
    return false
  }

  private object(depth: number): boolean {
    const keys = new Set<string>()
    this.index++
    this.skipSpace()
    if (this.take('}')) return true
    for (;;) {
      this.skipSpace()
      const keyIndex = this.index
      if (this.text[keyIndex] === '}') {
        this.note('JSON_TRAILING_COMMA', 'a comma before }', 'no comma after the last member')
        this.index++
        return true
      }
      if (this.text[keyIndex] !== '"') return this.stop(this.here(), 'a key in double quotes')
      const key = this.string()
      if (key === undefined) return false
      this.path.push(key)
      if (keys.has(key))
        this.note('JSON_DUPLICATE_KEY', 'a key that this object already has', 'every key once', 'remove one of the two', keyIndex)
      keys.add(key)
      this.skipSpace()
      if (!this.take(':')) return this.stop(this.here(), ': after the key')
      if (!this.value(depth)) return false
      this.path.pop()
      this.skipSpace()
      if (this.take('}')) return true
      if (!this.take(',')) return this.stop(this.here(), ', or }')
    }
  }

  private array(depth: number): boolean {
    this.index++
    this.skipSpace()
    if (this.take(']')) return true
    for (let item = 0; ; item++) {
      this.skipSpace()
      if (item > 0 && this.text[this.index] === ']') {
        this.note('JSON_TRAILING_COMMA', 'a comma before ]', 'no comma after the last item')
        this.index++
        return true
      }
      this.path.push(item)
      if (!this.value(depth)) return false
      this.path.pop()
      this.skipSpace()
      if (this.take(']')) return true
      if (!this.take(',')) return this.stop(this.here(), ', or ]')
    }
  }

  /** The string that starts here, its escapes resolved; undefined if it never ends. */
  private string(): string | undefined {
    const { text } = this
    const opening = this.index++
    let decoded = ''
    let copied = this.index
    for (;;) {
      const code = text.charCodeAt(this.index)
      if (Number.isNaN(code)) {
        this.stop('the end inside a string', 'a closing quote')
        return undefined
      }
      if (code === 0x22) break
      if (code === 0x5c) {
        decoded += text.slice(copied, this.index) + this.escape()
        copied = this.index
      } else {
        if (code < 0x20)
          this.note(
            'JSON_CONTROL_CHARACTER',
            `U+${code.toString(16).toUpperCase().padStart(4, '0')} inside a string`,
            'an escape such as \\n',
          )
        this.index++
      }
    }
    decoded += text.slice(copied, this.index)
    this.index++
    if (loneSurrogate.test(decoded)) {
      this.note(
        'JSON_SURROGATE',
        'half of a surrogate pair',
        'whole characters',
        'it belongs to no character: the text was cut inside an emoji',
        opening,
      )
    }
    return decoded
  }

  private escape(): string {
    const letter = this.text[this.index + 1] ?? ''
    const hex = this.text.slice(this.index + 2, this.index + 6)
    if (letter === 'u' && /^[0-9a-fA-F]{4}$/.test(hex)) {
      this.index += 6
      return String.fromCharCode(Number.parseInt(hex, 16))
    }
    const simple = Object.hasOwn(simpleEscapes, letter) ? simpleEscapes[letter] : undefined
    if (simple === undefined && letter !== '') {
      this.note(
        'JSON_ESCAPE',
        letter === 'u' ? `\\u${hex}` : `\\${letter}`,
        'one of \\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX',
        'a backslash itself is written \\\\',
      )
    }
    this.index += letter === '' ? 1 : 2
    return simple ?? ''
  }

  private word(): boolean {
    const start = this.index
    wordPattern.lastIndex = start
    const word = wordPattern.exec(this.text)?.[0]
    if (word === undefined) {
      const hints: Readonly<Record<string, string>> = {
        "'": 'JSON strings take double quotes',
        '/': 'JSON has no comments',
        '\ufeff': 'remove the byte order mark',
      }
      return this.stop(this.here(), 'a value', hints[this.text[start] ?? ''])
    }
    this.index += word.length
    if (word === 'true' || word === 'false' || word === 'null') return true
    numberPattern.lastIndex = start
    const number = numberPattern.exec(this.text)?.[0]
    if (number === word) {
      if (!Number.isFinite(Number(number))) this.note('JSON_NUMBER_OVERFLOW', number, 'a number below 1.8e308', undefined, start)
      this.onNumber?.(this.path, number)
      return true
    }
    if (notNumbers.has(word)) {
      const hint = "Python's json.dumps writes it unless allow_nan=False: write null or leave the key out"
      this.note('JSON_NAN', word, 'a finite number or null', hint, start)
      return true
    }
    if (otherLanguages.has(word)) {
      this.note('JSON_SYNTAX', word, 'true, false or null', "write the file with json.dumps, not with Python's str", start)
      return true
    }
    if (/^[+-]?\.?\d/.test(word)) {
      this.note('JSON_SYNTAX', word, 'a JSON number, such as -0.5 or 1e-3', undefined, start)
      return true
    }
    const cut = this.index === this.text.length && ['true', 'false', 'null'].some((literal) => literal.startsWith(word))
    if (cut) return this.stop('the end', 'a value')
    this.index = start
    return this.stop(word, 'a value')
  }

  private skipSpace(): void {
    for (;;) {
      const code = this.text.charCodeAt(this.index)
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return
      this.index++
    }
  }

  private take(character: string): boolean {
    if (this.text[this.index] !== character) return false
    this.index++
    return true
  }

  private here(): string {
    const code = this.text.codePointAt(this.index)
    return code === undefined ? 'the end' : String.fromCodePoint(code)
  }

  private note(code: string, got: string, expected?: string, hint?: string, index = this.index): void {
    this.fault ??= {
      code,
      index,
      pointer: jsonPointer(this.path),
      got,
      ended: false,
      ...(expected !== undefined && { expected }),
      ...(hint !== undefined && { hint }),
    }
  }

  private stop(got: string, expected: string, hint?: string): false {
    const first = this.fault === undefined
    this.note('JSON_SYNTAX', got, expected, hint)
    if (first && this.fault !== undefined && this.index >= this.text.length) this.fault = { ...this.fault, ended: true }
    this.lost = true
    return false
  }
}
