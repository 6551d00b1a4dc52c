import { fromFloat16Bits } from '../../float16.ts'

/**
 * Writes the float32 values of whole blocks. Every product of these formats is exact in float32 and every sum is rounded once, so the results are those of
 * llama.cpp's reference formulas (ggml/src/ggml-quants.c) bit for bit.
 *
 * @param bytes a whole number of blocks
 * @param out room for exactly their elements
 */
export type Dequantise = (bytes: Uint8Array, out: Float32Array) => void

/** The float16 at a place of the bytes, little-endian. */
export function float16At(bytes: Uint8Array, at: number): number {
  return fromFloat16Bits((bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8))
}

export function int8(byte: number | undefined): number {
  return ((byte ?? 0) << 24) >> 24
}
