/**
 * One medium's features as the bytes of a record:
 *
 *     uint32 LE   length of the header
 *     UTF-8 JSON  header: format, key, size of the medium, tokens, dtype
 *     payload     int8: float32 [width] scales, then int8 [tokens, width]; else [tokens, width]; little-endian
 *     uint32 LE   CRC-32 of everything before
 */
import { crc32 } from 'node:zlib'
import { z } from 'zod'
import { ModalignError, unreachable } from '../errors.ts'
import type { MediaSize, Modality, Region } from '../model/contracts.ts'
import { roundToFloat16, toFloat32 } from '../weights/float16.ts'

/** What features depend on. */
export interface FeatureKey {
  readonly modality: Modality
  /** SHA-256 of the medium's original bytes, in hex. */
  readonly content: string
  /** The part of it that was encoded. */
  readonly region?: Region | undefined
  /** The encoder's fingerprint: weights, preprocessing, layer. */
  readonly encoder: string
  readonly width: number
}

export const featureDtypes = ['float32', 'float16', 'int8'] as const
/** How features are kept. `int8`: one scale a channel, the largest value of which becomes 127. */
export type FeatureDtype = (typeof featureDtypes)[number]

export interface StoredFeatures {
  /** The medium's own size: what the encoder's grid hangs on. */
  readonly size: MediaSize
  /** float32 [tokens, width]. */
  readonly data: Float32Array
}

/** Raised with every change of the record, so that old records are never taken for new ones. */
const format = 1

const headerSchema = z.strictObject({
  format: z.literal(format),
  key: z.json(),
  size: z.strictObject({
    width: z.number().optional(),
    height: z.number().optional(),
    frames: z.number().optional(),
    seconds: z.number().optional(),
    timesSeconds: z.array(z.number()).optional(),
  }),
  tokens: z.int().min(0),
  dtype: z.enum(featureDtypes),
})

/** The key as text in one spelling, whatever the order of its fields. `stored`: the dtype of the store, which is part of what a record answers. */
export function keyText({ modality, content, region, encoder, width }: FeatureKey, stored: FeatureDtype): string {
  const part =
    region === undefined
      ? []
      : region.type === 'box'
        ? ['box', region.x, region.y, region.width, region.height]
        : ['span', region.startSeconds, region.endSeconds]
  return JSON.stringify([format, modality, content, part, encoder, width, stored])
}

/** Features in the bytes of their record. */
export interface PackedFeatures {
  readonly key: FeatureKey
  readonly bytes: Uint8Array
  /** float32 instead of float16 where a value is beyond float16's largest, 65,504. */
  readonly dtype: FeatureDtype
  /** As a store gives them back: whoever keeps them uses these from the start, so that a second run sees what the first one saw. */
  stored(): Float32Array
}

/** @throws FEATURES_NOT_FINITE: such features would poison every run that reads them. */
export function packFeatures(key: FeatureKey, features: StoredFeatures, wanted: FeatureDtype): PackedFeatures {
  const { data } = features
  const packed = packedAs(key, features, wanted, wanted)
  if (packed.largest < infinity) {
    const tooLarge = wanted === 'float16' && packed.largest > largestFloat16
    return (tooLarge ? packedAs(key, features, wanted, 'float32') : packed).record
  }
  const place = data.findIndex((value) => !Number.isFinite(value))
  throw new ModalignError({
    code: 'FEATURES_NOT_FINITE',
    field: `${key.modality} ${key.content}`,
    got: `${data[place]} at element ${place}`,
    expected: 'finite features',
    hint: 'the encoder overflows on this medium: try a float32 file or another device',
  })
}

function packedAs(
  key: FeatureKey,
  { size, data }: StoredFeatures,
  wanted: FeatureDtype,
  dtype: FeatureDtype,
): { readonly record: PackedFeatures; readonly largest: number } {
  const tokens = data.length / key.width
  const text = JSON.stringify({ format, key: JSON.parse(keyText(key, wanted)), size, tokens, dtype })
  // Spaces fill the header up, so that the numbers behind it lie where typed arrays can be.
  const header = Buffer.from(text.padEnd(text.length + ((4 - (Buffer.byteLength(text) % 4)) % 4)))
  const start = 4 + header.length
  const payload = payloadBytes(tokens, key.width, dtype)
  const bytes = Buffer.from(new ArrayBuffer(start + payload + 4))
  bytes.writeUInt32LE(header.length, 0)
  header.copy(bytes, 4)
  const largest = pack(data, key.width, dtype, bytes.subarray(start, start + payload))
  bytes.writeUInt32LE(crc32(bytes.subarray(0, -4)), bytes.length - 4)
  const stored = (): Float32Array =>
    dtype === 'float32'
      ? data
      : (unpacked(bytes.subarray(start, start + payload), tokens, key.width, dtype) ?? unreachable('features that were just packed'))
  return { record: { key, bytes, dtype, stored }, largest }
}

/** Magnitudes as the bits of a float32, which are ordered as the magnitudes are, NaN above infinity. */
const infinity = 0x7f80_0000
/** 65,504. */
const largestFloat16 = 0x477f_e000

