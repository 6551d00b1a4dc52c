import { ModalignError } from '../errors.ts'
import type { ByteSource } from '../io/memory-source.ts'
import { bytesPerElement, type DataType, elementCount, type TensorValue, type TypedArrays } from '../tensors.ts'
import { loneSurrogate, parseSafetensorsHeader, type SafetensorsEntry, safetensorsDtypes, safetensorsLimits } from './safetensors-header.ts'

/** The part of the safetensors reader and writer that needs no file system: it runs in a browser too. */

export interface SafetensorsFile {
  /** Absolute path, where the source is a file. */
  readonly file?: string
  readonly size: number
  /** The header's JSON bytes: they go into the file's fingerprint. */
  readonly header: Uint8Array
  /** By name, in the order of their bytes. */
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>
  readonly metadata: ReadonlyMap<string, string>
  /** The values of one tensor, read when asked. */
  read(name: string): Promise<TensorValue>
}

/** A tensor to be written: with its values, or with a way to get them, whole or in pieces, when their turn comes, so that large files need not fit in memory. */
export type TensorToWrite =
  | { readonly name: string; readonly value: TensorValue }
  | { readonly name: string; readonly dtype: DataType; readonly dims: readonly number[]; readonly load: () => Promise<TensorValue> }
  | { readonly name: string; readonly dtype: DataType; readonly dims: readonly number[]; readonly pieces: () => AsyncIterable<Uint8Array> }

/**
 * Opens safetensors bytes of any origin. Only the header is read; it is checked in full before anything is returned.
 *
 * @param file named in errors
 * @throws ModalignError `SAFETENSORS_TOO_SHORT`, `SAFETENSORS_HEADER_LENGTH`, `WEIGHTS_LFS_POINTER`, `WEIGHTS_PICKLE`, and what `parseSafetensorsHeader` throws
 * @example
 * const weights = await readSafetensors(memorySource(bytes))
 * const { dims, data } = await weights.read('0.weight')
 */
export async function readSafetensors(source: ByteSource, file?: string): Promise<SafetensorsFile> {
  if (source.size < 8) {
    throw new ModalignError({
      code: 'SAFETENSORS_TOO_SHORT',
      file,
      got: `${source.size} bytes`,
      expected: 'at least 8',
      hint: 'the file is empty or cut off: download it again',
    })
  }
  const start = await source.read(0, 8)
  const length = new DataView(start.buffer, start.byteOffset).getBigUint64(0, true)
  if (length > BigInt(safetensorsLimits.headerBytes) || length > BigInt(source.size - 8)) {
    throw (
      otherFormat(await source.read(0, Math.min(source.size, 40)), file) ??
      new ModalignError({
        code: 'SAFETENSORS_HEADER_LENGTH',
        file,
        got: `a header of ${length} bytes in a file of ${source.size}`,
        expected: `at most ${safetensorsLimits.headerBytes} bytes, within the file`,
        hint: 'the file is no safetensors file, or it is cut off',
      })
    )
  }
  const header = await source.read(8, Number(length))
  const { tensors, metadata } = parseSafetensorsHeader(header, source.size - 8 - header.length, file)
  return {
    ...(file === undefined ? {} : { file }),
    size: source.size,
    header,
    tensors,
    metadata,
    async read(name) {
      const entry = tensors.get(name)
      if (entry === undefined)
        throw new ModalignError({
          code: 'TENSOR_MISSING',
          file,
          got: `no tensor ${JSON.stringify(name)}`,
          expected: someNames(tensors.keys()),
        })
      return tensorFromBytes(await source.read(entry.offset, entry.byteLength), entry, { name, file })
    },
  }
}

/**
 * A whole safetensors file in memory: same bytes for the same tensors, in whatever order they come.
 *
 * @throws ModalignError `SAFETENSORS_DUPLICATE`, `SAFETENSORS_SHAPE`, `SAFETENSORS_LIMIT`
 * @example
 * const bytes = await safetensorsBytes([{ name: 'bias', value: float32Tensor(new Float32Array([1, 2]), [2]) }])
 */
export async function safetensorsBytes(tensors: Iterable<TensorToWrite>, metadata?: Readonly<Record<string, string>>): Promise<Uint8Array> {
  const chunks: Uint8Array[] = []
  for await (const chunk of safetensorsChunks(tensors, metadata)) chunks.push(chunk)
  const whole = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0))
  let filled = 0
  for (const chunk of chunks) {
    whole.set(chunk, filled)
    filled += chunk.length
  }
  return whole
}

