/**
 * The passes of `resize-loops.ts` with WebAssembly's vector instructions, four times as fast and bit for bit the same: integer arithmetic modulo 2^32, then a shift
 * and a clamp. The program is `resize-simd.wat`, assembled (`wat2wasm resize-simd.wat`, wabt 1.0) into the text below.
 */
import type { FixedTaps } from './resize-kernels.ts'
import type { ColumnsPass, RowsPass } from './resize-loops.ts'

const program =
  'AGFzbQEAAAABHAJgC39/f39/f39/f39/AGAKf39/f39/f39/fwADAwIAAQUDAQABBxsDBm1lbW9yeQIABHJvd3MAAAdjb2x1bW5zAAEKmwQC3AEDBH8CewF/IAn9ESEQIA' +
  'MhEQJAIAJFDQADQEEAIQsCQANAIAsgBE8NASAQIQ8gACAFIAtBAnRqKAIAQQNsaiEMIAcgCyAIbGohDSANIAYgC0ECdGooAgBBAnRqIQ4CQANAIA0gDk8NASAPIAz9XAIA' +
  '/YkB/akBIA39CQIA/bUB/a4BIQ8gDEEDaiEMIA1BBGohDQwACwsgDyAK/awBIQ8gDyAP/YUBIQ8gESAPIA/9Zv1aAgAAIBFBA2ohESALQQFqIQsMAAsLIAAgAWohACACQQ' +
  'FrIQIgAg0ACwsLugICB38JeyAI/REhFQJAA0AgCiADTw0BIAAgBCAKQQJ0aigCACABbGohDSAGIAogB2xqIQ8gDyAFIApBAnRqKAIAQQJ0aiEQQQAhCwJAA0AgCyABTw0B' +
  'IBUhFiAVIRcgFSEYIBUhGSANIAtqIQwgDyEOAkADQCAOIBBPDQEgDv0JAgAhESAM/QAEACESIBL9iQEhEyAS/YoBIRQgFiAT/akBIBH9tQH9rgEhFiAXIBP9qgEgEf21Af' +
  '2uASEXIBggFP2pASAR/bUB/a4BIRggGSAU/aoBIBH9tQH9rgEhGSAMIAFqIQwgDkEEaiEODAALCyACIAtqIBYgCf2sASAXIAn9rAH9hQEgGCAJ/awBIBkgCf2sAf2FAf1m' +
  '/QsEACALQRBqIQsMAAsLIAIgAWohAiAKQQFqIQoMAAsLCw=='

/** A thread keeps this much at most; larger pictures take the plain loops, whose memory goes when they are done. */
const mostBytes = 2 ** 26
const pageBytes = 65_536
/** Vectors reach beyond the last pixel. */
const overhang = 16

interface Passes {
  readonly memory: WebAssembly.Memory
  rows(source: number, rowBytes: number, rows: number, target: number, outWidth: number, ...taps: TapArguments): void
  columns(source: number, rowBytes: number, target: number, outHeight: number, ...taps: TapArguments): void
}
type TapArguments = readonly [starts: number, counts: number, weights: number, strideBytes: number, half: number, shift: number]

let assembled: Passes | 'absent' | undefined

/** 'absent' in programs that may not make code: Node's --jitless, pages whose content security policy forbids it. */
function passes(): Passes | 'absent' {
  assembled ??= typeof WebAssembly === 'undefined' ? 'absent' : assemble()
  return assembled
}

function assemble(): Passes | 'absent' {
  try {
    const bytes = Uint8Array.from(atob(program), (character) => character.charCodeAt(0))
    const { memory, rows, columns } = new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports
    if (!(memory instanceof WebAssembly.Memory) || typeof rows !== 'function' || typeof columns !== 'function')
      throw new Error('internal: the program exports its memory and two passes')
    return { memory, rows: (...given) => void rows(...given), columns: (...given) => void columns(...given) }
  } catch (error) {
    if (error instanceof WebAssembly.CompileError) return 'absent'
    throw error
  }
}

/** As `rows` of resize-loops; undefined where the plain loops must do it. The result lies in memory that the next pass but one writes over, or that moves. */
export function simdRows({ source, sourceWidth, height, left, width, taps }: RowsPass): Uint8ClampedArray<ArrayBuffer> | undefined {
  const length = height * width * 3
  const place = placed(source, length, taps)
  if (place === undefined) return undefined
  const { machine, from, to, tapArguments } = place
  machine.rows(from - left * 3, sourceWidth * 3, height, to, width, ...tapArguments)
  return new Uint8ClampedArray(machine.memory.buffer, to, length)
}

/** As `columns` of resize-loops; otherwise as {@link simdRows}. */
export function simdColumns({ source, width, top, height, taps }: ColumnsPass): Uint8ClampedArray<ArrayBuffer> | undefined {
  const length = height * width * 3
  const place = placed(source, length, taps)
  if (place === undefined) return undefined
  const { machine, from, to, tapArguments } = place
  machine.columns(from - top * width * 3, width * 3, to, height, ...tapArguments)
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
  const machine = passes()
  if (machine === 'absent') return undefined
  const words = Int32Array.BYTES_PER_ELEMENT
  // The result of the pass before stays where it is.
  const isHere = source.buffer === machine.memory.buffer
  const startsAt = isHere ? Math.ceil((source.byteOffset + source.length + overhang) / words) * words : 0
  const countsAt = startsAt + starts.length * words
  const weightsAt = countsAt + counts.length * words
  const free = weightsAt + weights.length * words
  const from = isHere ? source.byteOffset : free
  const to = isHere ? free : free + source.length + overhang
  const bytes = to + resultBytes + overhang
  if (bytes > mostBytes) return undefined
  const missing = bytes - machine.memory.buffer.byteLength
  if (missing > 0) machine.memory.grow(Math.ceil(missing / pageBytes))
  const { buffer } = machine.memory
  new Int32Array(buffer, startsAt, starts.length).set(starts)
  new Int32Array(buffer, countsAt, counts.length).set(counts)
  new Int32Array(buffer, weightsAt, weights.length).set(weights)
  if (!isHere) new Uint8Array(buffer, from, source.length).set(source)
  return { machine, from, to, tapArguments: [startsAt, countsAt, weightsAt, stride * words, 1 << (precisionBits - 1), precisionBits] }
}
