/**
 * Samples of a WAV file as floats, piece by piece, so that a day of sound needs no more memory than a minute. wavefile would unpack them, too, but takes the whole
 * file at once and 0.2 to 1 microsecond a sample where this takes 0.03; it gives the two companding curves, and the tests compare with it.
 */
import { createRequire } from 'node:module'
import { ModalignError } from '../errors.ts'
import type { ByteSource } from '../io/memory-source.ts'
import type { WavHeader } from './wav-header.ts'

/** Frames unpacked at once. */
const pieceFrames = 2 ** 16
const pcmBits = [8, 12, 16, 20, 24, 32]

/** How one sample is unpacked: its size, and its value from -1 to 1 at a place. */
export interface Unpacking {
  readonly bytes: number
  readonly read: (view: DataView, at: number, littleEndian: boolean) => number
}

const integers: Readonly<Record<number, Unpacking['read']>> = {
  1: (view, at) => (view.getUint8(at) - 128) / 2 ** 7,
  2: (view, at, little) => view.getInt16(at, little) / 2 ** 15,
  3: (view, at, little) =>
    (little ? view.getInt8(at + 2) * 65_536 + view.getUint16(at, true) : view.getInt8(at) * 65_536 + view.getUint16(at + 1)) / 2 ** 23,
  4: (view, at, little) => view.getInt32(at, little) / 2 ** 31,
}
const floats: Readonly<Record<number, Unpacking['read']>> = {
  4: (view, at, little) => view.getFloat32(at, little),
  8: (view, at, little) => view.getFloat64(at, little),
}

/**
 * How the samples of a file are unpacked; undefined where that is ffmpeg's work (ADPCM, GSM, MPEG in WAV ...).
 *
 * @throws {ModalignError} `AUDIO_BITS` for sizes of samples that nobody writes.
 */
export function unpackingOf({ encoding, channels, bitsPerSample, blockAlign }: WavHeader): Unpacking | undefined {
  if (encoding === 'other') return undefined
  const bytes = blockAlign / channels
  const refuse = (): ModalignError =>
    new ModalignError({
      code: 'AUDIO_BITS',
      got: `${bitsPerSample} bits a sample in blocks of ${blockAlign} bytes for ${channels} channels (${encoding})`,
      expected: 'PCM of 8, 12, 16, 20, 24 or 32 bits, float of 32 or 64, A-law or mu-law of 8, in whole bytes',
    })
  if (encoding === 'alaw' || encoding === 'mulaw') {
    if (bytes !== 1 || bitsPerSample !== 8) throw refuse()
    const table = companding(encoding)
    return { bytes, read: (view, at) => (table[view.getUint8(at)] ?? 0) / 2 ** 15 }
  }
  const read = (encoding === 'float' ? floats : integers)[bytes]
  // Fewer bits than the container lie in its high ones, so the container's scale is theirs.
  const fits =
    encoding === 'float'
      ? bytes * 8 === bitsPerSample
      : pcmBits.includes(bitsPerSample) && (bytes === Math.ceil(bitsPerSample / 8) || (bytes === 4 && bitsPerSample >= 20))
  if (read === undefined || !fits) throw refuse()
  return { bytes, read }
}

/**
 * Frames `[from, to)` mixed to one channel (the mean of all), integers divided by their full scale as libsndfile and torchaudio do, in pieces.
 *
 * @throws {ModalignError} what reading throws: `FILE_CHANGED` and its like.
 */
export async function* monoPieces(
  source: ByteSource,
  header: WavHeader,
  unpacking: Unpacking,
  from: number,
  to: number,
): AsyncGenerator<Float32Array> {
  for (let frame = from; frame < to; frame += pieceFrames) {
    const frames = Math.min(pieceFrames, to - frame)
    const bytes = await source.read(header.dataOffset + frame * header.blockAlign, frames * header.blockAlign)
    yield mono(bytes, header, unpacking)
  }
}

function mono(bytes: Uint8Array, { bigEndian, channels }: WavHeader, { bytes: width, read }: Unpacking): Float32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const frames = bytes.length / (channels * width)
  const samples = new Float32Array(frames)
  let at = 0
  // Each channel is rounded to float32 first: what a stereo reader would give, averaged.
  for (let frame = 0; frame < frames; frame++) {
    let sum = 0
    for (let channel = 0; channel < channels; channel++) {
      sum += Math.fround(read(view, at, !bigEndian))
      at += width
    }
    samples[frame] = sum / channels
  }
  return samples
}

/** 16-bit values of the 256 codes, from wavefile, which knows the two curves of ITU-T G.711. */
const tables = new Map<'alaw' | 'mulaw', Float64Array>()

function companding(law: 'alaw' | 'mulaw'): Float64Array {
  const known = tables.get(law)
  if (known !== undefined) return known
  // A CommonJS module that calls itself an ES module: only `require` gives the same everywhere.
  const { WaveFile }: typeof import('wavefile') = createRequire(import.meta.url)('wavefile')
  const wav = new WaveFile()
  wav.fromScratch(
    1,
    8_000,
    law === 'alaw' ? '8a' : '8m',
    Array.from({ length: 256 }, (_, code) => code),
  )
  if (law === 'alaw') wav.fromALaw()
  else wav.fromMuLaw()
  const table = wav.getSamples(true, Float64Array)
  tables.set(law, table)
  return table
}
