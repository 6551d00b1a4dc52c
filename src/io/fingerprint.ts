import { createHash, type Hash } from 'node:crypto'
import type { ByteSource } from './memory-source.ts'

const mebibyte = 2 ** 20
const blockBytes = 65_536
const blockCount = 64
const chunkBytes = 8 * mebibyte

/**
 * SHA-256 over the header, the size, the first and last MiB and 64 evenly spaced blocks of 64 KiB: what a file of gigabytes is recognised by in
 * milliseconds. Sources of up to 6 MiB are hashed whole. It tells versions of a model apart; against someone who alters a file on purpose use {@link fullHash}.
 *
 * @param header bytes that identify the content best (the safetensors header); optional
 * @returns 64 hexadecimal digits
 * @example
 * const id = await fingerprint(await fileSource('model.safetensors'))
 */
export async function fingerprint(source: ByteSource, header: Uint8Array = new Uint8Array(0)): Promise<string> {
  const hash = createHash('sha256').update('modalign fingerprint 1\n')
  updateSized(hash, header)
  hash.update(uint64(source.size))
  if (source.size <= 2 * mebibyte + blockCount * blockBytes) {
    await updateAll(hash, source)
  } else {
    hash.update(await source.read(0, mebibyte))
    const room = source.size - 2 * mebibyte - blockBytes
    for (let block = 0; block < blockCount; block++) {
      hash.update(await source.read(mebibyte + Math.floor((room * block) / (blockCount - 1)), blockBytes))
    }
    hash.update(await source.read(source.size - mebibyte, mebibyte))
  }
  return hash.digest('hex')
}

/**
 * SHA-256 of every byte (the same as `sha256sum`), read in pieces of 8 MiB.
 *
 * @returns 64 hexadecimal digits
 * @example
 * const digest = await fullHash(await fileSource('model.safetensors'))
 */
export async function fullHash(source: ByteSource): Promise<string> {
  const hash = createHash('sha256')
  await updateAll(hash, source)
  return hash.digest('hex')
}

async function updateAll(hash: Hash, source: ByteSource): Promise<void> {
  for (let offset = 0; offset < source.size; offset += chunkBytes)
    hash.update(await source.read(offset, Math.min(chunkBytes, source.size - offset)))
}

/** The length first, so that the end of the header cannot be mistaken for the beginning of what follows. */
function updateSized(hash: Hash, bytes: Uint8Array): void {
  hash.update(uint64(bytes.length)).update(bytes)
}

function uint64(value: number): Uint8Array {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true)
  return bytes
}
