/** Four bits that choose one of sixteen values, closer together around zero. */
import { type Dequantise, float16At } from './block-format.ts'

const levels = Int8Array.of(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

/** Blocks of 32: scale f16, 16 bytes: level[q] scale */
export const iq4_nl: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 18, to += 32) run(bytes, at + 2, float16At(bytes, at), out, to)
}

/** Super-blocks of 256: scale f16, 16 bits and 4 bytes of 6-bit scales, 128 bytes: level[q] (scale - 32) of each block of 32 */
export const iq4_xs: Dequantise = (bytes, out) => {
  for (let at = 0, to = 0; to < out.length; at += 136, to += 256) {
    const scale = float16At(bytes, at)
    const high = (bytes[at + 2] ?? 0) | ((bytes[at + 3] ?? 0) << 8)
    for (let block = 0; block < 8; block++) {
      const low = ((bytes[at + 4 + (block >> 1)] ?? 0) >> ((block & 1) * 4)) & 15
      const own = scale * ((low | (((high >> (block * 2)) & 3) << 4)) - 32)
      run(bytes, at + 8 + block * 16, own, out, to + block * 32)
    }
  }
}

function run(bytes: Uint8Array, at: number, scale: number, out: Float32Array, to: number): void {
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + i] ?? 0
    out[to + i] = (levels[pair & 15] ?? 0) * scale
    out[to + 16 + i] = (levels[pair >> 4] ?? 0) * scale
  }
}
