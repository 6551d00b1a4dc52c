/** Weights that stay in blocks of 4 or 8 bits, in a checkpoint of our own making. */
import { ModalignError } from '../errors.ts'
import { blockQuantised } from '../graph/composites/block-quantised.ts'
import { matmulTransposed } from '../graph/composites/linear.ts'
import { type Tensor, weight as weightTensor } from '../graph/tensor.ts'
import type { Checkpoint } from '../weights/checkpoint.ts'
import { checkpointWeights } from './checkpoint-weights.ts'
import type { LinearLayer, WeightLookup } from './decoder.ts'

/** The names of the parts of the weight `name`: uint8 [rows, blocks, bytes], float32 [rows, blocks], and where there are minimums float32 [rows, blocks]. */
export function blockNames(name: string): Readonly<Record<'packed' | 'scales' | 'minimums', string>> {
  return { packed: `${name}.blocks`, scales: `${name}.scales`, minimums: `${name}.minimums` }
}

/**
 * Weights of a checkpoint, some of them in blocks: those are `blockQuantised` tensors, which products and look-ups read block by block. Blocks always lie [out, in].
 *
 * @throws as `checkpointWeights`
 */
export function blockWeights(checkpoint: Checkpoint): WeightLookup {
  const plain = checkpointWeights(checkpoint)
  const inBlocks = (name: string): boolean => checkpoint.tensors.has(blockNames(name).packed)
  const known = new Map<string, Tensor>()
  const quantised = (name: string, shape: readonly number[]): Tensor => {
    const seen = known.get(name)
    if (seen !== undefined) return seen
    const tensor = quantisedTensor(checkpoint, name, shape)
    known.set(name, tensor)
    return tensor
  }
  return Object.assign((name: string, shape: readonly number[]) => (inBlocks(name) ? quantised(name, shape) : plain(name, shape)), {
    has: (name: string) => inBlocks(name) || checkpoint.tensors.has(name),
    linear: (x: Tensor, { weight, layout, inFeatures, outFeatures }: LinearLayer, usual: () => Tensor) =>
      layout === 'in-out' && inBlocks(weight) ? matmulTransposed(x, quantised(weight, [outFeatures, inFeatures])) : usual(),
  })
}

function quantisedTensor(checkpoint: Checkpoint, name: string, shape: readonly number[]): Tensor {
  const names = blockNames(name)
  const { shape: stored } = checkpoint.tensor(names.packed)
  const [rows = 0, blocks = 0, bytes = 0] = stored
  const [expectedRows = 0, columns = 0] = shape
  const bits = (8 * blocks * bytes) / columns
  if (rows !== expectedRows || (bits !== 4 && bits !== 8)) {
    throw new ModalignError({
      code: 'WEIGHT_SHAPE',
      file: checkpoint.folder,
      field: name,
      got: `blocks [${stored.join(', ')}]`,
      expected: `[${shape.join(', ')}] by config.json`,
    })
  }
  const part = (of: string): Tensor => {
    const { file, dtype, shape: dims, offset, byteLength } = checkpoint.tensor(of)
    return weightTensor(of, dtype, dims, { kind: 'file', file, offset, byteLength })
  }
  const least = checkpoint.tensors.has(names.minimums) ? { minimums: part(names.minimums) } : {}
  return blockQuantised({ packed: part(names.packed), scales: part(names.scales), bits, ...least })
}
