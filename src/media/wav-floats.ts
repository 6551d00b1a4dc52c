/** The WAV of 32-bit floats that ffmpeg writes into a pipe, read as it comes and mixed to one channel. */
import { ModalignError } from '../errors.ts'
import { memorySource } from '../io/memory-source.ts'
import { readWavHeader } from './wav-header.ts'

export interface FloatStream {
  readonly sampleRateHz: number
  readonly channels: number
  /** The mean of the channels, in pieces. */
  mono(): AsyncGenerator<Float32Array>
}

/** Far more than the header that ffmpeg writes. */
const headerBytes = 4_096

/** Undefined where nothing comes at all. */
export async function floatStream(chunks: AsyncIterable<Uint8Array>): Promise<FloatStream | undefined> {
  const iterator = chunks[Symbol.asyncIterator]()
  let start = Buffer.alloc(0)
  let ended = false
  while (start.length < headerBytes && !ended) {
    const { done, value } = await iterator.next()
    if (done === true) ended = true
    else start = Buffer.concat([start, value])
  }
  if (start.length === 0) return undefined
  const { sampleRateHz, channels, encoding, bitsPerSample, dataOffset } = await readWavHeader(memorySource(start), 'accept')
  if (encoding !== 'float' || bitsPerSample !== 32) {
    throw new ModalignError({ code: 'FFMPEG_OUTPUT', got: `${encoding} of ${bitsPerSample} bits`, expected: 'floats of 32 bits' })
  }
  const frameBytes = channels * 4
  return {
    sampleRateHz,
    channels,
    async *mono() {
      let rest: Uint8Array = start.subarray(dataOffset)
      for (;;) {
        const frames = Math.floor(rest.length / frameBytes)
        if (frames > 0) yield mixed(rest, frames, channels)
        rest = rest.subarray(frames * frameBytes)
        if (ended) return
        const { done, value } = await iterator.next()
        if (done === true) return
        rest = rest.length === 0 ? value : Buffer.concat([rest, value])
      }
    },
  }
}

function mixed(bytes: Uint8Array, frames: number, channels: number): Float32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const samples = new Float32Array(frames)
  for (let frame = 0, at = 0; frame < frames; frame++) {
    let sum = 0
    for (let channel = 0; channel < channels; channel++, at += 4) sum += view.getFloat32(at, true)
    samples[frame] = sum / channels
  }
  return samples
}
