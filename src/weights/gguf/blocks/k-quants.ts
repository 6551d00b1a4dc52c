/**
 * The K formats: super-blocks of 256 values, cut into 16 runs of 16 or 8 runs of 32, whose scales (and minimums) are themselves integers times a float16 of the
 * super-block.
 */
import { float16At, type IntegerBlocks, int8 } from './block-format.ts'

/** 16 bytes (low half the scale, high half the minimum of a run of 16), 64 bytes of 2 bits, scale f16, minimum f16: q scale - minimum */
export const q2_k: IntegerBlocks = {
  elements: 256,
  bytes: 84,
  run: 16,
  hasMinimums: true,
  levels: [0, 3],
  unpack(bytes, at, levels, scales, minimums) {
    const [scale, minimum] = [float16At(bytes, at + 80), float16At(bytes, at + 82)]
    for (let run = 0; run < 16; run++) {
      const packed = bytes[at + run] ?? 0
      scales[run] = scale * (packed & 15)
      minimums[run] = -(minimum * (packed >> 4))
      // Half a super-block shares 32 bytes, of which each pair of runs has two bits.
      const from = at + 16 + (run >> 3) * 32 + (run & 1) * 16
      const shift = ((run >> 1) & 3) * 2
      for (let i = 0; i < 16; i++) levels[run * 16 + i] = ((bytes[from + i] ?? 0) >> shift) & 3
    }
  },
}

/** 32 bytes of third bits, 64 bytes of 2 bits, 12 bytes of 6-bit scales, scale f16: (q - 4 where the third bit is clear) (scale - 32) */
export const q3_k: IntegerBlocks = {
  elements: 256,
  bytes: 110,
  run: 16,
  hasMinimums: false,
  levels: [-4, 3],
  unpack(bytes, at, levels, scales) {
    const scale = float16At(bytes, at + 108)
    for (let run = 0; run < 16; run++) {
      const low = ((bytes[at + 96 + (run & 7)] ?? 0) >> ((run >> 3) * 4)) & 15
      const high = ((bytes[at + 104 + (run & 3)] ?? 0) >> ((run >> 2) * 2)) & 3
      scales[run] = scale * ((low | (high << 4)) - 32)
      const [half, place, pair] = [run >> 3, (run & 1) * 16, (run >> 1) & 3]
      const from = at + 32 + half * 32 + place
      for (let i = 0; i < 16; i++) {
        const third = ((bytes[at + place + i] ?? 0) >> (half * 4 + pair)) & 1
        levels[run * 16 + i] = (((bytes[from + i] ?? 0) >> (pair * 2)) & 3) - (third === 0 ? 4 : 0)
      }
    }
  },
}

/** 12 bytes: a 6-bit scale and a 6-bit minimum for each of eight runs. */
function scalesAndMinimums(bytes: Uint8Array, at: number, scales: Float32Array, minimums: Float32Array): void {
  const [scale, minimum] = [float16At(bytes, at), float16At(bytes, at + 2)]
  for (let run = 0; run < 8; run++) {
    const [a, b] = [bytes[at + 4 + (run & 3)] ?? 0, bytes[at + 8 + (run & 3)] ?? 0]
    const both = bytes[at + 12 + (run & 3)] ?? 0
    scales[run] = scale * (run < 4 ? a & 63 : (both & 15) | ((a >> 6) << 4))
    minimums[run] = -(minimum * (run < 4 ? b & 63 : (both >> 4) | ((b >> 6) << 4)))
  }
}

/** scale f16, minimum f16, 12 bytes of 6-bit scales and minimums, 128 bytes of 4 bits: q scale - minimum */
export const q4_k: IntegerBlocks = {
  elements: 256,
  bytes: 144,
  run: 32,
  hasMinimums: true,
  levels: [0, 15],
  unpack(bytes, at, levels, scales, minimums) {
    scalesAndMinimums(bytes, at, scales, minimums)
    for (let run = 0; run < 8; run++) {
      const from = at + 16 + (run >> 1) * 32
      const shift = (run & 1) * 4
      for (let i = 0; i < 32; i++) levels[run * 32 + i] = ((bytes[from + i] ?? 0) >> shift) & 15
    }
  },
}

/** scale f16, minimum f16, 12 bytes of 6-bit scales and minimums, 32 bytes of fifth bits, 128 bytes of 4 bits: q scale - minimum */
export const q5_k: IntegerBlocks = {
  elements: 256,
  bytes: 176,
  run: 32,
  hasMinimums: true,
  levels: [0, 31],
  unpack(bytes, at, levels, scales, minimums) {
    scalesAndMinimums(bytes, at, scales, minimums)
    for (let run = 0; run < 8; run++) {
      const from = at + 48 + (run >> 1) * 32
      const shift = (run & 1) * 4
      for (let i = 0; i < 32; i++) {
        const fifth = (((bytes[at + 16 + i] ?? 0) >> run) & 1) << 4
        levels[run * 32 + i] = (((bytes[from + i] ?? 0) >> shift) & 15) | fifth
      }
    }
  },
}

/** 128 bytes of 4 bits, 64 bytes of 2 bits, 16 signed scales, scale f16: (q - 32) scale */
export const q6_k: IntegerBlocks = {
  elements: 256,
  bytes: 210,
  run: 16,
  hasMinimums: false,
  levels: [-32, 31],
  unpack(bytes, at, levels, scales) {
    const scale = float16At(bytes, at + 208)
    for (let run = 0; run < 16; run++) {
      scales[run] = scale * int8(bytes[at + 192 + run])
      // Half a super-block has four stretches of 32 values: two in the low and two in the high halves of 64 bytes.
      const [half, stretch, place] = [run >> 3, (run >> 1) & 3, (run & 1) * 16]
      const low = at + half * 64 + (stretch & 1) * 32 + place
      const high = at + 128 + half * 32 + place
      for (let i = 0; i < 16; i++) {
        const q = (((bytes[low + i] ?? 0) >> ((stretch >> 1) * 4)) & 15) | ((((bytes[high + i] ?? 0) >> (stretch * 2)) & 3) << 4)
        levels[run * 16 + i] = q - 32
      }
    }
  },
}
