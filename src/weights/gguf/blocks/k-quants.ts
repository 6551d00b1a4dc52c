/**
 * The K formats: super-blocks of 256 values, cut into 16 blocks of 16 or 8 blocks of 32, whose scales (and minimums) are themselves integers times a float16 of the
 * super-block.
 */
import { type Dequantise, float16At, int8 } from './block-format.ts'

const superBlock = 256

/** 16 bytes (low half the scale, high half the minimum of a block of 16), 64 bytes of 2 bits, scale f16, minimum f16: q scale - minimum */
export const q2_k: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 84, to += superBlock) {
    const scale = float16At(bytes, at + 80)
    const minimum = float16At(bytes, at + 82)
    for (let block = 0; block < 16; block++) {
      const packed = bytes[at + block] ?? 0
      const ownScale = scale * (packed & 15)
      const ownMinimum = minimum * (packed >> 4)
      // Half a super-block shares 32 bytes, of which each pair of blocks has two bits.
      const from = at + 16 + (block >> 3) * 32 + (block & 1) * 16
      const shift = ((block >> 1) & 3) * 2
      for (let i = 0; i < 16; i++) out[to + block * 16 + i] = (((bytes[from + i] ?? 0) >> shift) & 3) * ownScale - ownMinimum
    }
  }
}

/** 32 bytes of third bits, 64 bytes of 2 bits, 12 bytes of 6-bit scales, scale f16: (q - 4 where the third bit is clear) (scale - 32) */
export const q3_k: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 110, to += superBlock) {
    const scale = float16At(bytes, at + 108)
    for (let block = 0; block < 16; block++) {
      const low = ((bytes[at + 96 + (block & 7)] ?? 0) >> ((block >> 3) * 4)) & 15
      const high = ((bytes[at + 104 + (block & 3)] ?? 0) >> ((block >> 2) * 2)) & 3
      const own = scale * ((low | (high << 4)) - 32)
      const half = block >> 3
      const place = (block & 1) * 16
      const pair = (block >> 1) & 3
      const from = at + 32 + half * 32 + place
      for (let i = 0; i < 16; i++) {
        const third = ((bytes[at + place + i] ?? 0) >> (half * 4 + pair)) & 1
        out[to + block * 16 + i] = ((((bytes[from + i] ?? 0) >> (pair * 2)) & 3) - (third === 0 ? 4 : 0)) * own
      }
    }
  }
}

/** The 6-bit scale and minimum of one of eight blocks, in 12 bytes. */
export function scaleAndMinimum(bytes: Uint8Array, at: number, block: number): readonly [scale: number, minimum: number] {
  const [a, b] = [bytes[at + (block & 3)] ?? 0, bytes[at + 4 + (block & 3)] ?? 0]
  if (block < 4) return [a & 63, b & 63]
  const both = bytes[at + 8 + (block & 3)] ?? 0
  return [(both & 15) | ((a >> 6) << 4), (both >> 4) | ((b >> 6) << 4)]
}

/** scale f16, minimum f16, 12 bytes of 6-bit scales and minimums, 128 bytes of 4 bits: q scale - minimum */
export const q4_k: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 144, to += superBlock) {
    const [scale, minimum] = [float16At(bytes, at), float16At(bytes, at + 2)]
    for (let block = 0; block < 8; block++) {
      const [times, less] = scaleAndMinimum(bytes, at + 4, block)
      const [ownScale, ownMinimum] = [scale * times, minimum * less]
      const from = at + 16 + (block >> 1) * 32
      const shift = (block & 1) * 4
      for (let i = 0; i < 32; i++) out[to + block * 32 + i] = (((bytes[from + i] ?? 0) >> shift) & 15) * ownScale - ownMinimum
    }
  }
}

/** scale f16, minimum f16, 12 bytes of 6-bit scales and minimums, 32 bytes of fifth bits, 128 bytes of 4 bits: q scale - minimum */
export const q5_k: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 176, to += superBlock) {
    const [scale, minimum] = [float16At(bytes, at), float16At(bytes, at + 2)]
    for (let block = 0; block < 8; block++) {
      const [times, less] = scaleAndMinimum(bytes, at + 4, block)
      const [ownScale, ownMinimum] = [scale * times, minimum * less]
      const from = at + 48 + (block >> 1) * 32
      const shift = (block & 1) * 4
      for (let i = 0; i < 32; i++) {
        const fifth = (((bytes[at + 16 + i] ?? 0) >> block) & 1) << 4
        out[to + block * 32 + i] = ((((bytes[from + i] ?? 0) >> shift) & 15) | fifth) * ownScale - ownMinimum
      }
    }
  }
}

/** 128 bytes of 4 bits, 64 bytes of 2 bits, 16 signed scales, scale f16: (q - 32) scale */
export const q6_k: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 210, to += superBlock) {
    const scale = float16At(bytes, at + 208)
    for (let block = 0; block < 16; block++) {
      const own = scale * int8(bytes[at + 192 + block])
      // Half a super-block has four runs of 32 values: two in the low and two in the high halves of 64 bytes.
      const half = block >> 3
      const run = (block >> 1) & 3
      const place = (block & 1) * 16
      const low = at + half * 64 + (run & 1) * 32 + place
      const high = at + 128 + half * 32 + place
      for (let i = 0; i < 16; i++) {
        const q = (((bytes[low + i] ?? 0) >> ((run >> 1) * 4)) & 15) | ((((bytes[high + i] ?? 0) >> (run * 2)) & 3) << 4)
        out[to + block * 16 + i] = (q - 32) * own
      }
    }
  }
}
