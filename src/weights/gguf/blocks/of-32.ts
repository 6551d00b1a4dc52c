/**
 * Blocks of 32 values with one float16 scale, and in the `_1` formats one float16 minimum. The low half of byte i is value i, the high half value 16 + i; the fifth
 * bits lie apart, bit i for value i.
 */
import { type Dequantise, float16At, int8 } from './block-format.ts'

const blockElements = 32

/** scale f16, 16 bytes: (q - 8) scale */
export const q4_0: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 18, to += blockElements) {
    const scale = float16At(bytes, at)
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 2 + i] ?? 0
      out[to + i] = ((pair & 15) - 8) * scale
      out[to + 16 + i] = ((pair >> 4) - 8) * scale
    }
  }
}

/** scale f16, minimum f16, 16 bytes: q scale + minimum */
export const q4_1: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 20, to += blockElements) {
    const scale = float16At(bytes, at)
    const minimum = float16At(bytes, at + 2)
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 4 + i] ?? 0
      out[to + i] = (pair & 15) * scale + minimum
      out[to + 16 + i] = (pair >> 4) * scale + minimum
    }
  }
}

/** scale f16, 32 fifth bits, 16 bytes: (q - 16) scale */
export const q5_0: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 22, to += blockElements) {
    const scale = float16At(bytes, at)
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 6 + i] ?? 0
      out[to + i] = ((pair & 15) + fifthBit(bytes, at + 2, i) - 16) * scale
      out[to + 16 + i] = ((pair >> 4) + fifthBit(bytes, at + 2, 16 + i) - 16) * scale
    }
  }
}

/** scale f16, minimum f16, 32 fifth bits, 16 bytes: q scale + minimum */
export const q5_1: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 24, to += blockElements) {
    const scale = float16At(bytes, at)
    const minimum = float16At(bytes, at + 2)
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 8 + i] ?? 0
      out[to + i] = ((pair & 15) + fifthBit(bytes, at + 4, i)) * scale + minimum
      out[to + 16 + i] = ((pair >> 4) + fifthBit(bytes, at + 4, 16 + i)) * scale + minimum
    }
  }
}

/** scale f16, 32 signed bytes: q scale */
export const q8_0: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 34, to += blockElements) {
    const scale = float16At(bytes, at)
    for (let i = 0; i < 32; i++) out[to + i] = int8(bytes[at + 2 + i]) * scale
  }
}

/** 16 where the bit is set. */
function fifthBit(bytes: Uint8Array, at: number, index: number): number {
  return (((bytes[at + (index >> 3)] ?? 0) >> (index & 7)) & 1) << 4
}
