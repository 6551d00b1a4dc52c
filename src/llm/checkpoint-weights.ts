import { ModalignError } from '../errors.ts'
import { cast } from '../graph/operators/cast.ts'
import { type Tensor, weight as weightTensor } from '../graph/tensor.ts'
import type { Checkpoint } from '../weights/checkpoint.ts'
import type { WeightLookup } from './decoder.ts'

/**
 * Weights of a checkpoint as graph tensors that point into its files. 16-bit weights are widened to float32 in the graph: ONNX Runtime does that once, when it loads.
 *
 * @throws WEIGHT_SHAPE, WEIGHT_DTYPE, TENSOR_MISSING: config.json and the weights do not belong together.
 */
export function checkpointWeights(checkpoint: Checkpoint): WeightLookup {
  const known = new Map<string, Tensor>()
  return (name, shape) => {
    const seen = known.get(name)
    if (seen !== undefined) return seen
    const { file, dtype, shape: stored, offset, byteLength } = checkpoint.tensor(name)
    if (String(stored) !== String(shape)) {
      throw new ModalignError({
        code: 'WEIGHT_SHAPE',
        file,
        field: name,
        got: `[${stored.join(', ')}]`,
        expected: `[${shape.join(', ')}] by config.json`,
      })
    }
    if (dtype !== 'float32' && dtype !== 'float16' && dtype !== 'bfloat16') {
      throw new ModalignError({ code: 'WEIGHT_DTYPE', file, field: name, got: dtype, expected: 'float32, float16 or bfloat16' })
    }
    const tensor = cast(weightTensor(name, dtype, shape, { kind: 'file', file, offset, byteLength }), 'float32')
    known.set(name, tensor)
    return tensor
  }
}