/** The file in pieces: header, then one tensor at a time. Order and padding are the reference writer's: widest type first, then by name; header padded with spaces to 8. */
export async function* safetensorsChunks(
  tensors: Iterable<TensorToWrite>,
  metadata?: Readonly<Record<string, string>>,
): AsyncGenerator<Uint8Array, void, undefined> {
  const planned = plan(tensors)
  yield encodeHeader(planned, metadata)
  for (const { name, dtype, dims, source } of planned) {
    if ('pieces' in source) {
      let left = elementCount(dims) * bytesPerElement[dtype]
      for await (const piece of source.pieces()) {
        left -= piece.length
        yield piece
      }
      if (left !== 0)
        throw new ModalignError({ code: 'SAFETENSORS_SHAPE', got: `${name}: ${-left} bytes too many`, expected: `${dtype} [${dims}]` })
      continue
    }
    const value = 'value' in source ? source.value : await source.load()
    if (value.dtype !== dtype || value.dims.join() !== dims.join()) {
      throw new ModalignError({
        code: 'SAFETENSORS_SHAPE',
        got: `${name}: ${value.dtype} [${value.dims}]`,
        expected: `${dtype} [${dims}], as declared`,
      })
    }
    checkElementCount(name, value)
    yield new Uint8Array(value.data.buffer, value.data.byteOffset, value.data.byteLength)
  }
}

interface Planned {
  readonly name: string
  readonly dtype: DataType
  readonly formatName: string
  readonly rank: number
  readonly dims: readonly number[]
  readonly source: TensorToWrite
}

function plan(tensors: Iterable<TensorToWrite>): readonly Planned[] {
  const formats = new Map([...safetensorsDtypes].map(([formatName, dtype], rank) => [dtype, { formatName, rank }]))
  const names = new Set<string>()
  const planned: Planned[] = []
  for (const source of tensors) {
    const { name } = source
    const { dtype, dims } = 'value' in source ? source.value : source
    if (names.has(name)) throw new ModalignError({ code: 'SAFETENSORS_DUPLICATE', got: `${name} twice`, expected: 'each name once' })
    names.add(name)
    if (
      name === '__metadata__' ||
      loneSurrogate.test(name) ||
      name.length > safetensorsLimits.nameLength ||
      names.size > safetensorsLimits.tensors
    ) {
      throw new ModalignError({
        code: 'SAFETENSORS_LIMIT',
        got: name,
        expected: `well-formed names of at most ${safetensorsLimits.nameLength} characters, not __metadata__`,
      })
    }
    if ('value' in source) checkElementCount(name, source.value)
    const format = formats.get(dtype)
    if (format === undefined) throw new ModalignError({ code: 'SAFETENSORS_DTYPE', got: dtype, expected: [...formats.keys()].join(', ') })
    planned.push({ name, dtype, ...format, dims, source })
  }
  return planned.sort((a, b) => a.rank - b.rank || compareUtf8(a.name, b.name))
}

function checkElementCount(name: string, { dims, data }: TensorValue): void {
  const valid = dims.length <= safetensorsLimits.rank && dims.every((size) => Number.isSafeInteger(size) && size >= 0)
  if (!valid || elementCount(dims) !== data.length) {
    throw new ModalignError({
      code: 'SAFETENSORS_SHAPE',
      got: `${name}: ${data.length} values for shape [${dims}]`,
      expected: 'one value an element',
    })
  }
}

function encodeHeader(planned: readonly Planned[], metadata: Readonly<Record<string, string>> | undefined): Uint8Array {
  const members: string[] = []
  if (metadata !== undefined && Object.keys(metadata).length > 0) {
    const malformed = Object.entries(metadata).find((entry) => entry.some((text) => loneSurrogate.test(text)))
    if (malformed !== undefined)
      throw new ModalignError({ code: 'SAFETENSORS_METADATA', got: malformed[0], expected: 'text without lone surrogates' })
    const sorted = Object.entries(metadata).sort(([a], [b]) => compareUtf8(a, b))
    members.push(`"__metadata__":{${sorted.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(',')}}`)
  }
  let end = 0
  for (const { name, formatName, dtype, dims } of planned) {
    const begin = end
    end += elementCount(dims) * bytesPerElement[dtype]
    members.push(`${JSON.stringify(name)}:{"dtype":"${formatName}","shape":[${dims.join(',')}],"data_offsets":[${begin},${end}]}`)
  }
  const json = new TextEncoder().encode(`{${members.join(',')}}`)
  const padded = Math.ceil(json.length / 8) * 8
  if (padded > safetensorsLimits.headerBytes) {
    throw new ModalignError({
      code: 'SAFETENSORS_LIMIT',
      got: `a header of ${padded} bytes`,
      expected: `at most ${safetensorsLimits.headerBytes}`,
    })
  }
  const bytes = new Uint8Array(8 + padded).fill(0x20)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded), true)
  bytes.set(json, 8)
  return bytes
}

