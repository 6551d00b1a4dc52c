/** How fast ONNX Runtime's own products of one row read SmolLM2's matrices at float32, with nothing of a model around them: the limit of decoding on it. */
import { matmulTransposed } from '../../src/graph/composites/linear.ts'
import { concat, reduceMax } from '../../src/graph/operators/index.ts'
import { input, type Tensor } from '../../src/graph/tensor.ts'
import { checkpointWeights } from '../../src/llm/checkpoint-weights.ts'
import { lower } from '../../src/onnx/lower.ts'
import { createSession } from '../../src/runtime/node.ts'
import { float32Tensor } from '../../src/tensors.ts'
import { openCheckpoint } from '../../src/weights/checkpoint.ts'
import { sourceOf } from './model-source.ts'
import { smollm2 } from './smollm2.ts'

const runs = 24

/**
 * @param folder where `randomSmollm2` wrote
 * @param window runs in a row that one figure is of
 * @returns the best seconds for all matrices once; those that read the same input are one, as they are when tokens are generated
 */
export async function productSeconds(folder: string, threads: number, window: number): Promise<number> {
  const read = checkpointWeights(await openCheckpoint(folder))
  const {
    hidden_size: width,
    intermediate_size: inner,
    num_attention_heads: heads,
    num_hidden_layers: layers,
    vocab_size: vocabulary,
  } = smollm2
  const kvWidth = (width / heads) * (smollm2.num_key_value_heads ?? heads)
  const [narrow, wide] = [input('narrow', 'float32', [1, width]), input('wide', 'float32', [1, inner])]
  const products = Array.from({ length: layers }, (_, layer): readonly Tensor[] => {
    const own = (name: string, rows: number, columns = width): Tensor => read(`model.layers.${layer}.${name}.weight`, [rows, columns])
    const attention = [own('self_attn.q_proj', width), own('self_attn.k_proj', kvWidth), own('self_attn.v_proj', kvWidth)]
    return [
      matmulTransposed(narrow, concat(attention, 0)),
      matmulTransposed(narrow, own('self_attn.o_proj', width)),
      matmulTransposed(narrow, concat([own('mlp.gate_proj', inner), own('mlp.up_proj', inner)], 0)),
      matmulTransposed(wide, own('mlp.down_proj', width, inner)),
    ]
  }).flat()
  products.push(matmulTransposed(narrow, read('model.embed_tokens.weight', [vocabulary, width])))
  // One number out of each, so that only multiplying takes time.
  const outputs = Object.fromEntries(products.map((product, index) => [`y${index}`, reduceMax(product, [0, 1])]))
  await using session = await createSession(sourceOf(lower({ outputs })), { device: 'cpu', threads })
  const feeds = {
    narrow: float32Tensor(new Float32Array(width).fill(1), [1, width]),
    wide: float32Tensor(new Float32Array(inner).fill(1), [1, inner]),
  }
  const times = [performance.now()]
  for (let run = 0; run < runs; run++) {
    await session.run(feeds)
    times.push(performance.now())
  }
  return Math.min(...times.slice(window + 1).map((time, index) => time - (times[index + 1] ?? 0))) / window / 1000
}
