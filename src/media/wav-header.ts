/** The structure of a WAV file: RIFF, RIFX and RF64/BW64, read chunk by chunk without believing any size. */
import { ModalignError } from '../errors.ts'
import type { ByteSource } from '../io/memory-source.ts'

/** How samples are stored. `other`: for ffmpeg. */
export type WavEncoding = 'pcm' | 'float' | 'alaw' | 'mulaw' | 'other'

export interface WavHeader {
  readonly encoding: WavEncoding
  readonly bigEndian: boolean
  readonly channels: number
  readonly sampleRateHz: number
  /** Of the container of one sample: 20-bit samples lie in the high bits of 24. */
  readonly bitsPerSample: number
  readonly blockAlign: number
  /** Where the samples lie. */
  readonly dataOffset: number
  readonly dataBytes: number
  /** The size of the samples was not written (a stream): they go to the end of the file. */
  readonly openEnded: boolean
  /** The file ends before its samples do, and that was accepted. */
  readonly truncated: boolean
}

const formatTags: ReadonlyMap<number, WavEncoding> = new Map([
  [1, 'pcm'],
  [3, 'float'],
  [6, 'alaw'],
  [7, 'mulaw'],
])
const extensible = 0xfffe
/** The rest of the GUIDs whose first two bytes are a format tag: KSDATAFORMAT_SUBTYPE_*. */
const subtypeRest = '000000001000800000aa00389b71'
const mostChunks = 10_000
const unknownSize = 0xffffffff

/**
 * @param truncated whether samples that lead past the end of the file are refused (default) or cut there
 * @throws {ModalignError} `AUDIO_STRUCTURE` naming chunk and byte; `AUDIO_TRUNCATED` where a size leads past the end of the file.
 *
 * @example
 * const { sampleRateHz, channels } = await readWavHeader(await fileSource('speech.wav'))
 */
export async function readWavHeader(source: ByteSource, truncated: 'refuse' | 'accept' = 'refuse'): Promise<WavHeader> {
  const head = Buffer.from(await source.read(0, Math.min(12, source.size)))
  const form = head.toString('latin1', 0, 4)
  if (head.length < 12) throw structure(`${head.length} bytes`, 'a whole RIFF header')
  if (!['RIFF', 'RIFX', 'RF64', 'BW64'].includes(form) || head.toString('latin1', 8, 12) !== 'WAVE')
    throw structure(`${JSON.stringify(form)} and ${JSON.stringify(head.toString('latin1', 8, 12))}`, 'RIFF, RIFX, RF64 or BW64 with WAVE')
  const bigEndian = form === 'RIFX'
  let format: Format | undefined
  let longData: number | undefined
  let at = 12
  for (let count = 0; at + 8 <= source.size; count++) {
    if (count === mostChunks) throw structure(`more than ${mostChunks} chunks`, 'the samples before that')
    const start = Buffer.from(await source.read(at, 8))
    const id = start.toString('latin1', 0, 4)
    const size = bigEndian ? start.readUInt32BE(4) : start.readUInt32LE(4)
    const place = `chunk ${JSON.stringify(id)} at byte ${at}`
    const content = at + 8
    if (id === 'data') {
      if (format === undefined) throw structure(place, 'a chunk "fmt " before the samples')
      return { ...format, bigEndian, dataOffset: content, ...dataSize(size, longData, source.size - content, place, truncated) }
    }
    if (content + size > source.size) throw cutOff(`${place}, ${size} bytes of ${source.size - content}`)
    if (id === 'fmt ') {
      if (format !== undefined) throw structure(`a second ${place}`, 'one chunk "fmt "')
      format = readFormat(Buffer.from(await source.read(content, Math.min(size, 40))), bigEndian, place)
    } else if (id === 'ds64') {
      if (size < 28) throw structure(`${place} of ${size} bytes`, 'at least 28 bytes')
      const sizes = Buffer.from(await source.read(content, 28))
      longData = Number(sizes.readBigUInt64LE(8))
    }
    at = await nextChunk(source, content, size)
  }
  throw format === undefined ? structure('no chunk "fmt "', 'one before the samples') : structure('no chunk "data"', 'samples')
}

/** Chunks of odd length are padded with a zero byte; some writers forget it. */
async function nextChunk(source: ByteSource, content: number, size: number): Promise<number> {
  const end = content + size
  if (size % 2 === 0 || end + 1 >= source.size) return end
  const [pad] = await source.read(end, 1)
  return pad === 0 ? end + 1 : end
}

function dataSize(
  size: number,
  longSize: number | undefined,
  rest: number,
  place: string,
  truncated: 'refuse' | 'accept',
): Pick<WavHeader, 'dataBytes' | 'openEnded' | 'truncated'> {
  // A writer that cannot seek back leaves 0xFFFFFFFF, or 0 with samples behind it.
  if ((size === unknownSize && longSize === undefined) || (size === 0 && rest > 0))
    return { dataBytes: rest, openEnded: true, truncated: false }
  const said = size === unknownSize && longSize !== undefined ? longSize : size
  if (said > rest && truncated === 'refuse') throw cutOff(`${place}, ${said} bytes of ${rest}`)
  return { dataBytes: Math.min(said, rest), openEnded: false, truncated: said > rest }
}

type Format = Pick<WavHeader, 'encoding' | 'channels' | 'sampleRateHz' | 'bitsPerSample' | 'blockAlign'>

function readFormat(bytes: Buffer, bigEndian: boolean, place: string): Format {
  if (bytes.length < 16) throw structure(`${place} of ${bytes.length} bytes`, 'at least 16 bytes')
  const u16 = (at: number): number => (bigEndian ? bytes.readUInt16BE(at) : bytes.readUInt16LE(at))
  const u32 = (at: number): number => (bigEndian ? bytes.readUInt32BE(at) : bytes.readUInt32LE(at))
  const tag = u16(0)
  const named = formatTags.get(tag === extensible && bytes.length >= 40 && bytes.toString('hex', 26, 40) === subtypeRest ? u16(24) : tag)
  const [channels, sampleRateHz, blockAlign, bitsPerSample] = [u16(2), u32(4), u16(12), u16(14)]
  return { encoding: named ?? 'other', channels, sampleRateHz, blockAlign, bitsPerSample }
}

function structure(got: string, expected: string): ModalignError {
  return new ModalignError({ code: 'AUDIO_STRUCTURE', got, expected })
}

function cutOff(got: string): ModalignError {
  return new ModalignError({ code: 'AUDIO_TRUNCATED', got, expected: 'a whole file', hint: 'fetch or record it again' })
}
