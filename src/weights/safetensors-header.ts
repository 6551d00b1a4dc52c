import { ModalignError } from '../errors.ts'
import { jsonPointer } from '../io/json-syntax.ts'
import { bytesPerElement, type DataType } from '../tensors.ts'

/**
 * The header of a safetensors file: eight bytes of length, then a JSON object `{"name": {"dtype", "shape", "data_offsets"}, "__metadata__": {...}}`.
 * Rules: https://github.com/huggingface/safetensors#format and `safetensors/src/tensor.rs`. Where that reader is lenient (a key twice, white space before the
 * first brace, tensors as arrays), this one follows the written format.
 */

export const safetensorsLimits = {
  /** As in the reference reader: decimal megabytes. */
  headerBytes: 100_000_000,
  tensors: 100_000,
  metadataEntries: 100_000,
  nameLength: 4096,
  rank: 64,
  depth: 8,
} as const

/** Where one tensor lies. `offset`: absolute, in bytes, in the file. Row-major, little-endian. */
export interface SafetensorsEntry {
  readonly dtype: DataType
  readonly shape: readonly number[]
  readonly offset: number
  readonly byteLength: number
}

export interface SafetensorsLayout {
  /** In the order of their bytes. */
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>
  readonly metadata: ReadonlyMap<string, string>
}

/** The format's names, in the order in which the reference writer sorts them (widest first). */
export const safetensorsDtypes: ReadonlyMap<string, DataType> = new Map([
  ['U64', 'uint64'],
  ['I64', 'int64'],
  ['F64', 'float64'],
  ['F32', 'float32'],
  ['U32', 'uint32'],
  ['I32', 'int32'],
  ['BF16', 'bfloat16'],
  ['F16', 'float16'],
  ['U16', 'uint16'],
  ['I16', 'int16'],
  ['I8', 'int8'],
  ['U8', 'uint8'],
  ['BOOL', 'bool'],
])

/**
 * Reads the JSON part of a header and checks that the tensors cover the data exactly: no hole, no overlap, no byte too many.
 *
 * @param json the bytes that follow the length
 * @param dataBytes how many bytes follow the header
 * @param file named in errors
 * @throws ModalignError `SAFETENSORS_*`
 */
export function parseSafetensorsHeader(json: Uint8Array, dataBytes: number, file?: string): SafetensorsLayout {
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json)
  } catch (cause) {
    throw new ModalignError({ code: 'SAFETENSORS_UTF8', file, got: 'a header that is no UTF-8', expected: 'UTF-8', cause })
  }
  return new HeaderReader(text, file).read(8 + json.length, dataBytes)
}

interface Declared {
  readonly name: string
  readonly dtype: DataType
  readonly shape: readonly number[]
  readonly begin: number
  readonly end: number
}

const space = 0x20
const quote = 0x22
const backslash = 0x5c
const simpleEscapes: ReadonlyMap<string, string> = new Map([
  ['"', '"'],
  ['\\', '\\'],
  ['/', '/'],
  ['b', '\b'],
  ['f', '\f'],
  ['n', '\n'],
  ['r', '\r'],
  ['t', '\t'],
])
const numberPattern = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y
const integerPattern = /^(?:0|[1-9]\d*)$/
const largestProduct = 2n ** 64n
export const loneSurrogate = /\p{Surrogate}/u

/** A tokenizer for this one shape of JSON: it stops at the first broken rule and never builds what a rule forbids. */
class HeaderReader {
  private readonly text: string
  private readonly file: string | undefined
  private index = 0

  constructor(text: string, file: string | undefined) {
    this.text = text
    this.file = file
  }

