/**
 * Blocks as ONNX Runtime's MatMulNBits wants them: 4 or 8 bits a value, one float32 scale and, apart, one float32 minimum for each run. What has 5 or 6 bits, or levels from a
 * table, is kept in 8.
 */
import { dequantiser, type IntegerBlocks, integerBlocks } from './blocks/index.ts'
import { ggufTensor } from './dequantise.ts'
import type { GgufFile } from './gguf.ts'

const pieceBytes = 4 * 2 ** 20
/**
 * Minimums are a second product of four operators, 17 microseconds for one row on two cores whatever the size: as long as reading the 3 bits that 2^20 values save by them.
 * Products of one input are one, so half as many values are enough; and what keeps its minimums is exact.
 */
const smallMatrix = 2 ** 19
const largestLevel = 127

/** How a tensor [rows, columns] is kept in blocks. */
export interface Repacked {
  readonly bits: 4 | 8
  readonly rows: number
  /** Runs of a row. */
  readonly blocks: number
  /** Bytes of a run. */
  readonly bytes: number
  readonly hasMinimums: boolean
}

/** The parts that a tensor becomes. */
export type RepackedPart = 'packed' | 'scales' | 'minimums'

/** Value for value; undefined for what has no integer blocks. */
export function exactForm(file: GgufFile, name: string): Repacked | undefined {
  const { type, shape } = ggufTensor(file, name)
  const format = integerBlocks.get(type.name)
  const [rows, columns] = shape
  if (format === undefined || shape.length !== 2 || rows === undefined || columns === undefined) return undefined
  const bits = bitsOf(format)
  return { bits, rows, blocks: columns / format.run, bytes: (format.run * bits) / 8, hasMinimums: format.hasMinimums }
}

/** The form that products are fastest with: small matrices with minimums are rounded to 8 bits without, by a scale for each run; all others are exact. */
export function repackedForm(file: GgufFile, name: string): Repacked | undefined {
  const exact = exactForm(file, name)
  if (exact === undefined) return undefined
  const { bits, rows, blocks, bytes, hasMinimums } = exact
  const run = (bytes * 8) / bits
  return hasMinimums && run === 32 && !keepsMinimums(rows, blocks * run) ? { bits: 8, rows, blocks, bytes: run, hasMinimums: false } : exact
}

/** Whether a matrix [rows, columns] with minimums is faster with them. */
export function keepsMinimums(rows: number, columns: number): boolean {
  return rows * columns >= smallMatrix
}

function bitsOf({ levels: [lowest, highest] }: IntegerBlocks): 4 | 8 {
  return highest - lowest <= 15 ? 4 : 8
}

/**
 * One part of a tensor in a form of its own, whole rows at a time: `packed` as uint8 [rows, blocks, bytes], the others as float32 [rows, blocks].
 *
 * @param rowsTogether so many rows are never parted
 * @throws what reading the file throws
 */
export async function* repacked(
  file: GgufFile,
  name: string,
  form: Repacked,
  part: RepackedPart,
  rowsTogether = 1,
): AsyncGenerator<Uint8Array | Float32Array, void, undefined> {
  const { type, shape, offset } = ggufTensor(file, name)
  const format = integerBlocks.get(type.name)
  const [rows = 0, columns = 0] = shape
  if (format === undefined) throw new Error(`internal: ${type.name} has no integer blocks`)
  const rowBytes = (columns / format.elements) * format.bytes
  const step = Math.max(1, Math.floor(pieceBytes / (rowBytes * rowsTogether))) * rowsTogether
  for (let row = 0; row < rows; row += step) {
    const count = Math.min(step, rows - row)
    yield repackRows(format, await file.source.read(offset + row * rowBytes, count * rowBytes), form, part)
  }
}

function repackRows(format: IntegerBlocks, bytes: Uint8Array, form: Repacked, part: RepackedPart): Uint8Array | Float32Array {
  if (format.hasMinimums && !form.hasMinimums) return roundRows(format, bytes, part)
  const { elements, run, levels: range } = format
  const bits = bitsOf(format)
  const blocks = bytes.length / format.bytes
  const runs = elements / run
  const levels = new Int8Array(elements)
  const [scales, minimums] = [new Float32Array(runs), new Float32Array(runs)]
  // Stored levels begin at -8 or -128; what begins at 0 and fills 4 bits is moved, and its minimum with it.
  const shift = bits === 4 && range[1] > 7 ? 8 : 0
  const zero = bits === 4 ? 8 : 128
  const out = part === 'packed' ? new Uint8Array((blocks * elements * bits) / 8) : new Float32Array(blocks * runs)
  for (let block = 0; block < blocks; block++) {
    format.unpack(bytes, block * format.bytes, levels, scales, minimums)
    if (part === 'packed') {
      const to = (block * elements * bits) / 8
      if (bits === 8) for (let i = 0; i < elements; i++) out[to + i] = (levels[i] ?? 0) + zero
      else
        for (let i = 0; i < elements; i += 2)
          out[to + (i >> 1)] = ((levels[i] ?? 0) - shift + zero) | (((levels[i + 1] ?? 0) - shift + zero) << 4)
    } else {
      for (let i = 0; i < runs; i++)
        out[block * runs + i] = part === 'scales' ? (scales[i] ?? 0) : (minimums[i] ?? 0) + shift * (scales[i] ?? 0)
    }
  }
  return out
}

/** 8 bits without minimums: each run in steps of its own. */
function roundRows(format: IntegerBlocks, bytes: Uint8Array, part: RepackedPart): Uint8Array | Float32Array {
  const { run, elements } = format
  const blocks = bytes.length / format.bytes
  const values = new Float32Array(blocks * elements)
  dequantiser(format)(bytes, values)
  const steps = new Float32Array(values.length / run)
  const runs = elements / run
  const levels = new Int8Array(elements)
  const [scales, minimums] = [new Float32Array(runs), new Float32Array(runs)]
  for (let index = 0; index < steps.length; index++) {
    const within = index % runs
    if (within === 0) format.unpack(bytes, (index / runs) * format.bytes, levels, scales, minimums)
    let largest = 0
    for (let at = index * run; at < (index + 1) * run; at++) largest = Math.max(largest, Math.abs(values[at] ?? 0))
    steps[index] = stepOf(Math.abs(scales[within] ?? 0), minimums[within] ?? 0, largest)
  }
  if (part !== 'packed') return steps
  return Uint8Array.from(values, (value, index) => {
    const step = steps[Math.floor(index / run)] ?? 0
    return 128 + (step === 0 ? 0 : Math.round(value / step))
  })
}

/**
 * The step that loses least of level x scale + minimum: the scale over a whole number, so that the levels are exact, by which the minimum is most nearly a whole number of
 * steps. Where that is no better than rounding every value, 127 steps are the largest value.
 */
function stepOf(scale: number, minimum: number, largest: number): number {
  const usual = largest / largestLevel
  // Rounding loses half a step at most and, in the mean square, so much of one.
  let [step, lost] = [usual, usual / Math.sqrt(12)]
  const most = Math.floor(((largestLevel - 0.5) * scale) / largest)
  for (let parts = 1; parts <= most; parts++) {
    const own = scale / parts
    const away = Math.abs(minimum - Math.round(minimum / own) * own)
    if (away < lost) [step, lost] = [own, away]
  }
  return step
}
