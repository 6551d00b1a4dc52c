/**
 * The header of a GGUF file: counts, typed metadata, then name, shape, type and offset of every tensor. Rules: the format's document (docs/gguf.md of ggml) and
 * the checks of its reference reader (ggml/src/gguf.cpp). Where that reader is lenient (text that is no UTF-8, a bool that is neither 0 nor 1), this one follows
 * the document.
 */
import { ModalignError } from '../../errors.ts'
import type { ByteSource } from '../../io/memory-source.ts'
import { Cursor } from './cursor.ts'
import { type GgmlType, ggmlTypes, type ScalarType, scalarBytes, type ValueType, valueTypes } from './types.ts'

export const ggufLimits = {
  /** As in the reference reader. */
  stringBytes: 2 ** 30,
  arrayElements: 2 ** 30,
  tensorNameBytes: 63,
  rank: 4,
  tensors: 65_535,
  metadataEntries: 65_535,
  keyBytes: 65_535,
} as const

const defaultAlignment = 32
const newestVersion = 3
const magic = 0x4655_4747
/** A key of one byte and a value of one byte; a tensor without a name and without dimensions. */
const smallestEntry = 8 + 1 + 4 + 1
const smallestTensor = 8 + 4 + 4 + 8

export type GgufArray =
  | { readonly type: 'string'; readonly values: readonly string[] }
  | { readonly type: 'uint64'; readonly values: BigUint64Array }
  | { readonly type: 'int64'; readonly values: BigInt64Array }
  | { readonly type: Exclude<ScalarType, 'string' | 'uint64' | 'int64'>; readonly values: NumberArray }
type NumberArray = Uint8Array | Int8Array | Uint16Array | Int16Array | Uint32Array | Int32Array | Float32Array | Float64Array

export type GgufValue =
  | { readonly type: 'string'; readonly value: string }
  | { readonly type: 'bool'; readonly value: boolean }
  | { readonly type: 'uint64' | 'int64'; readonly value: bigint }
  | { readonly type: Exclude<ScalarType, 'string' | 'bool' | 'uint64' | 'int64'>; readonly value: number }
  | { readonly type: 'array'; readonly value: GgufArray }

/** Where one tensor lies. `shape`: slowest axis first, as in every checkpoint (the file has it the other way round); `offset`: absolute, in bytes. */
export interface GgufTensor {
  readonly type: GgmlType
  readonly shape: readonly number[]
  readonly offset: number
  readonly byteLength: number
}

export interface GgufHeader {
  readonly version: number
  readonly alignment: number
  readonly metadata: ReadonlyMap<string, GgufValue>
  /** In the order of their bytes. */
  readonly tensors: ReadonlyMap<string, GgufTensor>
  /** Where the tensors' bytes begin. */
  readonly dataStart: number
}

/**
 * Reads and checks the header. Nothing is made from a length before the file is known to have that many bytes.
 *
 * @param file named in errors
 * @throws ModalignError `GGUF_*`, `WEIGHTS_LFS_POINTER`
 */
export async function parseGgufHeader(source: ByteSource, file?: string): Promise<GgufHeader> {
  const cursor = new Cursor(source, file)
  const { version, tensorCount, entryCount } = await readStart(cursor)
  const metadata = await readMetadata(cursor, entryCount)
  const alignment = alignmentOf(metadata, file)
  const declared = await readTensors(cursor, tensorCount)
  const dataStart = declared.length === 0 ? cursor.position : padded(cursor.position, alignment)
  return { version, alignment, metadata, tensors: placed(declared, { dataStart, alignment, size: source.size, file }), dataStart }
}

