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
import { toFloat16, toFloat32 } from '../weights/float16.ts'

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

/**
 * @returns the record, and in which dtype it holds the features: float32 instead of float16 where a value is beyond float16's largest, 65,504.
 * @throws FEATURES_NOT_FINITE: such features would poison every run that reads them.
 */
export function encodeRecord(
  key: FeatureKey,
  { size, data }: StoredFeatures,
  stored: FeatureDtype,
): { readonly bytes: Uint8Array; readonly dtype: FeatureDtype } {
  const place = data.findIndex((value) => !Number.isFinite(value))
  if (place >= 0) {
    throw new ModalignError({
      code: 'FEATURES_NOT_FINITE',
      field: `${key.modality} ${key.content}`,
      got: `${data[place]} at element ${place}`,
      expected: 'finite features',
      hint: 'the encoder overflows on this medium: try a float32 file or another device',
    })
  }
  const dtype = dtypeFor(data, stored)
  const payload = packed(data, key.width, dtype)
  const header = Buffer.from(
    JSON.stringify({ format, key: JSON.parse(keyText(key, stored)), size, tokens: data.length / key.width, dtype }),
  )
  const bytes = Buffer.alloc(4 + header.length + payload.length + 4)
  bytes.writeUInt32LE(header.length, 0)
  header.copy(bytes, 4)
  bytes.set(payload, 4 + header.length)
  bytes.writeUInt32LE(crc32(bytes.subarray(0, -4)), bytes.length - 4)
  return { bytes, dtype }
}

const largestFloat16 = 65_504

/** Features as a store of this dtype gives them back: whoever keeps them uses these from the start, so that a second run sees what the first one saw. */
export function asStored(data: Float32Array, width: number, dtype: FeatureDtype): Float32Array {
  if (dtype === 'float32') return data
  const kept = dtypeFor(data, dtype)
  return unpacked(Buffer.from(packed(data, width, kept)), data.length / width, width, kept) ?? unreachable('features that were just packed')
}

function dtypeFor(data: Float32Array, stored: FeatureDtype): FeatureDtype {
  return stored === 'float16' && data.some((value) => Math.abs(value) > largestFloat16) ? 'float32' : stored
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
  const known = Object.entries(size).filter((entry): entry is [string, number] => entry[1] !== undefined)
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

function packed(data: Float32Array, width: number, dtype: FeatureDtype): Uint8Array {
  switch (dtype) {
    case 'float32':
      return littleEndian(data)
    case 'float16':
      return littleEndian(toFloat16(data))
    case 'int8': {
      const scales = new Float32Array(width)
      for (let place = 0; place < data.length; place++)
        scales[place % width] = Math.max(scales[place % width] ?? 0, Math.abs(data[place] ?? 0) / 127)
      const values = Int8Array.from(data, (value, place) => {
        const scale = scales[place % width] ?? 0
        return scale === 0 ? 0 : Math.round(value / scale)
      })
      return Buffer.concat([littleEndian(scales), new Uint8Array(values.buffer)])
    }
    default:
      return dtype satisfies never
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

function littleEndian(values: Float32Array | Uint16Array): Uint8Array {
  return new Uint8Array(hostOrder(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), values.BYTES_PER_ELEMENT))
}

/** A copy, with the bytes of each element turned where this processor counts the other way than the record. */
function hostOrder(bytes: Uint8Array, size: number): ArrayBuffer {
  const copy = Buffer.from(new ArrayBuffer(bytes.length))
  copy.set(bytes)
  if (!isLittleEndian && size === 4) copy.swap32()
  if (!isLittleEndian && size === 2) copy.swap16()
  return copy.buffer
}
