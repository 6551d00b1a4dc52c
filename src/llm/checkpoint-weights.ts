import { ModalignError } from '../errors.ts'
import { cast } from '../graph/operators/cast.ts'
import { type Tensor, type WeightSource, weight as weightTensor } from '../graph/tensor.ts'
import type { DataType, TensorValue } from '../tensors.ts'
import type { Checkpoint } from '../weights/checkpoint.ts'
import { toFloat32 } from '../weights/float16.ts'
import type { SafetensorsFile } from '../weights/safetensors-source.ts'
import type { WeightLookup } from './decoder.ts'

/**
 * Weights of a checkpoint as graph tensors that point into its files. 16-bit weights are widened to float32 in the graph: ONNX Runtime does that once, when it loads.
 *
 * @throws WEIGHT_SHAPE, WEIGHT_DTYPE, TENSOR_MISSING: config.json and the weights do not belong together.
 */
export function checkpointWeights(checkpoint: Checkpoint): WeightLookup {
  const find = (name: string): Found => {
    const { file, dtype, shape, offset, byteLength } = checkpoint.tensor(name)
    return { file, dtype, shape, source: { kind: 'file', file, offset, byteLength } }
  }
  return checkedWeights(find, (name) => checkpoint.tensors.has(name))
}

/**
 * The same for places without files (browsers): every tensor is read into memory now, and goes with the lowered graph as `externalData`. 16-bit weights are widened
 * here, because onnxruntime-web has no `Cast` from bfloat16 on WebGPU.
 *
 * @throws as {@link checkpointWeights}, and what reading the tensors throws
 * @example
 * const weights = await memoryWeights(await readSafetensors(await httpSource('/models/tiny/model.safetensors')))
 * const decoder = buildDecoder(config, weights)
 */
export async function memoryWeights(safetensors: SafetensorsFile): Promise<WeightLookup> {
  const { file } = safetensors
  const values = new Map(
    await Promise.all([...safetensors.tensors.keys()].map(async (name) => [name, widened(await safetensors.read(name))] as const)),
  )
  const find = (name: string): Found => {
    const value = values.get(name)
    if (value === undefined)
      throw new ModalignError({ code: 'TENSOR_MISSING', file, got: `no tensor ${JSON.stringify(name)}`, expected: 'a weight of the model' })
    return { file, dtype: value.dtype, shape: value.dims, source: { kind: 'memory', value } }
  }
  return checkedWeights(find, (name) => values.has(name))
}

function widened(value: TensorValue): TensorValue {
  return value.dtype === 'float16' || value.dtype === 'bfloat16' ? { dtype: 'float32', dims: value.dims, data: toFloat32(value) } : value
}

interface Found {
  readonly file: string | undefined
  readonly dtype: DataType
  readonly shape: readonly number[]
  readonly source: WeightSource
}

function checkedWeights(find: (name: string) => Found, has: (name: string) => boolean): WeightLookup {
  const known = new Map<string, Tensor>()
  const lookup = (name: string, shape: readonly number[]): Tensor => {
    const seen = known.get(name)
    if (seen !== undefined) return seen
    const { file, dtype, shape: stored, source } = find(name)
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
    const tensor = cast(weightTensor(name, dtype, shape, source), 'float32')
    known.set(name, tensor)
    return tensor
  }
  return Object.assign(lookup, { has })
}