  read(dataStart: number, dataBytes: number): SafetensorsLayout {
    if (this.text[0] !== '{')
      throw this.error('SAFETENSORS_START', { got: this.text.slice(0, 16), expected: 'a header that begins with {' })
    const declared: Declared[] = []
    const names = new Set<string>()
    let metadata: ReadonlyMap<string, string> | undefined
    this.members((name) => {
      if (name === '__metadata__') {
        if (metadata !== undefined)
          throw this.error('SAFETENSORS_DUPLICATE', { field: '/__metadata__', got: 'the key twice', expected: 'each key once' })
        metadata = this.metadata()
        return
      }
      if (names.has(name))
        throw this.error('SAFETENSORS_DUPLICATE', { field: jsonPointer([name]), got: 'the tensor twice', expected: 'each name once' })
      names.add(name)
      if (names.size > safetensorsLimits.tensors)
        throw this.error('SAFETENSORS_LIMIT', { got: 'more', expected: `at most ${safetensorsLimits.tensors} tensors` })
      declared.push(this.tensor(name))
    })
    this.skipSpace()
    if (this.index < this.text.length) throw this.syntax('the end of the header (padding is spaces)')
    return { tensors: this.placed(declared, dataStart, dataBytes), metadata: metadata ?? new Map() }
  }

  /** Every tensor begins where the one before it ends. Sorted as the reference sorts: by begin, then by end. */
  private placed(declared: Declared[], dataStart: number, dataBytes: number): Map<string, SafetensorsEntry> {
    declared.sort((a, b) => a.begin - b.begin || a.end - b.end)
    const tensors = new Map<string, SafetensorsEntry>()
    let end = 0
    let previous: string | undefined
    for (const tensor of declared) {
      if (tensor.begin !== end) {
        const neighbour = previous === undefined ? 'the beginning of the data' : `the end of ${JSON.stringify(previous)}`
        const got = `${tensor.begin > end ? 'a hole' : 'an overlap'}: begins at ${tensor.begin}`
        throw this.error('SAFETENSORS_OFFSETS', {
          field: jsonPointer([tensor.name, 'data_offsets', 0]),
          got,
          expected: `${end}, ${neighbour}`,
        })
      }
      tensors.set(tensor.name, {
        dtype: tensor.dtype,
        shape: tensor.shape,
        offset: dataStart + tensor.begin,
        byteLength: tensor.end - tensor.begin,
      })
      end = tensor.end
      previous = tensor.name
    }
    if (end !== dataBytes) {
      throw this.error('SAFETENSORS_LENGTH', {
        got: `${dataBytes} bytes of data`,
        expected: `${end}, as the header says`,
        hint: end > dataBytes ? 'the file is cut off: download it again' : 'the file has bytes that belong to no tensor',
      })
    }
    return tensors
  }

  private tensor(name: string): Declared {
    let dtypeName: string | undefined
    let shape: readonly number[] | undefined
    let offsets: readonly number[] | undefined
    const seen = new Set<string>()
    this.members(
      (key) => {
        if (seen.has(key))
          throw this.error('SAFETENSORS_DUPLICATE', { field: jsonPointer([name, key]), got: 'the key twice', expected: 'each key once' })
        seen.add(key)
        const at = jsonPointer([name, key])
        if (key === 'dtype') dtypeName = this.stringValue(at, 'SAFETENSORS_DTYPE')
        else if (key === 'shape') shape = this.integers(at, 'SAFETENSORS_SHAPE', safetensorsLimits.rank)
        else if (key === 'data_offsets') offsets = this.integers(at, 'SAFETENSORS_OFFSETS_TYPE', 2)
        else this.skipValue(2)
      },
      jsonPointer([name]),
    )
    if (dtypeName === undefined) throw this.missing(name, 'dtype')
    if (shape === undefined) throw this.missing(name, 'shape')
    if (offsets === undefined) throw this.missing(name, 'data_offsets')
    const dtype = safetensorsDtypes.get(dtypeName)
    if (dtype === undefined) {
      throw this.error('SAFETENSORS_DTYPE', {
        field: jsonPointer([name, 'dtype']),
        got: dtypeName,
        expected: `one of ${[...safetensorsDtypes.keys()].join(', ')}`,
        hint: 'convert the tensor to one of these',
      })
    }
    const [begin, end] = offsets
    if (begin === undefined || end === undefined) {
      throw this.error('SAFETENSORS_OFFSETS_TYPE', {
        field: jsonPointer([name, 'data_offsets']),
        got: `${offsets.length} numbers`,
        expected: '[begin, end]',
      })
    }
    if (end < begin) {
      throw this.error('SAFETENSORS_OFFSETS', {
        field: jsonPointer([name, 'data_offsets']),
        got: `[${begin}, ${end}]`,
        expected: 'an end that is not before the beginning',
      })
    }
    const bytes = this.byteLength(name, dtype, shape)
    if (bytes !== BigInt(end - begin)) {
      throw this.error('SAFETENSORS_SIZE', {
        field: jsonPointer([name, 'data_offsets']),
        got: `${end - begin} bytes`,
        expected: `${bytes}: ${dtypeName} of shape [${shape.join(', ')}]`,
      })
    }
    return { name, dtype, shape, begin, end }
  }

