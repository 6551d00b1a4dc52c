import { readdir, readFile, realpath, stat } from 'node:fs/promises'
import { basename, dirname, join, resolve, sep } from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { errnoOf, fileError } from '../io/file-error.ts'
import { findJsonFault } from '../io/json-syntax.ts'
import type { TensorValue } from '../tensors.ts'
import { openSafetensors, type SafetensorsEntry, type SafetensorsFile } from './safetensors.ts'

/** Where one weight lies. `file`: absolute path, symbolic links resolved; `offset`: absolute, in bytes. */
export interface CheckpointTensor extends SafetensorsEntry {
  readonly file: string
}

/** The weights of one model, in one file or in shards. */
export interface Checkpoint {
  readonly folder: string
  /** Absolute paths, in the order of their names. */
  readonly files: readonly SafetensorsFile[]
  readonly tensors: ReadonlyMap<string, CheckpointTensor>
  /** @throws ModalignError `TENSOR_MISSING` */
  tensor(name: string): CheckpointTensor
  /** @throws ModalignError `TENSOR_MISSING`, `FILE_CHANGED` */
  read(name: string): Promise<TensorValue>
}

const singleName = 'model.safetensors'
const indexName = 'model.safetensors.index.json'
const largestIndexBytes = 64 * 2 ** 20

const indexSchema = z.looseObject({
  metadata: z
    .looseObject({
      total_size: z
        .union([
          z.int(),
          z
            .string()
            .regex(/^\d{1,15}$/)
            .transform(Number),
        ])
        .optional(),
    })
    .optional(),
  weight_map: z.record(z.string(), z.string()),
})

/**
 * Opens the weights of a Hugging Face model folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists, or else the only
 * `.safetensors` file there. A path to a `.safetensors` file works too. Every header is read and checked; no weight is.
 *
 * @throws ModalignError `CHECKPOINT_MISSING` (no weights there), `CHECKPOINT_AMBIGUOUS`, `CHECKPOINT_INDEX` (malformed), `CHECKPOINT_PATH_ESCAPE`,
 * `CHECKPOINT_SHARD_MISSING`, `CHECKPOINT_WEIGHT_TWICE`, `CHECKPOINT_WEIGHT_MISSING`, `CHECKPOINT_WEIGHT_UNLISTED`, `CHECKPOINT_TOTAL_SIZE`, and what
 * `openSafetensors` throws
 * @example
 * const checkpoint = await openCheckpoint('models/SmolLM2-135M-Instruct')
 * const { file, dtype, shape, offset } = checkpoint.tensor('model.embed_tokens.weight')
 */
export async function openCheckpoint(path: string): Promise<Checkpoint> {
  const absolute = resolve(path)
  const found = await stat(absolute).catch((error: unknown) => {
    throw fileError(error, path, 'a model folder or a .safetensors file')
  })
  if (!found.isDirectory()) return checkpoint(dirname(absolute), [await openSafetensors(absolute)])
  const names = await readdir(absolute)
  const single = names.includes(singleName)
  if (!single && names.includes(indexName)) return openSharded(absolute)
  const candidates = single ? [singleName] : names.filter((name) => name.endsWith('.safetensors')).sort()
  const [only] = candidates
  if (only === undefined) throw noWeights(path, names)
  if (candidates.length > 1) {
    throw new ModalignError({
      code: 'CHECKPOINT_AMBIGUOUS',
      file: path,
      got: candidates.join(', '),
      expected: `${singleName}, ${indexName} or one .safetensors file`,
      hint: 'name the file itself',
    })
  }
  return checkpoint(absolute, [await openSafetensors(join(absolute, only))])
}

function noWeights(folder: string, names: readonly string[]): ModalignError {
  const pickle = names.find((name) => /\.(bin|pt|pth|ckpt)$/.test(name))
  return new ModalignError({
    code: 'CHECKPOINT_MISSING',
    file: folder,
    got: pickle === undefined ? 'a folder without weights' : `only ${pickle}`,
    expected: `${singleName} or ${indexName}`,
    hint: pickle === undefined ? 'download the whole model' : 'pickle files can run code when they are loaded: convert it to safetensors',
  })
}

function checkpoint(folder: string, files: readonly SafetensorsFile[]): Checkpoint {
  const owners = new Map<string, SafetensorsFile>()
  const tensors = new Map<string, CheckpointTensor>()
  for (const file of files) {
    for (const [name, entry] of file.tensors) {
      const other = owners.get(name)
      if (other !== undefined)
        throw new ModalignError({
          code: 'CHECKPOINT_WEIGHT_TWICE',
          file: folder,
          got: `${name} in ${other.file} and in ${file.file}`,
          expected: 'each weight in one shard',
        })
      owners.set(name, file)
      tensors.set(name, { ...entry, file: file.file ?? folder })
    }
  }
  function tensor(name: string): CheckpointTensor {
    const entry = tensors.get(name)
    if (entry !== undefined) return entry
    throw new ModalignError({
      code: 'TENSOR_MISSING',
      file: folder,
      got: `no weight ${JSON.stringify(name)}`,
      expected: nearest(name, tensors.keys()),
    })
  }
  return {
    folder,
    files,
    tensors,
    tensor,
    async read(name) {
      tensor(name)
      const file = owners.get(name)
      if (file === undefined) throw new ModalignError({ code: 'TENSOR_MISSING', file: folder, got: name })
      return file.read(name)
    },
  }
}

