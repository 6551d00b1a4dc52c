/** Weights in the form that sessions map: made once, kept in the cache folder, shared by every session and process that uses the model. */
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { cacheFolder } from '../io/cache-folder.ts'
import { cachedFile } from '../io/cached-file.ts'
import { bytesPerElement, elementCount } from '../tensors.ts'
import { type Checkpoint, openCheckpoint } from '../weights/checkpoint.ts'
import { safetensorsChunks, type TensorToWrite } from '../weights/safetensors-source.ts'

export interface WeightCacheOptions {
  /** Where such files are kept. Default: see `cacheFolder`. */
  readonly folder?: string
  readonly signal?: AbortSignal
  /** Told before a file is made, which takes seconds to minutes. */
  readonly onBuild?: (file: string, bytes: number) => void
}

/** Changes with every change of what such files hold. */
const formatVersion = 4

/**
 * A checkpoint of these tensors, from the cache or made now.
 *
 * @param form what was made of the weights: part of the file's name
 * @param sources fingerprints of the files that they were made of
 * @throws ModalignError as `cachedFile`, and what making the tensors throws
 */
export async function cachedCheckpoint(
  form: string,
  sources: readonly string[],
  tensors: () => readonly TensorToWrite[],
  { folder = cacheFolder(), signal, onBuild }: WeightCacheOptions = {},
): Promise<Checkpoint> {
  const key = createHash('sha256')
    .update(JSON.stringify([formatVersion, form, sources]))
    .digest('hex')
    .slice(0, 40)
  const path = join(folder, 'weights', `${form}-${key}.safetensors`)
  if (!existsSync(path)) {
    const made = tensors()
    onBuild?.(
      path,
      made.reduce((sum, tensor) => sum + bytesOf(tensor), 0),
    )
    await cachedFile(path, () => safetensorsChunks(made, { modalign: form }), signal === undefined ? {} : { signal })
  }
  return openCheckpoint(path)
}

function bytesOf(tensor: TensorToWrite): number {
  const { dtype, dims } = 'value' in tensor ? tensor.value : tensor
  return elementCount(dims) * bytesPerElement[dtype]
}
