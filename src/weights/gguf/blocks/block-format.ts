import { fromFloat16Bits } from '../../float16.ts'

/**
 * Writes the float32 values of whole blocks.
 *
 * @param bytes a whole number of blocks
 * @param out room for exactly their elements
 */
export type Dequantise = (bytes: Uint8Array, out: Float32Array) => void

/**
 * A storage type whose values are integers with a scale, and a minimum where it has them, for each run of `run` values: value = level scale + minimum. Every product is
 * exact in float32 and every sum is rounded once, so that the values are those of llama.cpp's reference formulas (ggml/src/ggml-quants.c) bit for bit.
 */
export interface IntegerBlocks {
  /** Values and bytes of one block of the file. */
  readonly elements: number
  readonly bytes: number
  /** Values that share a scale. */
  readonly run: 16 | 32
  readonly hasMinimums: boolean
  /** The smallest and the largest level. */
  readonly levels: readonly [number, number]
  /** Takes the block at `at` apart: levels from index 0, one scale (and minimum) for each run from index 0. */
  unpack(bytes: Uint8Array, at: number, levels: Int8Array, scales: Float32Array, minimums: Float32Array): void
}

/** The float32 values of integer blocks. */
export function dequantiser(format: IntegerBlocks): Dequantise {
  const { elements, run, hasMinimums } = format
  return (bytes, out) => {
    const levels = new Int8Array(elements)
    const [scales, minimums] = [new Float32Array(elements / run), new Float32Array(elements / run)]
    for (let at = 0, to = 0; to < out.length; at += format.bytes, to += elements) {
      format.unpack(bytes, at, levels, scales, minimums)
      for (let index = 0; index < elements; index++) {
        const place = (index / run) | 0
        const scaled = (levels[index] ?? 0) * (scales[place] ?? 0)
        out[to + index] = hasMinimums ? scaled + (minimums[place] ?? 0) : scaled
      }
    }
  }
}

/** The float16 at a place of the bytes, little-endian. */
export function float16At(bytes: Uint8Array, at: number): number {
  return fromFloat16Bits((bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8))
}

export function int8(byte: number | undefined): number {
  return ((byte ?? 0) << 24) >> 24
}