  /** In exact integers; like the reference, a product that leaves 64 bits is refused even if a later size is 0. */
  private byteLength(name: string, dtype: DataType, shape: readonly number[]): bigint {
    let product = 1n
    for (const size of shape) {
      product *= BigInt(size)
      if (product >= largestProduct) break
    }
    product *= BigInt(bytesPerElement[dtype])
    if (product * 8n >= largestProduct) {
      throw this.error('SAFETENSORS_SIZE', {
        field: jsonPointer([name, 'shape']),
        got: `[${shape.join(', ')}]`,
        expected: 'a size that fits in 64 bits',
      })
    }
    return product
  }

  private metadata(): ReadonlyMap<string, string> {
    const entries = new Map<string, string>()
    this.members((key) => {
      if (entries.has(key))
        throw this.error('SAFETENSORS_DUPLICATE', {
          field: jsonPointer(['__metadata__', key]),
          got: 'the key twice',
          expected: 'each key once',
        })
      if (entries.size >= safetensorsLimits.metadataEntries) {
        throw this.error('SAFETENSORS_LIMIT', {
          field: '/__metadata__',
          got: 'more',
          expected: `at most ${safetensorsLimits.metadataEntries} entries`,
        })
      }
      entries.set(key, this.stringValue(jsonPointer(['__metadata__', key]), 'SAFETENSORS_METADATA'))
    }, '/__metadata__')
    return entries
  }

  /** The members of the object that begins here; `value` must consume each value. */
  private members(value: (key: string) => void, field?: string): void {
    this.skipSpace()
    if (this.text[this.index] !== '{') {
      throw this.error(field === '/__metadata__' ? 'SAFETENSORS_METADATA' : 'SAFETENSORS_ENTRY', {
        field,
        got: this.near(),
        expected: 'an object',
      })
    }
    this.index++
    this.skipSpace()
    if (this.take('}')) return
    do {
      this.skipSpace()
      const key = this.string(safetensorsLimits.nameLength)
      this.skipSpace()
      if (!this.take(':')) throw this.syntax('a colon')
      value(key)
      this.skipSpace()
    } while (this.take(','))
    if (!this.take('}')) throw this.syntax('a comma or }')
  }

  private integers(field: string, code: string, most: number): readonly number[] {
    this.skipSpace()
    if (!this.take('[')) throw this.error(code, { field, got: this.near(), expected: 'an array of whole numbers' })
    const numbers: number[] = []
    this.skipSpace()
    if (this.take(']')) return numbers
    do {
      if (numbers.length === most) throw this.error(code, { field, got: `more than ${most} numbers`, expected: `at most ${most}` })
      this.skipSpace()
      const digits = this.numberText()
      if (digits === undefined || !integerPattern.test(digits) || digits.length > 16 || Number(digits) > Number.MAX_SAFE_INTEGER) {
        throw this.error(code, {
          field: `${field}/${numbers.length}`,
          got: digits ?? this.near(),
          expected: 'a whole number from 0 to 2^53 - 1, digits only',
        })
      }
      numbers.push(Number(digits))
      this.skipSpace()
    } while (this.take(','))
    if (!this.take(']')) throw this.syntax('a comma or ]')
    return numbers
  }

