/**
 * Blocks of 32 values with one float16 scale, and in the `_1` formats one float16 minimum. The low half of byte i is value i, the high half value 16 + i; the fifth
 * bits lie apart, bit i for value i.
 */
import { float16At, type IntegerBlocks, int8 } from './block-format.ts'

/** scale f16, 16 bytes: (q - 8) scale */
export const q4_0: IntegerBlocks = {
  elements: 32,
  bytes: 18,
  run: 32,
  hasMinimums: false,
  levels: [-8, 7],
  unpack(bytes, at, levels, scales) {
    scales[0] = float16At(bytes, at)
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 2 + i] ?? 0
      levels[i] = (pair & 15) - 8
      levels[16 + i] = (pair >> 4) - 8
    }
  },
}

/** scale f16, minimum f16, 16 bytes: q scale + minimum */
export const q4_1: IntegerBlocks = {
  elements: 32,
  bytes: 20,
  run: 32,
  hasMinimums: true,
  levels: [0, 15],
  unpack(bytes, at, levels, scales, minimums) {
    scales[0] = float16At(bytes, at)
    minimums[0] = float16At(bytes, at + 2)
    for (let i = 0; i < 16; i++) {
      const pair = bytes[at + 4 + i] ?? 0
      levels[i] = pair & 15
      levels[16 + i] = pair >> 4
    }
  },
}

/** scale f16, 32 fifth bits, 16 bytes: (q - 16) scale */
export const q5_0: IntegerBlocks = {
  elements: 32,
  bytes: 22,
  run: 32,
  hasMinimums: false,
  levels: [-16, 15],
  unpack(bytes, at, levels, scales) {
    scales[0] = float16At(bytes, at)
    fiveBits(bytes, at + 2, levels, -16)
  },
}

/** scale f16, minimum f16, 32 fifth bits, 16 bytes: q scale + minimum */
export const q5_1: IntegerBlocks = {
  elements: 32,
  bytes: 24,
  run: 32,
  hasMinimums: true,
  levels: [0, 31],
  unpack(bytes, at, levels, scales, minimums) {
    scales[0] = float16At(bytes, at)
    minimums[0] = float16At(bytes, at + 2)
    fiveBits(bytes, at + 4, levels, 0)
  },
}

/** scale f16, 32 signed bytes: q scale */
export const q8_0: IntegerBlocks = {
  elements: 32,
  bytes: 34,
  run: 32,
  hasMinimums: false,
  levels: [-128, 127],
  unpack(bytes, at, levels, scales) {
    scales[0] = float16At(bytes, at)
    for (let i = 0; i < 32; i++) levels[i] = int8(bytes[at + 2 + i])
  },
}

/** 32 fifth bits, then 16 bytes. */
function fiveBits(bytes: Uint8Array, at: number, levels: Int8Array, plus: number): void {
  const fifth = (index: number): number => (((bytes[at + (index >> 3)] ?? 0) >> (index & 7)) & 1) << 4
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + 4 + i] ?? 0
    levels[i] = (pair & 15) + fifth(i) + plus
    levels[16 + i] = (pair >> 4) + fifth(16 + i) + plus
  }
}
