import { fileSource } from '../../io/byte-source.ts'
import { bytesPerElement } from '../../tensors.ts'
import type { Checkpoint } from '../../weights/checkpoint.ts'
import { toFloat32 } from '../../weights/float16.ts'
import { tensorFromBytes } from '../../weights/safetensors-source.ts'

const sampledBlocks = 16
const sampledBytes = 65_536

/** Root mean square of evenly spaced blocks of a weight, so that a table of gigabytes is not read for one number. */
export async function sampledRms(checkpoint: Checkpoint, name: string): Promise<number> {
  const { file, dtype, offset, byteLength } = checkpoint.tensor(name)
  const source = await fileSource(file)
  const size = bytesPerElement[dtype]
  const block = Math.min(sampledBytes, byteLength)
  let [sum, count] = [0, 0]
  for (let index = 0; index < sampledBlocks; index++) {
    const start = Math.floor(((byteLength - block) * index) / (sampledBlocks - 1) / size) * size
    const values = toFloat32(tensorFromBytes(await source.read(offset + start, block), { dtype, shape: [block / size] }, { name, file }))
    for (const value of values) sum += value * value
    count += values.length
  }
  return Math.sqrt(sum / count)
}