async function openSharded(folder: string): Promise<Checkpoint> {
  const indexFile = join(folder, indexName)
  const { total, listed } = await readIndex(indexFile)
  const root = await realpath(folder)
  const files: SafetensorsFile[] = []
  const shardOf = new Map<string, string>()
  for (const shard of [...new Set(listed.values())].sort()) {
    const file = await openShard(folder, root, shard, indexFile)
    files.push(file)
    for (const name of file.tensors.keys()) shardOf.set(name, shard)
  }
  const opened = checkpoint(folder, files)
  for (const [name, shard] of listed) {
    if (shardOf.get(name) === shard) continue
    const elsewhere = shardOf.get(name)
    throw new ModalignError({
      code: 'CHECKPOINT_WEIGHT_MISSING',
      file: indexFile,
      field: '/weight_map',
      got: elsewhere === undefined ? `${name}, which no shard has` : `${name} in ${shard}, but it lies in ${elsewhere}`,
      expected: 'each weight in the shard that the index names',
      hint: 'download the folder again',
    })
  }
  for (const name of opened.tensors.keys()) {
    if (!listed.has(name)) {
      throw new ModalignError({
        code: 'CHECKPOINT_WEIGHT_UNLISTED',
        file: indexFile,
        field: '/weight_map',
        got: `no ${name}, which ${shardOf.get(name)} has`,
        expected: 'every weight listed',
      })
    }
  }
  const bytes = [...opened.tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0)
  if (total !== undefined && total !== bytes) {
    throw new ModalignError({
      code: 'CHECKPOINT_TOTAL_SIZE',
      file: indexFile,
      field: '/metadata/total_size',
      got: `${total}`,
      expected: `${bytes}, the bytes of the weights in the shards`,
      hint: 'index and shards are of different versions: download the folder again',
    })
  }
  return opened
}

async function readIndex(file: string): Promise<{ readonly total: number | undefined; readonly listed: ReadonlyMap<string, string> }> {
  const malformed = (got: string, field?: string) =>
    new ModalignError({
      code: 'CHECKPOINT_INDEX',
      file,
      field,
      got,
      expected: '{"metadata": {"total_size"}, "weight_map": {"weight": "file"}}',
    })
  const { size } = await stat(file)
  if (size > largestIndexBytes) throw malformed(`${size} bytes`)
  const text = await readFile(file, 'utf8')
  const fault = findJsonFault(text)
  if (fault?.code === 'JSON_DUPLICATE_KEY' && fault.pointer.startsWith('/weight_map')) {
    throw new ModalignError({
      code: 'CHECKPOINT_WEIGHT_TWICE',
      file,
      field: fault.pointer,
      got: fault.got,
      expected: 'each weight in one shard',
    })
  }
  if (fault !== undefined) throw malformed(`${fault.got} (${fault.code})`, fault.pointer)
  const json: unknown = JSON.parse(text)
  const parsed = indexSchema.safeParse(json)
  const [issue] = parsed.error?.issues ?? []
  if (!parsed.success) throw malformed(issue?.message ?? 'another shape', issue === undefined ? undefined : `/${issue.path.join('/')}`)
  return { total: parsed.data.metadata?.total_size, listed: new Map(Object.entries(parsed.data.weight_map)) }
}

/** A shard is named by a stranger's file: it must lie in the model's folder, or in the blobs of the same Hugging Face cache entry, whose snapshots are symbolic links. */
async function openShard(folder: string, root: string, shard: string, indexFile: string): Promise<SafetensorsFile> {
  const escapes = (got: string) =>
    new ModalignError({
      code: 'CHECKPOINT_PATH_ESCAPE',
      file: indexFile,
      field: '/weight_map',
      got,
      expected: 'a .safetensors file in the same folder',
      hint: 'do not trust this model folder',
    })
  if (!/^[^/\\:\0]+\.safetensors$/.test(shard)) throw escapes(shard)
  const path = join(folder, shard)
  let real: string
  try {
    real = await realpath(path)
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw fileError(error, path)
    throw new ModalignError({
      code: 'CHECKPOINT_SHARD_MISSING',
      file: indexFile,
      field: '/weight_map',
      got: `no ${shard}`,
      expected: 'every shard in the same folder',
      hint: 'download the missing shard',
    })
  }
  const allowed = [root, ...cacheBlobs(root)]
  if (!allowed.some((place) => real.startsWith(place.endsWith(sep) ? place : place + sep))) throw escapes(`${shard}, a link to ${real}`)
  return openSafetensors(path)
}

/** `.../models--org--name/snapshots/REVISION` keeps its files in `.../models--org--name/blobs`. */
function cacheBlobs(root: string): readonly string[] {
  const snapshots = dirname(root)
  return basename(snapshots) === 'snapshots' && basename(dirname(snapshots)).startsWith('models--')
    ? [join(dirname(snapshots), 'blobs')]
    : []
}

/** The names that end alike: a prefix is what checkpoints most often differ in. */
function nearest(name: string, names: Iterable<string>): string {
  const all = [...names]
  const parts = name.split('.')
  for (let kept = parts.length; kept > 0; kept--) {
    const ending = parts.slice(-kept).join('.')
    const alike = all.find((other) => other === ending || other.endsWith(`.${ending}`))
    if (alike !== undefined && kept > 1) return `a name of this checkpoint, such as ${alike}`
  }
  return all.length === 0 ? 'nothing: there are no weights' : `a name of this checkpoint, such as ${all[0]}`
}