async function readStart(cursor: Cursor): Promise<{ readonly version: number; readonly tensorCount: number; readonly entryCount: number }> {
  const { file } = cursor
  await cursor.load(Math.min(24, cursor.left), 'header')
  if (cursor.left < 8) throw cursor.truncated('header', '24 bytes')
  const start = cursor.uint32()
  if (start !== magic) throw notGguf(start, file)
  const version = cursor.uint32()
  const refuse = (code: string, got: string, hint: string): ModalignError =>
    new ModalignError({ code, file, got, expected: `version 2 or ${newestVersion}`, hint })
  if (version !== 0 && (version & 0xffff) === 0)
    throw refuse('GGUF_BYTE_ORDER', 'a file whose numbers are big-endian', 'convert it for a little-endian machine')
  if (version === 0) throw refuse('GGUF_VERSION', 'version 0', 'the file is damaged: download it again')
  if (version === 1) throw refuse('GGUF_VERSION', 'version 1', 'convert the model again with a newer llama.cpp')
  if (version > newestVersion) throw refuse('GGUF_VERSION', `version ${version}`, 'the file is newer than this reader, or damaged')
  if (cursor.left < 16) throw cursor.truncated('header', '16 bytes of counts')
  const tensorCount = count(cursor.uint64(), smallestTensor, ggufLimits.tensors, 'tensors', cursor)
  const entryCount = count(cursor.uint64(), smallestEntry, ggufLimits.metadataEntries, 'metadata entries', cursor)
  return { version, tensorCount, entryCount }
}

function notGguf(start: number, file: string | undefined): ModalignError {
  const bytes = [start, start >>> 8, start >>> 16, start >>> 24].map((value) => value & 0xff)
  const text = String.fromCharCode(...bytes)
  if (text === 'vers') {
    const hint = 'run git lfs pull in that folder'
    return new ModalignError({ code: 'WEIGHTS_LFS_POINTER', file, got: 'a Git LFS pointer', expected: 'the weights', hint })
  }
  if (text === 'FUGG') return new ModalignError({ code: 'GGUF_BYTE_ORDER', file, got: 'GGUF backwards', expected: 'GGUF' })
  return new ModalignError({
    code: 'GGUF_MAGIC',
    file,
    got: `first bytes ${JSON.stringify(text)}`,
    expected: '"GGUF"',
    hint: 'the file is no GGUF file',
  })
}

function count(value: bigint, smallest: number, limit: number, what: string, cursor: Cursor): number {
  if (value > BigInt(limit) || value * BigInt(smallest) > BigInt(cursor.left + 16)) {
    throw new ModalignError({
      code: 'GGUF_COUNT',
      file: cursor.file,
      got: `${BigInt.asIntN(64, value)} ${what} in a file that goes on for ${cursor.left} bytes`,
      expected: `at most ${limit}, each of at least ${smallest} bytes`,
    })
  }
  return Number(value)
}

async function readMetadata(cursor: Cursor, entries: number): Promise<ReadonlyMap<string, GgufValue>> {
  const metadata = new Map<string, GgufValue>()
  for (let index = 0; index < entries; index++) {
    const key = await readString(cursor, `metadata entry ${index}`, ggufLimits.keyBytes)
    const fault = (code: string, got: string, expected: string): ModalignError =>
      new ModalignError({ code, file: cursor.file, field: `metadata entry ${index}`, got, expected })
    if (key === '') throw fault('GGUF_KEY', 'an empty key', 'a key of at least one character')
    if (metadata.has(key)) throw fault('GGUF_DUPLICATE_KEY', `${key} a second time`, 'each key once')
    metadata.set(key, await readValue(cursor, key))
  }
  return metadata
}

async function readString(cursor: Cursor, what: string, limit: number = ggufLimits.stringBytes): Promise<string> {
  if (!cursor.holds(8)) await cursor.load(8, what)
  const length = cursor.uint64()
  if (length > BigInt(limit) || length > BigInt(cursor.left)) {
    throw new ModalignError({
      code: 'GGUF_STRING',
      file: cursor.file,
      field: what,
      got: `a text of ${BigInt.asIntN(64, length)} bytes where the file goes on for ${cursor.left}`,
      expected: `at most ${limit} bytes, within the file`,
    })
  }
  const bytes = Number(length)
  if (!cursor.holds(bytes)) await cursor.load(bytes, what)
  const text = cursor.text(bytes)
  if (text === undefined)
    throw new ModalignError({ code: 'GGUF_UTF8', file: cursor.file, field: what, got: 'other bytes', expected: 'UTF-8' })
  return text
}

