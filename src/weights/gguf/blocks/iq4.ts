/** Four bits that choose one of sixteen levels, closer together around zero. */
import { float16At, type IntegerBlocks } from './block-format.ts'

const table = Int8Array.of(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

/** Blocks of 32: scale f16, 16 bytes: level[q] scale */
export const iq4_nl: IntegerBlocks = {
  elements: 32,
  bytes: 18,
  run: 32,
  hasMinimums: false,
  levels: [-127, 113],
  unpack(bytes, at, levels, scales) {
    scales[0] = float16At(bytes, at)
    choose(bytes, at + 2, levels, 0)
  },
}

/** Super-blocks of 256: scale f16, 16 bits and 4 bytes of 6-bit scales, 128 bytes: level[q] (scale - 32) of each run of 32 */
export const iq4_xs: IntegerBlocks = {
  elements: 256,
  bytes: 136,
  run: 32,
  hasMinimums: false,
  levels: [-127, 113],
  unpack(bytes, at, levels, scales) {
    const scale = float16At(bytes, at)
    const high = (bytes[at + 2] ?? 0) | ((bytes[at + 3] ?? 0) << 8)
    for (let run = 0; run < 8; run++) {
      const low = ((bytes[at + 4 + (run >> 1)] ?? 0) >> ((run & 1) * 4)) & 15
      scales[run] = scale * ((low | (((high >> (run * 2)) & 3) << 4)) - 32)
      choose(bytes, at + 8 + run * 16, levels, run * 32)
    }
  },
}

function choose(bytes: Uint8Array, at: number, levels: Int8Array, to: number): void {
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + i] ?? 0
    levels[to + i] = table[pair & 15] ?? 0
    levels[to + 16 + i] = table[pair >> 4] ?? 0
  }
}
