/** What containers of sound and moving pictures say about themselves before ffmpeg sees them: whether they are whole, and whether they are encrypted. */
import { ModalignError } from '../errors.ts'
import type { ByteSource } from '../io/memory-source.ts'
import { type MediaContainer, sniff, sniffedBytes } from './sniff.ts'

/** The words that error codes begin with. */
export type MediaKind = 'AUDIO' | 'VIDEO'

/**
 * The container of a sound or a film by its first bytes.
 *
 * @throws {ModalignError} `AUDIO_EMPTY` / `VIDEO_EMPTY`, `AUDIO_CONTAINER` / `VIDEO_CONTAINER` with the first bytes and what they look like.
 */
export async function identifyContainer(source: ByteSource, kind: MediaKind): Promise<MediaContainer> {
  const what = kind === 'AUDIO' ? 'a sound' : 'a film'
  if (source.size === 0) throw new ModalignError({ code: `${kind}_EMPTY`, got: '0 bytes', expected: what })
  const bytes = await source.read(0, Math.min(sniffedBytes, source.size))
  const found = sniff(bytes)
  if (found.type === 'container') return found.format === 'mp3' ? await behindTags(source, bytes) : found.format
  const start = Buffer.from(bytes.subarray(0, 16)).toString('hex').replace(/../g, '$& ').trim()
  const looks = found.type === 'image' ? `a picture (${found.format})` : found.type === 'other' ? found.looksLike : undefined
  throw new ModalignError({
    code: `${kind}_CONTAINER`,
    got: looks === undefined ? start : `${start}, which looks like ${looks}`,
    expected: `${what} in MP4, Matroska, AVI, MPEG-TS, Ogg, FLAC, WAV, MP3 or AAC`,
  })
}

/** ID3 tags stand before MP3, but also before AAC and FLAC. */
async function behindTags(source: ByteSource, bytes: Uint8Array): Promise<MediaContainer> {
  if (Buffer.from(bytes.subarray(0, 3)).toString('latin1') !== 'ID3' || bytes.length < 10) return 'mp3'
  const size = [6, 7, 8, 9].reduce((sum, at) => sum * 128 + ((bytes[at] ?? 0) & 127), 0)
  const behind = 10 + size
  if (behind >= source.size) return 'mp3'
  const found = sniff(await source.read(behind, Math.min(sniffedBytes, source.size - behind)))
  return found.type === 'container' && (found.format === 'aac' || found.format === 'flac') ? found.format : 'mp3'
}

const mostBoxes = 10_000
const mostMovieHeader = 2 ** 26

/**
 * Refuses a file that ends before its container says, or that is encrypted. ffmpeg would decode the first as far as it goes and the second to noise.
 *
 * @throws {ModalignError} `AUDIO_TRUNCATED` / `VIDEO_TRUNCATED`, `AUDIO_ENCRYPTED` / `VIDEO_ENCRYPTED`.
 */
export async function checkContainer(
  source: ByteSource,
  format: MediaContainer,
  kind: MediaKind,
  truncated: 'refuse' | 'accept',
): Promise<void> {
  const cut = format === 'mov' ? await checkBoxes(source, kind) : format === 'avi' ? await riffCut(source) : undefined
  if (cut === undefined || truncated === 'accept') return
  throw new ModalignError({
    code: `${kind}_TRUNCATED`,
    got: cut,
    expected: 'a whole file',
    hint: "fetch it again, or accept cut files with truncated: 'accept'",
  })
}

async function riffCut(source: ByteSource): Promise<string | undefined> {
  const size = Buffer.from(await source.read(4, 4)).readUInt32LE(0) + 8
  // 0 and very large sizes: written by a program that was interrupted, or that could not seek back; what there is plays.
  return size > source.size && size < 0x7fffffff ? `${source.size} bytes of ${size}` : undefined
}

/** What is missing of an ISO base media file. Throws for an encrypted one. */
async function checkBoxes(source: ByteSource, kind: MediaKind): Promise<string | undefined> {
  let movie = false
  let fragments = false
  let at = 0
  for (let count = 0; at + 8 <= source.size && count < mostBoxes; count++) {
    const head = Buffer.from(await source.read(at, Math.min(16, source.size - at)))
    const type = head.toString('latin1', 4, 8)
    const short = head.readUInt32BE(0)
    // 0: to the end of the file; 1: a 64-bit size follows.
    const size = short === 0 ? source.size - at : short === 1 && head.length === 16 ? Number(head.readBigUInt64BE(8)) : short
    if (size < 8) return `a box of ${size} bytes at byte ${at}`
    if (at + size > source.size) return `the box ${JSON.stringify(type)} at byte ${at} with ${source.size - at} bytes of ${size}`
    if (type === 'moof') fragments = true
    if (type === 'moov') {
      movie = true
      if (size <= mostMovieHeader && isEncrypted(Buffer.from(await source.read(at, size)))) {
        throw new ModalignError({
          code: `${kind}_ENCRYPTED`,
          got: 'an encrypted file (DRM)',
          expected: 'one that can be decoded without a key',
        })
      }
    }
    at += size
  }
  if (!movie && !fragments) return 'no movie header ("moov"): the end is missing'
  return at === source.size || source.size - at < 8 ? undefined : `more than ${mostBoxes} boxes`
}

/** Sample entries of encrypted tracks are called `encv` and `enca` (ISO/IEC 23001-7) and hold a box `sinf`. */
function isEncrypted(movie: Buffer): boolean {
  for (let at = movie.indexOf('stsd', 0, 'latin1'); at >= 0; at = movie.indexOf('stsd', at + 4, 'latin1')) {
    // Version and flags, number of entries, size of the first, its name.
    if (['encv', 'enca', 'drmi', 'drms'].includes(movie.toString('latin1', at + 16, at + 20))) return true
  }
  return false
}
