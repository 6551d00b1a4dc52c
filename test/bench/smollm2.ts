/** SmolLM2-135M's shape with random weights, in a safetensors file of its own. */
import { join } from 'node:path'
import { blockQuantised } from '../../src/graph/composites/block-quantised.ts'
import { size } from '../../src/graph/dim.ts'
import { input, type Tensor, weight } from '../../src/graph/tensor.ts'
import { checkpointWeights } from '../../src/llm/checkpoint-weights.ts'
import type { Decoder } from '../../src/llm/decoder.ts'
import { type LlamaConfig, llama, llamaConfig } from '../../src/llm/families/llama.ts'
import { elementCount, float32Tensor, type TensorValue } from '../../src/tensors.ts'
import { type Checkpoint, openCheckpoint } from '../../src/weights/checkpoint.ts'
import { toFloat32 } from '../../src/weights/float16.ts'
import { keepsMinimums } from '../../src/weights/gguf/repack.ts'
import { openSafetensors, type TensorToWrite, writeSafetensors } from '../../src/weights/safetensors.ts'

export const smollm2 = llamaConfig.parse({
  model_type: 'llama',
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  vocab_size: 49_152,
  max_position_embeddings: 8192,
  rms_norm_eps: 1e-5,
  rope_theta: 100_000,
  tie_word_embeddings: true,
})

/** Writes the weights into `folder`, one tensor at a time, and gives the decoder over them. */
export async function randomSmollm2(folder: string): Promise<Decoder> {
  await writeRandomWeights(folder, smollm2)
  return llama(smollm2, checkpointWeights(await openCheckpoint(folder)))
}

/** Writes `model.safetensors` of a Llama of any size into `folder`, one tensor at a time. */
export async function writeRandomWeights(folder: string, config: LlamaConfig): Promise<void> {
  const shapes = new Map<string, readonly number[]>()
  const declared = llama(config, (name, shape) => {
    shapes.set(name, shape)
    return weight(name, 'float32', shape, { kind: 'memory', value: float32Tensor(new Float32Array(0), [0]) })
  })
  const tokens = size('tokens')
  declared.decode(input('x', 'float32', [1, tokens, declared.hiddenSize]), { positions: input('p', 'int64', [1, tokens]) })
  const tensors = [...shapes].map(
    ([name, dims]): TensorToWrite => ({ name, dtype: 'float32', dims, load: async () => float32Tensor(values(name, dims), dims) }),
  )
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
}

const blockSize = 32

/**
 * The same weights as a Q4_1 file's are kept in memory: blocks of 4 bits with a scale and a minimum each, or, where these are slower, blocks of 8 bits without. `folder` is where
 * {@link randomSmollm2} wrote; norms stay what they are.
 *
 * @returns the decoder and the bytes of its matrices.
 */
export async function quantisedSmollm2(folder: string, target: string): Promise<{ readonly decoder: Decoder; readonly bytes: number }> {
  const source = await openSafetensors(join(folder, 'model.safetensors'))
  const tensors: TensorToWrite[] = []
  for (const [name, { shape }] of source.tensors) {
    if (shape.length !== 2) continue
    const [rows = 0, columns = 0] = shape
    const blocks = columns / blockSize
    const bits = keepsMinimums(rows, columns) ? 4 : 8
    const bytes = (blockSize * bits) / 8
    const part = (suffix: string, dims: readonly number[], pick: (made: QuantisedBlocks) => TensorValue): TensorToWrite => ({
      name: `${name}.${suffix}`,
      dtype: suffix === 'packed' ? 'uint8' : 'float32',
      dims,
      load: async () => pick(quantise(toFloat32(await source.read(name)), bits)),
    })
    tensors.push(
      part('packed', [rows, blocks, bytes], ({ packed }) => ({
        dtype: 'uint8',
        dims: [rows, blocks, bytes],
        data: packed,
      })),
      part('scales', [rows, blocks], ({ scales }) => float32Tensor(scales, [rows, blocks])),
      ...(bits === 4 ? [part('minimums', [rows, blocks], ({ minimums }) => float32Tensor(minimums, [rows, blocks]))] : []),
    )
  }
  await writeSafetensors(join(target, 'model.safetensors'), tensors)
  const [plain, parts] = [checkpointWeights(await openCheckpoint(folder)), await openCheckpoint(target)]
  const known = new Map<string, Tensor>()
  const decoder = llama(smollm2, (name, shape) => {
    const tensor = known.get(name) ?? (shape.length === 2 ? inBlocks(parts, name) : plain(name, shape))
    known.set(name, tensor)
    return tensor
  })
  return { decoder, bytes: [...parts.tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0) }
}

function inBlocks(checkpoint: Checkpoint, name: string): Tensor {
  const part = (suffix: string): Tensor => {
    const { file, dtype, shape, offset, byteLength } = checkpoint.tensor(`${name}.${suffix}`)
    return weight(`${name}.${suffix}`, dtype, shape, { kind: 'file', file, offset, byteLength })
  }
  const small = !checkpoint.tensors.has(`${name}.minimums`)
  const blocks = { packed: part('packed'), scales: part('scales') }
  return small ? blockQuantised({ ...blocks, bits: 8 }) : blockQuantised({ ...blocks, minimums: part('minimums'), bits: 4 })
}

interface QuantisedBlocks {
  readonly packed: Uint8Array
  readonly scales: Float32Array
  readonly minimums: Float32Array
}

/** value = (q - zero) scale + minimum: sixteen or 256 steps from the least to the greatest of each block. */
function quantise(values: Float32Array, bits: 4 | 8): QuantisedBlocks {
  const blocks = values.length / blockSize
  const [steps, zero] = bits === 4 ? [15, 8] : [255, 128]
  const made = { packed: new Uint8Array((values.length * bits) / 8), scales: new Float32Array(blocks), minimums: new Float32Array(blocks) }
  for (let block = 0; block < blocks; block++) {
    const own = values.subarray(block * blockSize, (block + 1) * blockSize)
    const [least, greatest] = [Math.min(...own), Math.max(...own)]
    const scale = (greatest - least) / steps
    made.scales[block] = scale
    made.minimums[block] = least + zero * scale
    for (const [index, value] of own.entries()) {
      const level = scale === 0 ? 0 : Math.round((value - least) / scale)
      const place = block * blockSize + index
      const at = bits === 4 ? place >> 1 : place
      made.packed[at] = (made.packed[at] ?? 0) | (bits === 4 ? level << (4 * (index % 2)) : level)
    }
  }
  return made
}

/**
 * Norms are 1; the rest uniform with deviation 0.02, cheaply: only its spread matters here, and that no two tensors are alike, because ONNX Runtime keeps what it packs of
 * equal ones once, and a processor's cache would hold it.
 */
function values(name: string, dims: readonly number[]): Float32Array {
  const data = new Float32Array(elementCount(dims))
  if (dims.length === 1) return data.fill(1)
  let state = Buffer.from(name).reduce((hash, byte) => (Math.imul(hash, 31) + byte) & 0x7fffffff, 7)
  for (let i = 0; i < data.length; i++) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff
    data[i] = (state / 0x7fffffff - 0.5) * 0.07
  }
  return data
}
