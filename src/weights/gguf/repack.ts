/**
 * Blocks as ONNX Runtime's MatMulNBits wants them, value for value: 4 or 8 bits a value, one float32 scale and, apart, one float32 minimum for each run. What has 5 or 6
 * bits, or levels from a table, is kept in 8.
 */
import { type IntegerBlocks, integerBlocks } from './blocks/index.ts'
import { ggufTensor } from './dequantise.ts'
import type { GgufFile } from './gguf.ts'

const pieceBytes = 4 * 2 ** 20

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

/** Undefined for what has no integer blocks. */
export function repackedForm(file: GgufFile, name: string): Repacked | undefined {
  const { type, shape } = ggufTensor(file, name)
  const format = integerBlocks.get(type.name)
  const [rows, columns] = shape
  if (format === undefined || shape.length !== 2 || rows === undefined || columns === undefined) return undefined
  const bits = bitsOf(format)
  return { bits, rows, blocks: columns / format.run, bytes: (format.run * bits) / 8, hasMinimums: format.hasMinimums }
}

function bitsOf({ levels: [lowest, highest] }: IntegerBlocks): 4 | 8 {
  return highest - lowest <= 15 ? 4 : 8
}

/**
 * One part of a repacked tensor, whole rows at a time: `packed` as uint8 [rows, blocks, bytes], the others as float32 [rows, blocks].
 *
 * @param rowsTogether so many rows are never parted
 * @throws what reading the file throws
 */
export async function* repacked(
  file: GgufFile,
  name: string,
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
    yield repackRows(format, await file.source.read(offset + row * rowBytes, count * rowBytes), part)
  }
}

function repackRows(format: IntegerBlocks, bytes: Uint8Array, part: RepackedPart): Uint8Array | Float32Array {
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
