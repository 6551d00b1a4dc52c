/** float32 to float16 with WebAssembly's vector instructions, several times as fast as the loop in `float16.ts` and bit for bit the same. */
import { webAssembly } from '../webassembly.ts'

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

const halves = webAssembly(program, ['halves'])

/**
 * Writes the float16 bits of float32 words.
 *
 * @returns the largest magnitude, as the bits of a float32 without its sign: what is written means nothing from 65520 (0x477ff000) on. Undefined where there are no vector
 * instructions; then nothing is written.
 */
export function simdHalves(words: Uint32Array, out: Uint16Array): number | undefined {
  const started = halves.ofThread()
  if (started === undefined) return undefined
  const { memory, run } = started
  const source = new Uint32Array(memory.buffer, 0, blockLength)
  const target = new Uint16Array(memory.buffer, targetBytes, blockLength)
  let largest = 0
  for (let start = 0; start < words.length; start += blockLength) {
    const block = words.subarray(start, start + blockLength)
    const count = Math.ceil(block.length / 8) * 8
    source.set(block)
    source.fill(0, block.length, count)
    largest = Math.max(largest, run.halves(0, count, targetBytes))
    out.set(target.subarray(0, block.length), start)
  }
  return largest
}
