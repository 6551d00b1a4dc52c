/** The forms in which language models are published. A form is one file and one line here. */
import { open, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { ModalignError } from '../../errors.ts'
import { fileError } from '../../io/file-error.ts'
import { resolveModel } from '../../weights/hub/resolve-model.ts'
import { openFolder } from './folder.ts'
import { openGgufModel } from './gguf.ts'
import type { ModelSource, SourceOptions } from './model-source.ts'
import { exportFiles, openExport } from './onnx.ts'

export type { ModelSource, SourceOptions, WeightForm } from './model-source.ts'

/**
 * Opens a model folder, a .gguf file or an ONNX export, whichever it is; a folder with one .gguf file and no config.json counts as that file. What lies at no path may be
 * a model's name: see `resolveModel`.
 *
 * @throws ModalignError `FILE_MISSING`, `LLM_FORM` for a file of another kind, what opening throws, and what `resolveModel` throws
 */
export async function openSource(named: string, options: SourceOptions = {}): Promise<ModelSource> {
  const where = await resolveModel(named, options)
  const source = await openPath(where, options)
  // A folder of the cache is called by a commit's digits, which says nothing to people.
  return where === named ? source : { ...source, label: named }
}

async function openPath(where: string, options: SourceOptions): Promise<ModelSource> {
  const found = await stat(where).catch((error: unknown) => {
    throw fileError(error, where, 'a Hugging Face model folder or a .gguf file')
  })
  if (!found.isDirectory()) return openFile(where, options)
  if ((await exportFiles(where)).length > 0) return openExport(where, options)
  const names = await readdir(where)
  const [only, ...others] = names.filter((name) => name.toLowerCase().endsWith('.gguf'))
  if (only === undefined || names.includes('config.json')) return openFolder(where, options)
  if (others.length === 0) return openGgufModel(join(where, only), options)
  throw new ModalignError({
    code: 'LLM_AMBIGUOUS',
    file: where,
    got: [only, ...others].join(', '),
    expected: 'one .gguf file',
    hint: 'name the file itself',
  })
}

async function openFile(path: string, options: SourceOptions): Promise<ModelSource> {
  if (path.toLowerCase().endsWith('.onnx')) return openExport(path, options)
  await using handle = await open(path, 'r')
  const { buffer, bytesRead } = await handle.read({ buffer: Buffer.alloc(4), position: 0 })
  if (buffer.toString('latin1', 0, bytesRead) === 'GGUF' || path.toLowerCase().endsWith('.gguf')) return openGgufModel(path, options)
  throw new ModalignError({
    code: 'LLM_FORM',
    file: path,
    got: 'a file that is no GGUF file',
    expected: 'a Hugging Face model folder or a .gguf file',
    hint: path.endsWith('.safetensors') ? 'name the folder: the weights alone do not say what model they are' : undefined,
  })
}
