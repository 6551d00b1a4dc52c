/**
 * The passes of `resize-loops.ts` with WebAssembly's vector instructions, four times as fast and bit for bit the same: integer arithmetic modulo 2^32, then a shift
 * and a clamp. The program is `resize-simd.wat`, assembled (`wat2wasm resize-simd.wat`, wabt 1.0) into the text below.
 */
import { grown, webAssembly } from '../webassembly.ts'
import { keptBytes, pictureMemory } from './picture-memory.ts'
import type { FixedTaps } from './resize-kernels.ts'
import type { ColumnsPass, RowsPass } from './resize-loops.ts'

const program =
  'AGFzbQEAAAABHAJgC39/f39/f39/f39/AGAKf39/f39/f39/fwACEgEGc2hhcmVkBm1lbW9yeQIAAQMDAgABBxsDBm1lbW9yeQIABHJvd3MAAAdjb2x1bW5zAAEKmwQC3AEDBH8CewF/' +
  'IAn9ESEQIAMhEQJAIAJFDQADQEEAIQsCQANAIAsgBE8NASAQIQ8gACAFIAtBAnRqKAIAQQNsaiEMIAcgCyAIbGohDSANIAYgC0ECdGooAgBBAnRqIQ4CQANAIA0gDk8NASAPIAz9XAIA' +
  '/YkB/akBIA39CQIA/bUB/a4BIQ8gDEEDaiEMIA1BBGohDQwACwsgDyAK/awBIQ8gDyAP/YUBIQ8gESAPIA/9Zv1aAgAAIBFBA2ohESALQQFqIQsMAAsLIAAgAWohACACQQFrIQIgAg0A' +
  'CwsLugICB38JeyAI/REhFQJAA0AgCiADTw0BIAAgBCAKQQJ0aigCACABbGohDSAGIAogB2xqIQ8gDyAFIApBAnRqKAIAQQJ0aiEQQQAhCwJAA0AgCyABTw0BIBUhFiAVIRcgFSEYIBUh' +
  'GSANIAtqIQwgDyEOAkADQCAOIBBPDQEgDv0JAgAhESAM/QAEACESIBL9iQEhEyAS/YoBIRQgFiAT/akBIBH9tQH9rgEhFiAXIBP9qgEgEf21Af2uASEXIBggFP2pASAR/bUB/a4BIRgg' +
  'GSAU/aoBIBH9tQH9rgEhGSAMIAFqIQwgDkEEaiEODAALCyACIAtqIBYgCf2sASAXIAn9rAH9hQEgGCAJ/awBIBkgCf2sAf2FAf1m/QsEACALQRBqIQsMAAsLIAIgAWohAiAKQQFqIQoM' +
  'AAsLCw=='

/** A thread keeps this much at most; larger pictures take the plain loops, whose memory goes when they are done. */
const mostBytes = 2 ** 26
/** Vectors reach beyond the last pixel. */
const overhang = 16

const passes = webAssembly(program, ['rows', 'columns'])
type Passes = NonNullable<ReturnType<typeof passes.start>>
type TapArguments = readonly [starts: number, counts: number, weights: number, strideBytes: number, half: number, shift: number]

/** As `rows` of resize-loops; undefined where the plain loops must do it. The result lies in memory that the next pass but one writes over, or that moves. */
export function simdRows({ source, sourceWidth, height, left, width, taps }: RowsPass): Uint8ClampedArray<ArrayBuffer> | undefined {
  const length = height * width * 3
  const place = placed(source, length, taps)
  if (place === undefined) return undefined
  const { machine, from, to, tapArguments } = place
  machine.run.rows(from - left * 3, sourceWidth * 3, height, to, width, ...tapArguments)
  return new Uint8ClampedArray(machine.memory.buffer, to, length)
}

/** As `columns` of resize-loops; otherwise as {@link simdRows}. */
export function simdColumns({ source, width, top, height, taps }: ColumnsPass): Uint8ClampedArray<ArrayBuffer> | undefined {
  const length = height * width * 3
  const place = placed(source, length, taps)
  if (place === undefined) return undefined
  const { machine, from, to, tapArguments } = place
  machine.run.columns(from - top * width * 3, width * 3, to, height, ...tapArguments)
  return new Uint8ClampedArray(machine.memory.buffer, to, length)
}

interface Placed {
  readonly machine: Passes
  readonly from: number
  readonly to: number
  readonly tapArguments: TapArguments
}

/** The taps, the source unless it is there, and room for the result, one behind another in the program's memory. */
function placed(source: Uint8Array | Uint8ClampedArray, resultBytes: number, taps: FixedTaps): Placed | undefined {
  const { starts, counts, weights, stride, precisionBits } = taps
  const machine = passes.ofThread(pictureMemory)
  if (machine === undefined) return undefined
  const words = Int32Array.BYTES_PER_ELEMENT
  // The result of the pass before stays where it is, and so does the picture that was decoded there.
  const isHere = source.buffer === machine.memory.buffer
  const free = Math.max(keptBytes(), isHere ? source.byteOffset + source.length + overhang : 0)
  const startsAt = Math.ceil(free / words) * words
  const countsAt = startsAt + starts.length * words
  const weightsAt = countsAt + counts.length * words
  const behind = weightsAt + weights.length * words
  const from = isHere ? source.byteOffset : behind
  const to = isHere ? behind : behind + source.length + overhang
  const end = to + resultBytes + overhang
  if (end - startsAt + (isHere ? source.length : 0) > mostBytes) return undefined
  const buffer = grown(machine.memory, end)
  new Int32Array(buffer, startsAt, starts.length).set(starts)
  new Int32Array(buffer, countsAt, counts.length).set(counts)
  new Int32Array(buffer, weightsAt, weights.length).set(weights)
  if (!isHere) new Uint8Array(buffer, from, source.length).set(source)
  return { machine, from, to, tapArguments: [startsAt, countsAt, weightsAt, stride * words, 1 << (precisionBits - 1), precisionBits] }
}
