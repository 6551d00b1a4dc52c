/** Pictures as their bytes, and as the planes of floats that encoders take. */
import { float32Tensor, type TensorValue } from './tensors.ts'
import { grown, type Program, webAssembly } from './webassembly.ts'

/** A float32 tensor [pictures, 3, height, width] as what it is made of, a quarter of its size. */
export interface PixelTensor {
  readonly dims: readonly [pictures: number, channels: 3, height: number, width: number]
  /** The RGB bytes of each picture. */
  readonly pixels: readonly Uint8Array[]
  /** The 256 values of each channel, one after another: what its bytes stand for. */
  readonly values: Float32Array
}

/** `pixel-planes.wat`, assembled (`wat2wasm pixel-planes.wat`, wabt 1.0): three times as fast as {@link plainPlanes}. */
const program =
  'AGFzbQEAAAABCAFgBH9/f38AAwIBAAUDAQABBxMCBm1lbW9yeQIABnBsYW5lcwAACmkBZwEBfyACIANqIQQDQCACIAEgAC0AAEECdGoqAgA4AgAgAiADaiABIAAtAAFBAnRqKg' +
  'KACDgCACACIANBAXRqIAEgAC0AAkECdGoqAoAQOAIAIABBA2ohACACQQRqIQIgAiAESQ0ACws='

type Planes = Program<'planes'>
const planes = webAssembly(program, ['planes'])
const valuesBytes = 3 * 256 * Float32Array.BYTES_PER_ELEMENT
/** A program keeps this much at most. */
const mostBytes = 2 ** 26

/** Makes the tensors of one session in memory that it keeps: fresh memory for each would cost as much as the work. */
export class PlaneMaker {
  #program: Planes | undefined

  /** @returns a tensor in memory that the next call writes over, or that moves */
  tensor({ dims, pixels, values }: PixelTensor): TensorValue {
    const [, , height, width] = dims
    const plane = height * width
    const each = 3 * plane
    this.#program ??= planes.start()
    const out = this.#program && outputOf(this.#program, each, pixels.length * each)
    if (this.#program === undefined || out === undefined) {
      const data = new Float32Array(pixels.length * each)
      for (const [index, bytes] of pixels.entries()) plainPlanes(bytes, values, data.subarray(index * each, (index + 1) * each))
      return float32Tensor(data, dims)
    }
    for (const [index, bytes] of pixels.entries()) convert(this.#program, bytes, values, out.byteOffset + 4 * index * each)
    return float32Tensor(out, dims)
  }
}

/** One picture's planes into `out`. */
export function writePlanes(pixels: Uint8Array, values: Float32Array, out: Float32Array): void {
  const thread = planes.ofThread()
  const result = thread && outputOf(thread, pixels.length, out.length)
  if (thread === undefined || result === undefined || out.length === 0) {
    plainPlanes(pixels, values, out)
  } else {
    convert(thread, pixels, values, result.byteOffset)
    out.set(result)
  }
}

/** A place for so many floats, behind the values and the bytes of a picture. Undefined where that would be too much to keep. */
function outputOf({ memory }: Planes, pixelBytes: number, floats: number): Float32Array<ArrayBuffer> | undefined {
  const at = Math.ceil((valuesBytes + pixelBytes) / 64) * 64
  const bytes = at + floats * Float32Array.BYTES_PER_ELEMENT
  return bytes > mostBytes ? undefined : new Float32Array(grown(memory, bytes), at, floats)
}

function convert({ memory, run }: Planes, pixels: Uint8Array, values: Float32Array, target: number): void {
  new Float32Array(memory.buffer, 0, values.length).set(values)
  new Uint8Array(memory.buffer, valuesBytes, pixels.length).set(pixels)
  run.planes(valuesBytes, 0, target, (pixels.length / 3) * Float32Array.BYTES_PER_ELEMENT)
}

/** As the program does it. */
export function plainPlanes(pixels: Uint8Array, values: Float32Array, out: Float32Array): void {
  const plane = out.length / 3
  const [red, green, blue] = [values.subarray(0, 256), values.subarray(256, 512), values.subarray(512)]
  for (let to = 0, from = 0; to < plane; to++, from += 3) {
    out[to] = red[pixels[from] ?? 0] ?? 0
    out[to + plane] = green[pixels[from + 1] ?? 0] ?? 0
    out[to + 2 * plane] = blue[pixels[from + 2] ?? 0] ?? 0
  }
}