async function readType(cursor: Cursor, key: string): Promise<ValueType> {
  if (!cursor.holds(4)) await cursor.load(4, key)
  const number = cursor.uint32()
  const type = valueTypes[number]
  if (type !== undefined) return type
  throw new ModalignError({
    code: 'GGUF_VALUE_TYPE',
    file: cursor.file,
    field: key,
    got: `type ${number}`,
    expected: `0 to ${valueTypes.length - 1}`,
  })
}

async function readValue(cursor: Cursor, key: string): Promise<GgufValue> {
  const type = await readType(cursor, key)
  if (type === 'array') return { type, value: await readArray(cursor, key) }
  if (type === 'string') return { type, value: await readString(cursor, key) }
  await cursor.load(scalarBytes[type], key)
  const values = arrayOf(type, cursor.bytes(scalarBytes[type]), cursor, key)
  const [value] = values.values
  if (type === 'bool') return { type, value: value === 1 }
  if (typeof value === 'bigint' && (type === 'uint64' || type === 'int64')) return { type, value }
  if (typeof value === 'number' && type !== 'uint64' && type !== 'int64') return { type, value }
  throw new Error(`internal: a ${type} without a value`)
}

async function readArray(cursor: Cursor, key: string): Promise<GgufArray> {
  const type = await readType(cursor, key)
  const fault = (got: string, expected: string): ModalignError =>
    new ModalignError({ code: 'GGUF_ARRAY', file: cursor.file, field: key, got, expected })
  if (type === 'array') throw fault('an array of arrays', 'an array of values')
  await cursor.load(8, key)
  const declared = cursor.uint64()
  // A text has at least its length, of 8 bytes.
  const each = type === 'string' ? 8 : scalarBytes[type]
  if (declared > BigInt(ggufLimits.arrayElements) || declared * BigInt(each) > BigInt(cursor.left))
    throw fault(`${declared} values of ${each} bytes or more where the file goes on for ${cursor.left}`, 'an array within the file')
  const length = Number(declared)
  if (type !== 'string') {
    await cursor.load(length * each, key)
    return arrayOf(type, cursor.bytes(length * each), cursor, key)
  }
  const values: string[] = []
  for (let index = 0; index < length; index++) values.push(await readString(cursor, key))
  return { type, values }
}

/** @param bytes of a buffer of its own */
function arrayOf(type: Exclude<ScalarType, 'string'>, { buffer }: Uint8Array<ArrayBuffer>, cursor: Cursor, key: string): GgufArray {
  switch (type) {
    case 'uint64':
      return { type, values: new BigUint64Array(buffer) }
    case 'int64':
      return { type, values: new BigInt64Array(buffer) }
    case 'bool': {
      const values = new Uint8Array(buffer)
      const bad = values.find((value) => value > 1)
      if (bad === undefined) return { type, values }
      throw new ModalignError({ code: 'GGUF_BOOL', file: cursor.file, field: key, got: `${bad}`, expected: '0 or 1' })
    }
    default:
      return { type, values: new numberArrays[type](buffer) }
  }
}

const numberArrays = {
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  float32: Float32Array,
  float64: Float64Array,
} as const

function alignmentOf(metadata: ReadonlyMap<string, GgufValue>, file: string | undefined): number {
  const key = 'general.alignment'
  const found = metadata.get(key)
  if (found === undefined) return defaultAlignment
  if (found.type === 'uint32' && found.value !== 0 && (found.value & (found.value - 1)) === 0) return found.value
  const got = found.type === 'uint32' ? `${found.value}` : `a ${found.type}`
  throw new ModalignError({ code: 'GGUF_ALIGNMENT', file, field: key, got, expected: 'a power of two as uint32' })
}

interface Declared {
  readonly name: string
  readonly type: GgmlType
  readonly shape: readonly number[]
  readonly offset: bigint
  readonly byteLength: bigint
}

