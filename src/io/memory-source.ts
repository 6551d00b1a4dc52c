import { ModalignError } from '../errors.ts'

/** Bytes that can be read in ranges: a file, memory, a part of something larger. Free of Node, so that readers built on it run in a browser too. */
export interface ByteSource {
  /** In bytes. */
  readonly size: number
  /** Exactly `length` bytes, as an array of the caller's own. Throws a `ModalignError` where the range leaves the source. */
  read(offset: number, length: number): Promise<Uint8Array>
}

/**
 * Bytes in memory as a {@link ByteSource}. Reads are copies.
 *
 * @example
 * const source = memorySource(new Uint8Array([1, 2, 3]))
 * await source.read(1, 2) // Uint8Array [2, 3]
 */
export function memorySource(bytes: Uint8Array): ByteSource {
  return {
    size: bytes.length,
    async read(offset, length) {
      if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0 || offset + length > bytes.length) {
        throw new ModalignError({
          code: 'FILE_RANGE',
          got: `${length} bytes from byte ${offset}`,
          expected: `a range within ${bytes.length} bytes`,
        })
      }
      return bytes.slice(offset, offset + length)
    },
  }
}
