import { writeFileAtomic } from '../io/atomic.ts'
import { type ByteSource, fileSource } from '../io/byte-source.ts'
import type { FsOps } from '../io/fs-ops.ts'
import { readSafetensors, type SafetensorsFile, safetensorsChunks, type TensorToWrite } from './safetensors-source.ts'

export type { SafetensorsEntry } from './safetensors-header.ts'
export { readSafetensors, type SafetensorsFile, safetensorsBytes, type TensorToWrite } from './safetensors-source.ts'

/**
 * Opens a safetensors file: only its header is read now, and checked in full; tensors are read when asked for. Nothing stays open, so there is nothing to close.
 *
 * @throws ModalignError `SAFETENSORS_*`, `WEIGHTS_LFS_POINTER`, `WEIGHTS_PICKLE`, and what `fileSource` throws
 * @example
 * const weights = await openSafetensors('model.safetensors')
 * for (const [name, { dtype, shape }] of weights.tensors) console.log(name, dtype, shape)
 */
export async function openSafetensors(pathOrSource: string | ByteSource): Promise<SafetensorsFile> {
  if (typeof pathOrSource !== 'string') return readSafetensors(pathOrSource)
  const source = await fileSource(pathOrSource)
  return readSafetensors(source, source.path)
}

/**
 * Writes a safetensors file in one atomic step, one tensor at a time. The bytes depend only on the tensors and the metadata, not on their order, and equal those
 * of Python's `safetensors.save_file`.
 *
 * @throws ModalignError `SAFETENSORS_DUPLICATE`, `SAFETENSORS_SHAPE`, `SAFETENSORS_LIMIT`, and what `writeFileAtomic` throws
 * @example
 * await writeSafetensors('projector.safetensors', [{ name: '0.bias', value: float32Tensor(new Float32Array(4), [4]) }], { format: 'pt' })
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorToWrite>,
  metadata?: Readonly<Record<string, string>>,
  options?: { readonly fs?: FsOps },
): Promise<void> {
  await writeFileAtomic(path, safetensorsChunks(tensors, metadata), options)
}