function largestMagnitude(data: Float32Array): number {
  const words = new Uint32Array(data.buffer, data.byteOffset, data.length)
  let largest = 0
  for (let place = 0; place < words.length; place++) {
    const magnitude = (words[place] ?? 0) & 0x7fff_ffff
    if (magnitude > largest) largest = magnitude
  }
  return largest
}

/** About how many bytes of payload a medium of so many tokens takes. */
export function payloadBytes(tokens: number, width: number, dtype: FeatureDtype): number {
  const count = tokens * width
  return dtype === 'float32' ? count * 4 : dtype === 'float16' ? count * 2 : count + width * 4
}

/** Why a record cannot be used, or its features. */
export type DecodedRecord = { readonly features: StoredFeatures } | { readonly damage: string }

/** Never throws: a damaged record is computed again. */
export function decodeRecord(bytes: Uint8Array, key: FeatureKey, stored: FeatureDtype): DecodedRecord {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (buffer.length < 8) return { damage: `${buffer.length} bytes` }
  if (crc32(buffer.subarray(0, -4)) !== buffer.readUInt32LE(buffer.length - 4)) return { damage: 'the checksum does not fit' }
  const headerEnd = 4 + buffer.readUInt32LE(0)
  if (headerEnd > buffer.length - 4) return { damage: 'the header is longer than the record' }
  const header = headerSchema.safeParse(parsed(buffer.toString('utf8', 4, headerEnd)))
  if (!header.success) return { damage: 'the header is not ours' }
  if (JSON.stringify(header.data.key) !== keyText(key, stored)) return { damage: 'it belongs to another key' }
  const { tokens, dtype, size } = header.data
  const data = unpacked(buffer.subarray(headerEnd, -4), tokens, key.width, dtype)
  if (data === undefined) return { damage: `${buffer.length} bytes for ${tokens} tokens of ${key.width} channels` }
  const known = Object.entries(size).filter((entry): entry is [string, number | number[]] => entry[1] !== undefined)
  return { features: { size: Object.fromEntries(known), data } }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

/** Into the place of the payload, which begins at a multiple of 4 bytes. @returns the largest magnitude, as {@link roundToFloat16} */
function pack(data: Float32Array, width: number, dtype: FeatureDtype, payload: Buffer): number {
  const { buffer, byteOffset } = payload
  if (dtype === 'float16') {
    const largest = roundToFloat16(data, new Uint16Array(buffer, byteOffset, data.length))
    toLittleEndian(payload, dtype, width)
    return largest
  }
  if (dtype === 'float32') new Float32Array(buffer, byteOffset, data.length).set(data)
  else packInt8(data, new Float32Array(buffer, byteOffset, width), new Int8Array(buffer, byteOffset + width * 4, data.length))
  toLittleEndian(payload, dtype, width)
  return largestMagnitude(data)
}

function packInt8(data: Float32Array, scales: Float32Array, values: Int8Array): void {
  const { length: width } = scales
  for (let start = 0; start < data.length; start += width) {
    for (let channel = 0; channel < width; channel++) {
      const scale = Math.abs(data[start + channel] ?? 0) / 127
      if (scale > (scales[channel] ?? 0)) scales[channel] = scale
    }
  }
  for (let start = 0; start < data.length; start += width) {
    for (let channel = 0; channel < width; channel++) {
      const scale = scales[channel] ?? 0
      values[start + channel] = scale === 0 ? 0 : Math.round((data[start + channel] ?? 0) / scale)
    }
  }
}

function unpacked(payload: Buffer, tokens: number, width: number, dtype: FeatureDtype): Float32Array | undefined {
  const count = tokens * width
  switch (dtype) {
    case 'float32':
      return payload.length === count * 4 ? new Float32Array(hostOrder(payload, 4)) : undefined
    case 'float16':
      return payload.length === count * 2
        ? toFloat32({ dtype: 'float16', dims: [count], data: new Uint16Array(hostOrder(payload, 2)) })
        : undefined
    case 'int8': {
      if (payload.length !== width * 4 + count) return undefined
      const scales = new Float32Array(hostOrder(payload.subarray(0, width * 4), 4))
      const values = new Int8Array(hostOrder(payload.subarray(width * 4), 1))
      const data = new Float32Array(count)
      for (let place = 0; place < count; place++) data[place] = (values[place] ?? 0) * (scales[place % width] ?? 0)
      return data
    }
    default:
      return dtype satisfies never
  }
}

const isLittleEndian = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1

/** Turns the bytes of each element in place where this processor counts the other way than the record. */
function toLittleEndian(payload: Buffer, dtype: FeatureDtype, width: number): void {
  if (isLittleEndian) return
  if (dtype === 'float16') payload.swap16()
  else (dtype === 'float32' ? payload : payload.subarray(0, width * 4)).swap32()
}

/** A copy, with the bytes of each element turned where this processor counts the other way than the record. */
function hostOrder(bytes: Uint8Array, size: number): ArrayBuffer {
  const copy = Buffer.from(new ArrayBuffer(bytes.length))
  copy.set(bytes)
  if (!isLittleEndian && size === 4) copy.swap32()
  if (!isLittleEndian && size === 2) copy.swap16()
  return copy.buffer
}