/** By code point, which is the order of the UTF-8 bytes; JavaScript's own order is by UTF-16 unit. */
function compareUtf8(a: string, b: string): number {
  const left = [...a]
  const right = [...b]
  for (let i = 0; i < left.length && i < right.length; i++) {
    const difference = (left[i]?.codePointAt(0) ?? 0) - (right[i]?.codePointAt(0) ?? 0)
    if (difference !== 0) return difference
  }
  return left.length - right.length
}

/** @param bytes an array of its own: tensors need not be aligned in the file, so views into it would not do */
export function tensorFromBytes(
  bytes: Uint8Array,
  { dtype, shape: dims }: { readonly dtype: DataType; readonly shape: readonly number[] },
  place: { readonly name: string; readonly file?: string | undefined },
): TensorValue {
  const { buffer } = bytes.byteOffset === 0 && bytes.buffer.byteLength === bytes.length ? bytes : bytes.slice()
  if (dtype === 'bool') {
    const data = new Uint8Array(buffer)
    const bad = data.find((value) => value > 1)
    if (bad !== undefined)
      throw new ModalignError({ code: 'SAFETENSORS_BOOL', file: place.file, got: `${bad} in ${place.name}`, expected: '0 or 1' })
    return { dtype, dims, data }
  }
  return views[dtype](buffer, dims)
}

type View<D extends DataType> = (
  buffer: ArrayBufferLike,
  dims: readonly number[],
) => { readonly dtype: D; readonly dims: readonly number[]; readonly data: TypedArrays[D] }

const views: { readonly [D in Exclude<DataType, 'bool'>]: View<D> } = {
  float32: (buffer, dims) => ({ dtype: 'float32', dims, data: new Float32Array(buffer) }),
  float64: (buffer, dims) => ({ dtype: 'float64', dims, data: new Float64Array(buffer) }),
  float16: (buffer, dims) => ({ dtype: 'float16', dims, data: new Uint16Array(buffer) }),
  bfloat16: (buffer, dims) => ({ dtype: 'bfloat16', dims, data: new Uint16Array(buffer) }),
  int64: (buffer, dims) => ({ dtype: 'int64', dims, data: new BigInt64Array(buffer) }),
  int32: (buffer, dims) => ({ dtype: 'int32', dims, data: new Int32Array(buffer) }),
  int16: (buffer, dims) => ({ dtype: 'int16', dims, data: new Int16Array(buffer) }),
  int8: (buffer, dims) => ({ dtype: 'int8', dims, data: new Int8Array(buffer) }),
  uint64: (buffer, dims) => ({ dtype: 'uint64', dims, data: new BigUint64Array(buffer) }),
  uint32: (buffer, dims) => ({ dtype: 'uint32', dims, data: new Uint32Array(buffer) }),
  uint16: (buffer, dims) => ({ dtype: 'uint16', dims, data: new Uint16Array(buffer) }),
  uint8: (buffer, dims) => ({ dtype: 'uint8', dims, data: new Uint8Array(buffer) }),
}

/** What people offer in place of safetensors, recognised by its first bytes. */
function otherFormat(start: Uint8Array, file: string | undefined): ModalignError | undefined {
  const text = String.fromCharCode(...start)
  if (text.startsWith('version https://git-lfs')) {
    return new ModalignError({
      code: 'WEIGHTS_LFS_POINTER',
      file,
      got: 'a Git LFS pointer',
      expected: 'the weights',
      hint: 'run git lfs pull in that folder',
    })
  }
  if (text.startsWith('PK\x03\x04') || text.startsWith('\x80\x02')) {
    const hint = 'pickle files can run code when they are loaded: convert it to safetensors'
    return new ModalignError({ code: 'WEIGHTS_PICKLE', file, got: 'a PyTorch pickle', expected: 'safetensors', hint })
  }
  if (text.startsWith('GGUF')) return new ModalignError({ code: 'WEIGHTS_GGUF', file, got: 'a GGUF file', expected: 'safetensors' })
  return undefined
}

function someNames(names: Iterable<string>): string {
  const all = [...names]
  return all.length === 0
    ? 'nothing: the file has no tensors'
    : `one of ${all.slice(0, 8).join(', ')}${all.length > 8 ? `, ... (${all.length})` : ''}`
}
