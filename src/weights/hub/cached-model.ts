/** The Hugging Face cache on disk, as huggingface_hub lays it out: `models--ORG--NAME/{refs,snapshots,blobs}`. Read only. */
import { existsSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf, fileError } from '../../io/file-error.ts'
import type { OwnFiles } from './model-files.ts'
import { commitPattern, type ModelName } from './model-name.ts'

export function repoFolder(cacheFolder: string, repo: string): string {
  return join(cacheFolder, `models--${repo.replace('/', '--')}`)
}

/** What the cache has of a model: all of it (`path`: the snapshot's folder, or the file that was named), or less. */
export type CachedModel =
  | { readonly path: string }
  | { readonly path?: never; readonly snapshot: string | undefined; readonly missing: readonly string[] }

/**
 * Looks a model up: its safetensors, or the one file that the name says (GGUF, ONNX). A revision is found through `refs`, or is the snapshot's own name. A snapshot counts where it has all that loading needs: other programs
 * keep parts of models, too.
 *
 * @param own the model's files, where they are not config.json and its like
 * @throws ModalignError `FILE_PERMISSION` and other failures to read
 */
export async function cachedModel(cacheFolder: string, { repo, file, revision }: ModelName, own?: OwnFiles): Promise<CachedModel> {
  const folder = repoFolder(cacheFolder, repo)
  const commit = commitPattern.test(revision) ? revision : (await textOf(join(folder, 'refs', revision)))?.trim()
  if (commit === undefined || !commitPattern.test(commit)) return { snapshot: undefined, missing: [] }
  const snapshot = join(folder, 'snapshots', commit)
  if (!existsSync(snapshot)) return { snapshot: undefined, missing: [] }
  const named = file !== undefined ? [file] : own !== undefined ? [own.config, own.weights] : undefined
  const missing = named === undefined ? await missingFrom(snapshot) : named.filter((path) => !existsSync(join(snapshot, path)))
  return missing.length > 0 ? { snapshot, missing } : { path: file === undefined ? snapshot : join(snapshot, file) }
}

async function missingFrom(snapshot: string): Promise<readonly string[]> {
  const names = (await readdir(snapshot)).filter((name) => existsSync(join(snapshot, name)))
  const missing = names.includes('config.json') ? [] : ['config.json']
  if (names.includes('model.safetensors')) return missing
  const index = names.includes('model.safetensors.index.json') ? await textOf(join(snapshot, 'model.safetensors.index.json')) : undefined
  if (index !== undefined) return [...missing, ...shardsOf(index).filter((shard) => !names.includes(shard))]
  return names.some((name) => name.endsWith('.safetensors')) ? missing : [...missing, 'model.safetensors']
}

/** The files that an index names; an index that is none is for `openCheckpoint` to refuse. */
export function shardsOf(index: string): readonly string[] {
  let parsed: unknown
  try {
    parsed = JSON.parse(index)
  } catch {
    return []
  }
  const map = typeof parsed === 'object' && parsed !== null && 'weight_map' in parsed ? parsed.weight_map : undefined
  const names = typeof map === 'object' && map !== null ? Object.values(map) : []
  return [...new Set(names.filter((name) => typeof name === 'string'))]
}

async function textOf(path: string): Promise<string | undefined> {
  return await readFile(path, 'utf8').catch((error: unknown) => {
    if (['ENOENT', 'ENOTDIR', 'EISDIR'].includes(errnoOf(error) ?? '')) return undefined
    throw fileError(error, path)
  })
}
