import { createHash, hash as hashOf } from 'node:crypto'
import { release } from '../io/release.ts'
import { openMedia } from '../media/source.ts'
import type { MediaSource } from '../model/contracts.ts'
import type { ReadOptions } from '../model/media-reader.ts'

const chunkBytes = 2 ** 22
/** Of what is hashed, not of what is decoded, which has limits of its own. */
const largestBytes = 2 ** 40
const timeoutMs = 60_000

/** SHA-256 of a medium's original bytes, in hex; files are read in pieces. @throws what opening a medium throws */
export async function contentDigest(source: MediaSource, { root, signal }: ReadOptions): Promise<string> {
  const limits = { root, signal, maxBytes: largestBytes, tooLargeCode: 'MEDIA_TOO_LARGE', timeoutMs }
  const { bytes, whole } = await openMedia(source, limits, chunkBytes)
  if (whole !== undefined) {
    const digest = hashOf('sha256', whole, 'hex')
    // A file's bytes were read for this alone; others are the caller's.
    if (typeof source === 'string') release([whole.buffer])
    return digest
  }
  const hash = createHash('sha256')
  for (let offset = 0; offset < bytes.size; offset += chunkBytes) {
    signal?.throwIfAborted()
    hash.update(await bytes.read(offset, Math.min(chunkBytes, bytes.size - offset)))
  }
  return hash.digest('hex')
}