  private stringValue(field: string, code: string): string {
    this.skipSpace()
    if (this.text.charCodeAt(this.index) !== quote) throw this.error(code, { field, got: this.near(), expected: 'a string' })
    return this.string(Number.POSITIVE_INFINITY)
  }

  private string(longest: number): string {
    if (this.text.charCodeAt(this.index) !== quote) throw this.syntax('a string')
    const start = ++this.index
    let escaped = false
    for (; ; this.index++) {
      if (this.index - start > longest)
        throw this.error('SAFETENSORS_LIMIT', {
          got: this.text.slice(start, start + 100),
          expected: `names of at most ${longest} characters`,
        })
      const unit = this.text.charCodeAt(this.index)
      if (unit === quote) break
      // NaN, past the end, is not below 0x20, so it is tested by itself.
      if (Number.isNaN(unit) || unit < space) throw this.syntax('the rest of a string, without control characters')
      if (unit === backslash) {
        escaped = true
        this.index++
      }
    }
    const raw = this.text.slice(start, this.index++)
    return escaped ? this.unescaped(raw) : raw
  }

  private unescaped(raw: string): string {
    const value = raw.replace(/\\(u[\dA-Fa-f]{4}|.)?/gsu, (_, sequence: string | undefined) => {
      if (sequence?.length === 5) return String.fromCharCode(Number.parseInt(sequence.slice(1), 16))
      const plain = sequence === undefined ? undefined : simpleEscapes.get(sequence)
      if (plain === undefined) throw this.syntax('an escape that JSON knows')
      return plain
    })
    if (loneSurrogate.test(value)) throw this.syntax('surrogates in pairs')
    return value
  }

  private numberText(): string | undefined {
    numberPattern.lastIndex = this.index
    const found = numberPattern.exec(this.text)?.[0]
    if (found !== undefined) this.index += found.length
    return found
  }

  /** A value of no interest. Nesting is bounded, so recursion is too. */
  private skipValue(depth: number): void {
    if (depth >= safetensorsLimits.depth)
      throw this.error('SAFETENSORS_LIMIT', { got: 'deeper nesting', expected: `at most ${safetensorsLimits.depth} levels` })
    this.skipSpace()
    const first = this.text[this.index]
    if (first === '{') this.members(() => this.skipValue(depth + 1))
    else if (first === '"') this.string(Number.POSITIVE_INFINITY)
    else if (first === '[') {
      this.index++
      this.skipSpace()
      if (this.take(']')) return
      do {
        this.skipValue(depth + 1)
        this.skipSpace()
      } while (this.take(','))
      if (!this.take(']')) throw this.syntax('a comma or ]')
    } else if (!['true', 'false', 'null'].some((word) => this.take(word)) && this.numberText() === undefined) throw this.syntax('a value')
  }

  private skipSpace(): void {
    for (; ; this.index++) {
      const unit = this.text.charCodeAt(this.index)
      if (unit !== space && unit !== 0x0a && unit !== 0x0d && unit !== 0x09) return
    }
  }

  private take(token: string): boolean {
    if (!this.text.startsWith(token, this.index)) return false
    this.index += token.length
    return true
  }

  private near(): string {
    return this.text.slice(this.index, this.index + 40) || 'the end of the header'
  }

  private syntax(expected: string): ModalignError {
    return this.error('SAFETENSORS_JSON', { got: `${JSON.stringify(this.near())} at character ${this.index}`, expected })
  }

  private missing(name: string, key: string): ModalignError {
    return this.error('SAFETENSORS_ENTRY', { field: jsonPointer([name]), got: `no ${key}`, expected: 'dtype, shape and data_offsets' })
  }

  private error(
    code: string,
    facts: { readonly field?: string | undefined; readonly got?: string; readonly expected?: string; readonly hint?: string },
  ): ModalignError {
    const field = facts.field !== undefined && facts.field.length > 300 ? `${facts.field.slice(0, 299)}…` : facts.field
    return new ModalignError({ code, file: this.file, ...facts, field })
  }
}
