/** GGUF files as tests need them: valid, or with one lie. */
import { ggmlTypes, valueTypes } from '../src/weights/gguf/types.ts'

export interface Entry {
  readonly key: string
  readonly type: number
  /** The bytes of the value. */
  readonly value: readonly number[]
  /** What the key's length is said to be. */
  readonly keyLength?: bigint
}

export interface TensorEntry {
  readonly name: string
  /** Fastest axis first, as in the file. */
  readonly sizes: readonly bigint[]
  readonly type: number
  readonly offset?: bigint
  readonly rank?: number
}

export interface GgufParts {
  readonly magic?: string
  readonly version?: number
  readonly tensorCount?: bigint
  readonly entryCount?: bigint
  readonly entries?: readonly Entry[]
  readonly tensors?: readonly TensorEntry[]
  /** What the offsets and paddings are made with. Default 32. */
  readonly alignment?: number
  /** How many bytes of data follow; default: all. */
  readonly dataBytes?: number
}

export const number = (value: number | bigint, bytes: number): number[] =>
  Array.from({ length: bytes }, (_, index) => Number((BigInt.asUintN(64, BigInt(value)) >> BigInt(8 * index)) & 255n))
export const text = (value: string, length?: bigint): number[] => {
  const bytes = [...Buffer.from(value)]
  return [...number(length ?? bytes.length, 8), ...bytes]
}
export const typeNumber = (name: (typeof valueTypes)[number]): number => valueTypes.indexOf(name)

/** Entries of the kinds that readers look for. */
export const entry = {
  uint32: (key: string, value: number): Entry => ({ key, type: typeNumber('uint32'), value: number(value, 4) }),
  int32: (key: string, value: number): Entry => ({ key, type: typeNumber('int32'), value: number(value, 4) }),
  uint64: (key: string, value: bigint): Entry => ({ key, type: typeNumber('uint64'), value: number(value, 8) }),
  float32: (key: string, value: number): Entry => ({
    key,
    type: typeNumber('float32'),
    value: [...new Uint8Array(Float32Array.of(value).buffer)],
  }),
  bool: (key: string, value: boolean): Entry => ({ key, type: typeNumber('bool'), value: [value ? 1 : 0] }),
  string: (key: string, value: string): Entry => ({ key, type: typeNumber('string'), value: text(value) }),
  strings: (key: string, values: readonly string[]): Entry => ({
    key,
    type: typeNumber('array'),
    value: [...number(typeNumber('string'), 4), ...number(values.length, 8), ...values.flatMap((value) => text(value))],
  }),
  int32s: (key: string, values: readonly number[]): Entry => ({
    key,
    type: typeNumber('array'),
    value: [...number(typeNumber('int32'), 4), ...number(values.length, 8), ...values.flatMap((value) => number(value, 4))],
  }),
  float32s: (key: string, values: readonly number[]): Entry => ({
    key,
    type: typeNumber('array'),
    value: [...number(typeNumber('float32'), 4), ...number(values.length, 8), ...new Uint8Array(Float32Array.from(values).buffer)],
  }),
}

/** Data bytes count upwards from 0, so that every tensor's bytes are known from its offset. */
export function ggufBytes({
  magic = 'GGUF',
  version = 3,
  entries = [],
  tensors = [],
  tensorCount = BigInt(tensors.length),
  entryCount = BigInt(entries.length),
  alignment = 32,
  dataBytes,
}: GgufParts): Uint8Array {
  const bytes = [...Buffer.from(magic), ...number(version, 4), ...number(tensorCount, 8), ...number(entryCount, 8)]
  for (const { key, type, value, keyLength } of entries)
    for (const byte of [...text(key, keyLength), ...number(type, 4), ...value]) bytes.push(byte)
  let end = 0n
  for (const { name, sizes, type, offset, rank } of tensors) {
    bytes.push(...text(name), ...number(rank ?? sizes.length, 4), ...sizes.flatMap((size) => number(size, 8)))
    bytes.push(...number(type, 4), ...number(offset ?? end, 8))
    const { blockElements, blockBytes } = ggmlTypes.get(type) ?? { blockElements: 1, blockBytes: 1 }
    const length = (sizes.reduce((product, size) => product * size, 1n) / BigInt(blockElements)) * BigInt(blockBytes)
    end += ((length + BigInt(alignment) - 1n) / BigInt(alignment)) * BigInt(alignment)
  }
  if (tensors.length > 0) while (bytes.length % alignment !== 0) bytes.push(0)
  const data = dataBytes ?? Number(end)
  for (let index = 0; index < data; index++) bytes.push(index % 256)
  return Uint8Array.from(bytes)
}
