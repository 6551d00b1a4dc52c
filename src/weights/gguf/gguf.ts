import { fileSource } from '../../io/byte-source.ts'
import type { ByteSource } from '../../io/memory-source.ts'
import { type GgufHeader, parseGgufHeader } from './header.ts'

export type { GgufArray, GgufTensor, GgufValue } from './header.ts'

/** A GGUF file: the header read and checked, the tensors where they lie. */
export interface GgufFile extends GgufHeader {
  /** Absolute path, where the source is a file. */
  readonly file?: string
  readonly source: ByteSource
}

/**
 * Opens a GGUF file (llama.cpp), version 2 or 3: its header is read and checked in full, no tensor is. Nothing stays open, so there is nothing to close.
 *
 * @throws ModalignError `GGUF_*`, `WEIGHTS_LFS_POINTER`, and what `fileSource` throws
 * @example
 * const { metadata, tensors } = await openGguf('SmolLM2-135M-Instruct.Q4_1.gguf')
 * for (const [name, { type, shape }] of tensors) console.log(name, type.name, shape)
 */
export async function openGguf(path: string): Promise<GgufFile> {
  const source = await fileSource(path)
  return { ...(await parseGgufHeader(source, path)), file: source.path, source }
}

/**
 * The same for bytes of any origin.
 *
 * @throws ModalignError `GGUF_*`
 */
export async function readGguf(source: ByteSource): Promise<GgufFile> {
  return { ...(await parseGgufHeader(source)), source }
}
