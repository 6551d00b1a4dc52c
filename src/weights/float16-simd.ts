/** float32 to float16 with WebAssembly's vector instructions, several times as fast as the loop in `float16.ts` and bit for bit the same. */

/** `float16-simd.wat`, assembled (`wat2wasm float16-simd.wat`, wabt 1.0). */
const program =
  'AGFzbQEAAAABDgJgA39/fwF/YAJ7ewF7AwMCAAEFAwEABwcTAgZtZW1vcnkCAAZoYWx2ZXMAAAr9AgLbAQIBfwV7IAAgAUECdGohAwJAA0AgACADTw0BIAD9AAQAIQQgBP0M//' +
  '//f////3////9/////f/1OIQUgCCAF/bgBIQggBCAFEAEhBiAA/QAEECEEIAT9DP///3////9/////f////3/9TiEFIAggBf24ASEIIAQgBRABIQcgAiAGIAf9hgH9CwQAIABB' +
  'IGohACACQRBqIQIMAAsLIAggCCAI/Q0ICQoLDA0ODwABAgMEBQYH/bgBIQggCCAIIAj9DQQFBgcAAQIDDA0ODwgJCgv9uAEhCCAI/RsAC50BACAAQRD9rQH9DACAAAAAgAAAAI' +
  'AAAACAAAD9TiAB/QwAAAA/AAAAPwAAAD8AAAA//eQB/QwAAAA/AAAAPwAAAD8AAAA//bEBIAH9DAHw/zcB8P83AfD/NwHw/zf9sQEgAUEN/a0B/QwBAAAAAQAAAAEAAAABAAAA' +
  '/U79rgFBDf2tASAB/QwAAIA4AACAOAAAgDgAAIA4/Tn9Uv1QCw=='

/** What goes through the program's memory at a time: the words, and behind them the halves. */
const blockLength = 65_536
const targetBytes = blockLength * 4

interface Machine {
  readonly words: Uint32Array
  readonly halves: Uint16Array
  convert(source: number, count: number, target: number): number
}
let assembled: Machine | 'absent' | undefined

/** 'absent' in programs that may not make code: Node's --jitless, pages whose content security policy forbids it. */
function assemble(): Machine | 'absent' {
  if (typeof WebAssembly === 'undefined') return 'absent'
  try {
    const bytes = Uint8Array.from(atob(program), (character) => character.charCodeAt(0))
    const { memory, halves } = new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports
    if (!(memory instanceof WebAssembly.Memory) || typeof halves !== 'function')
      throw new Error('internal: the program exports its memory and a function')
    return {
      words: new Uint32Array(memory.buffer, 0, blockLength),
      halves: new Uint16Array(memory.buffer, targetBytes, blockLength),
      convert: (...given) => Number(halves(...given)),
    }
  } catch (error) {
    if (error instanceof WebAssembly.CompileError) return 'absent'
    throw error
  }
}

/**
 * Writes the float16 bits of float32 words.
 *
 * @returns the largest magnitude, as the bits of a float32 without its sign: what is written means nothing from 65520 (0x477ff000) on. Undefined where there are no vector
 * instructions; then nothing is written.
 */
export function simdHalves(words: Uint32Array, out: Uint16Array): number | undefined {
  assembled ??= assemble()
  if (assembled === 'absent') return undefined
  let largest = 0
  for (let start = 0; start < words.length; start += blockLength) {
    const block = words.subarray(start, start + blockLength)
    const count = Math.ceil(block.length / 8) * 8
    assembled.words.set(block)
    assembled.words.fill(0, block.length, count)
    largest = Math.max(largest, assembled.convert(0, count, targetBytes))
    out.set(assembled.halves.subarray(0, block.length), start)
  }
  return largest
}
