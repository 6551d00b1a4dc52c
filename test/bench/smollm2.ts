/** SmolLM2-135M's shape with random weights, in a safetensors file of its own. */
import { join } from 'node:path'
import { size } from '../../src/graph/dim.ts'
import { input, weight } from '../../src/graph/tensor.ts'
import { checkpointWeights } from '../../src/llm/checkpoint-weights.ts'
import type { Decoder } from '../../src/llm/decoder.ts'
import { llama, llamaConfig } from '../../src/llm/families/llama.ts'
import { elementCount, float32Tensor } from '../../src/tensors.ts'
import { openCheckpoint } from '../../src/weights/checkpoint.ts'
import { type TensorToWrite, writeSafetensors } from '../../src/weights/safetensors.ts'

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
  const shapes = new Map<string, readonly number[]>()
  const declared = llama(smollm2, (name, shape) => {
    shapes.set(name, shape)
    return weight(name, 'float32', shape, { kind: 'memory', value: float32Tensor(new Float32Array(0), [0]) })
  })
  const tokens = size('tokens')
  declared.decode(input('x', 'float32', [1, tokens, declared.hiddenSize]), { positions: input('p', 'int64', [1, tokens]) })
  const tensors = [...shapes].map(
    ([name, dims]): TensorToWrite => ({ name, dtype: 'float32', dims, load: async () => float32Tensor(values(name, dims), dims) }),
  )
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
  return llama(smollm2, checkpointWeights(await openCheckpoint(folder)))
}

/** Norms are 1; the rest uniform with deviation 0.02, cheaply: only its spread matters here. */
function values(name: string, dims: readonly number[]): Float32Array {
  const data = new Float32Array(elementCount(dims))
  if (dims.length === 1) return data.fill(1)
  let state = name.length + 1
  for (let i = 0; i < data.length; i++) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff
    data[i] = (state / 0x7fffffff - 0.5) * 0.07
  }
  return data
}