async function readTensors(cursor: Cursor, tensors: number): Promise<readonly Declared[]> {
  const names = new Set<string>()
  const declared: Declared[] = []
  for (let index = 0; index < tensors; index++) {
    const name = await readString(cursor, `tensor ${index}`)
    const fault = (code: string, got: string, expected: string): ModalignError =>
      new ModalignError({ code, file: cursor.file, field: `tensor ${index}`, got, expected })
    const nameBytes = new TextEncoder().encode(name).length
    if (nameBytes > ggufLimits.tensorNameBytes)
      throw fault('GGUF_TENSOR_NAME', `a name of ${nameBytes} bytes`, `at most ${ggufLimits.tensorNameBytes}`)
    if (names.has(name)) throw fault('GGUF_DUPLICATE_TENSOR', `${name} a second time`, 'each name once')
    names.add(name)
    await cursor.load(4, name)
    const rank = cursor.uint32()
    if (rank > ggufLimits.rank) throw fault('GGUF_RANK', `${rank} dimensions of ${name}`, `at most ${ggufLimits.rank}`)
    await cursor.load(8 * rank + 12, name)
    const sizes = Array.from({ length: rank }, () => cursor.uint64())
    declared.push({ name, ...readPlace(cursor, name, sizes, fault) })
  }
  return declared
}

/** Sizes are multiplied as big integers: nothing can wrap around. */
function readPlace(
  cursor: Cursor,
  name: string,
  sizes: readonly bigint[],
  fault: (code: string, got: string, expected: string) => ModalignError,
): Omit<Declared, 'name'> {
  const largest = 2n ** 63n - 1n
  const elements = sizes.reduce((product, size) => product * size, 1n)
  if (sizes.some((size) => size > largest) || elements >= largest)
    throw fault('GGUF_SHAPE', `${name} of [${sizes.map((size) => BigInt.asIntN(64, size)).join(', ')}]`, 'fewer than 2^63 elements')
  const number = cursor.uint32()
  const type = ggmlTypes.get(number)
  if (type === undefined) throw fault('GGUF_TENSOR_TYPE', `${name} of type ${number}`, 'a type of llama.cpp')
  const block = BigInt(type.blockElements)
  if ((sizes[0] ?? 1n) % block !== 0n)
    throw fault('GGUF_BLOCK', `${name}: rows of ${sizes[0] ?? 1n} elements as ${type.name}`, `a multiple of ${block}`)
  const byteLength = (elements / block) * BigInt(type.blockBytes)
  if (elements > 0n && byteLength > BigInt(cursor.left))
    throw fault('GGUF_SIZE', `${name} of ${byteLength} bytes where the file goes on for ${cursor.left}`, 'tensors within the file')
  // With a size of 0, the others may be larger than a number holds exactly, and mean nothing.
  const shape = sizes.map((size) => (elements === 0n && size > BigInt(Number.MAX_SAFE_INTEGER) ? 0 : Number(size))).reverse()
  return { type, shape, offset: cursor.uint64(), byteLength }
}

/** Every tensor begins where the one before it ends, padded; the last one ends, padded, within the file. */
function placed(
  declared: readonly Declared[],
  place: { readonly dataStart: number; readonly alignment: number; readonly size: number; readonly file: string | undefined },
): ReadonlyMap<string, GgufTensor> {
  const { dataStart, alignment, size, file } = place
  const tensors = new Map<string, GgufTensor>()
  const unit = BigInt(alignment)
  let end = 0n
  for (const { name, type, shape, offset, byteLength } of declared) {
    if (offset !== end) {
      throw new ModalignError({
        code: 'GGUF_OFFSET',
        file,
        field: name,
        got: `${offset}`,
        expected: `${end}, where the tensor before it ends`,
      })
    }
    tensors.set(name, { type, shape, offset: dataStart + Number(offset), byteLength: Number(byteLength) })
    end += ((byteLength + unit - 1n) / unit) * unit
    if (end + BigInt(dataStart) > BigInt(size)) {
      throw new ModalignError({
        code: 'GGUF_TRUNCATED',
        file,
        field: name,
        got: `a file of ${size} bytes`,
        expected: `at least ${end + BigInt(dataStart)}`,
        hint: 'the file is cut off or damaged: download it again',
      })
    }
  }
  return tensors
}

function padded(position: number, alignment: number): number {
  return Math.ceil(position / alignment) * alignment
}
