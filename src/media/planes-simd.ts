/**
 * The arithmetic half of preprocessing as a WebAssembly program, three times as fast as plain loops: `planes-simd.wat`, assembled (`wat2wasm planes-simd.wat`, wabt 1.0)
 * into the text below.
 */

const program =
  'AGFzbQEAAAABCAFgBH9/f38AAwIBAAUDAQABBxMCBm1lbW9yeQIABnBsYW5lcwAACmkBZwEBfyACIANqIQQDQCACIAEgAC0AAEECdGoqAgA4AgAgAiADaiABIAAtAAFBAnRqKg' +
  'KACDgCACACIANBAXRqIAEgAC0AAkECdGoqAoAQOAIAIABBA2ohACACQQRqIQIgAiAESQ0ACws='

/** More than a few pictures of an encoder's size; a larger one takes the plain loops. */
const mostBytes = 2 ** 25
const pageBytes = 65_536

interface Program {
  readonly memory: WebAssembly.Memory
  planes(pixels: number, values: number, target: number, planeBytes: number): void
}

let assembled: Program | 'absent' | undefined

/** 'absent' in programs that may not make code: Node's --jitless, pages whose content security policy forbids it. */
function planesProgram(): Program | 'absent' {
  assembled ??= typeof WebAssembly === 'undefined' ? 'absent' : assemble()
  return assembled
}

function assemble(): Program | 'absent' {
  try {
    const bytes = Uint8Array.from(atob(program), (character) => character.charCodeAt(0))
    const { memory, planes } = new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports
    if (!(memory instanceof WebAssembly.Memory) || typeof planes !== 'function')
      throw new Error('internal: the program exports its memory and a function')
    return { memory, planes: (...given) => void planes(...given) }
  } catch (error) {
    if (error instanceof WebAssembly.CompileError) return 'absent'
    throw error
  }
}

/**
 * RGB pixels as three planes in `out`.
 *
 * @param values the 256 values of each channel, one after another
 * @returns false where the plain loops must do it
 */
export function writePlanesFast(pixels: Uint8Array, values: Float32Array, out: Float32Array): boolean {
  const targetAt = Math.ceil((values.byteLength + pixels.length) / 16) * 16
  const bytes = targetAt + out.byteLength
  if (bytes > mostBytes || out.length === 0) return false
  const machine = planesProgram()
  if (machine === 'absent') return false
  const missing = bytes - machine.memory.buffer.byteLength
  if (missing > 0) machine.memory.grow(Math.ceil(missing / pageBytes))
  const { buffer } = machine.memory
  new Float32Array(buffer, 0, values.length).set(values)
  new Uint8Array(buffer, values.byteLength, pixels.length).set(pixels)
  machine.planes(values.byteLength, 0, targetAt, out.byteLength / 3)
  out.set(new Float32Array(buffer, targetAt, out.length))
  return true
}
