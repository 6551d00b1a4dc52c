/** How large, long and slow a picture may be. */
import { ModalignError } from '../errors.ts'

export interface ImageLimits {
  /** Of the file. Default 64 MiB. */
  readonly maxBytes: number
  /** Width times height, from the header, before anything is decoded. Default 100 million. */
  readonly maxPixels: number
  /** Longer edge over shorter edge. Default 200: a line of pixels says nothing, and its resized edge would vanish. */
  readonly maxAspectRatio: number
  /** Wall clock for reading, and again for decoding. Default 30 s. */
  readonly timeoutMs: number
}

export const defaultImageLimits: ImageLimits = { maxBytes: 2 ** 26, maxPixels: 100_000_000, maxAspectRatio: 200, timeoutMs: 30_000 }

/** Size and shape, before anything is decoded. */
export function checkDimensions(width: number, height: number, limits: ImageLimits): void {
  const got = `${width} x ${height} pixels`
  if (!(width > 0 && height > 0)) throw new ModalignError({ code: 'IMAGE_DIMENSIONS', got, expected: 'at least 1 x 1' })
  if (width * height > limits.maxPixels) {
    throw new ModalignError({ code: 'IMAGE_TOO_LARGE', got, expected: `at most ${limits.maxPixels} pixels` })
  }
  if (Math.max(width, height) > limits.maxAspectRatio * Math.min(width, height)) {
    throw new ModalignError({ code: 'IMAGE_ASPECT', got, expected: `edges of at most ${limits.maxAspectRatio} : 1` })
  }
}
