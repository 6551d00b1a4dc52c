/** How each storage type of GGUF becomes float32. A format is one value and one line here. */
import { type Dequantise, dequantiser, type IntegerBlocks } from './block-format.ts'
import { iq4_nl, iq4_xs } from './iq4.ts'
import { q2_k, q3_k, q4_k, q5_k, q6_k } from './k-quants.ts'
import { q4_0, q4_1, q5_0, q5_1, q8_0 } from './of-32.ts'
import { bfloat16, float16, float32, float64, integer8, integer16, integer32 } from './plain.ts'

export { type Dequantise, dequantiser, type IntegerBlocks } from './block-format.ts'

/** Types of integers with scales, by llama.cpp's names: what can stay in blocks. */
export const integerBlocks: ReadonlyMap<string, IntegerBlocks> = new Map([
  ['Q4_0', q4_0],
  ['Q4_1', q4_1],
  ['Q5_0', q5_0],
  ['Q5_1', q5_1],
  ['Q8_0', q8_0],
  ['Q2_K', q2_k],
  ['Q3_K', q3_k],
  ['Q4_K', q4_k],
  ['Q5_K', q5_k],
  ['Q6_K', q6_k],
  ['IQ4_NL', iq4_nl],
  ['IQ4_XS', iq4_xs],
])

/** Every type that is read, by llama.cpp's names. */
export const blockFormats: ReadonlyMap<string, Dequantise> = new Map<string, Dequantise>([
  ['F32', float32],
  ['F16', float16],
  ['BF16', bfloat16],
  ['F64', float64],
  ['I8', integer8],
  ['I16', integer16],
  ['I32', integer32],
  ...[...integerBlocks].map(([name, format]) => [name, dequantiser(format)] as const),
])
