/**
 * A copy of a checkpoint with some weights changed, and the way back. The copy's files have the original's headers and layout, so a changed weight stands where the old one
 * stood; what stood there is kept beside it, and putting it back gives the original files byte for byte, which their hashes prove.
 */
import { createHash, type Hash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { readdir, readFile, stat } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../../errors.ts'
import { writeFileAtomic } from '../../io/atomic.ts'
import { type FileSource, fileSource } from '../../io/byte-source.ts'
import { fileError } from '../../io/file-error.ts'
import { nodeFs } from '../../io/fs-ops.ts'
import type { DataType, TensorValue } from '../../tensors.ts'
import { readJson } from '../../text/model-folder.ts'
import type { Checkpoint, CheckpointTensor } from '../../weights/checkpoint.ts'
import { toBfloat16, toFloat16, toFloat32 } from '../../weights/float16.ts'
import { openSafetensors, type TensorToWrite, writeSafetensors } from '../../weights/safetensors.ts'

const manifestName = 'merge.json'
const originalsName = 'merge.originals'
const chunkBytes = 8 * 2 ** 20
const manifestSchema = z.strictObject({
  format: z.literal(1),
  /** Each changed file: the hash of the original, and where its changed weights lie, by the names that they have among the originals. */
  files: z.record(
    z.string().regex(/^[^/\\:\0]+$/),
    z.strictObject({
      sha256: z.string(),
      weights: z.record(z.string(), z.strictObject({ offset: z.int().min(0), byteLength: z.int().min(0) })),
    }),
  ),
})
type Manifest = z.infer<typeof manifestSchema>

/** New values of a weight from its old ones, float32 both; rounded to the weight's own type. */
export type WeightChange = (original: Float32Array, shape: readonly number[]) => Float32Array

/**
 * Writes a model folder whose weights are the checkpoint's, but for some; configuration, tokenizer and templates come along. One weight and 8 MiB are in memory at a time.
 *
 * @throws ADAPTER_MERGE_FOLDER where the folder holds something, TENSOR_MISSING, and what reading and writing throw. `merge.json` is written first, the model's files
 * after it: a folder that was not finished is not taken for a model.
 */
export async function writeChanged(checkpoint: Checkpoint, folder: string, changes: ReadonlyMap<string, WeightChange>): Promise<void> {
  const target = resolve(folder)
  if (existsSync(target) && (await readdir(target)).length > 0)
    throw new ModalignError({ code: 'ADAPTER_MERGE_FOLDER', file: folder, got: 'a folder with files', expected: 'an empty or new one' })
  await nodeFs.mkdir(target)
  const byFile = new Map<string, Map<string, CheckpointTensor>>()
  for (const name of changes.keys()) {
    const tensor = checkpoint.tensor(name)
    const own = byFile.get(tensor.file) ?? new Map<string, CheckpointTensor>()
    byFile.set(tensor.file, own.set(name, tensor))
  }
  const originals: TensorToWrite[] = [...changes.keys()].map((name) => {
    const { dtype, shape: dims } = checkpoint.tensor(name)
    return { name, dtype, dims, load: () => checkpoint.read(name) }
  })
  await writeSafetensors(join(target, originalsName), originals, { format: 'modalign' })
  const names = await namesInFolder(checkpoint)
  const files: Record<string, Manifest['files'][string]> = {}
  for (const [file, weights] of byFile) {
    const entries = [...weights].map(([name, { offset, byteLength }]) => [name, { offset, byteLength }] as const)
    files[names.get(file) ?? basename(file)] = { sha256: await hashOf(await fileSource(file)), weights: Object.fromEntries(entries) }
  }
  await writeFileAtomic(join(target, manifestName), `${JSON.stringify({ format: 1, files } satisfies Manifest, undefined, 2)}\n`)
  for (const [file, name] of names) {
    const weights = byFile.get(file) ?? new Map<string, CheckpointTensor>()
    const patches = [...weights].map(
      ([key, tensor]): Patch => ({ ...tensor, bytes: () => changedBytes(checkpoint, key, tensor, changes.get(key)) }),
    )
    await writeFileAtomic(join(target, name), patched(await fileSource(file), patches))
  }
  for (const name of await smallFiles(checkpoint.folder))
    await writeFileAtomic(join(target, name), await readFile(join(checkpoint.folder, name)))
}

/**
 * Puts the original weights of a merged folder back: afterwards its files are the original checkpoint's, byte for byte. Interrupted, it can be called again.
 *
 * @throws ADAPTER_MERGE_MISSING (the folder is no merged model), ADAPTER_MERGE_DAMAGED (a file is not what merging wrote), and what reading and writing throw.
 */
export async function restoreOriginals(folder: string): Promise<void> {
  const target = resolve(folder)
  const file = join(target, manifestName)
  const parsed = manifestSchema.safeParse(await readJson(file, 64 * 2 ** 20))
  if (!parsed.success)
    throw new ModalignError({
      code: 'ADAPTER_MERGE_MISSING',
      file,
      got: existsSync(file) ? parsed.error.issues[0]?.message : 'nothing',
      expected: 'the record of a merge',
      hint: 'name a folder that was written by merging',
    })
  const originals = await openSafetensors(join(target, originalsName))
  for (const [name, { sha256, weights }] of Object.entries(parsed.data.files)) {
    const source = await fileSource(join(target, name))
    const patches = Object.entries(weights).map(
      ([key, { offset, byteLength }]): Patch => ({ offset, byteLength, bytes: async () => bytesOf(await originals.read(key)) }),
    )
    const hash = createHash('sha256')
    await writeFileAtomic(
      join(target, name),
      verified(hashed(patched(source, patches), hash), () => {
        if (hash.digest('hex') !== sha256)
          throw new ModalignError({
            code: 'ADAPTER_MERGE_DAMAGED',
            file: join(target, name),
            got: 'other bytes than those of the original',
            expected: 'what merging wrote',
          })
      }),
    )
  }
  for (const name of [manifestName, originalsName]) await nodeFs.unlink(join(target, name))
  await nodeFs.syncDir(target)
}

interface Patch {
  readonly offset: number
  readonly byteLength: number
  readonly bytes: () => Promise<Uint8Array>
}

/** A file's bytes with some ranges replaced. */
async function* patched(source: FileSource, patches: readonly Patch[]): AsyncGenerator<Uint8Array, void, undefined> {
  let at = 0
  async function* upTo(end: number): AsyncGenerator<Uint8Array, void, undefined> {
    for (; at < end; at += Math.min(chunkBytes, end - at)) yield source.read(at, Math.min(chunkBytes, end - at))
  }
  for (const { offset, byteLength, bytes } of [...patches].sort((a, b) => a.offset - b.offset)) {
    yield* upTo(offset)
    const replacement = await bytes()
    if (offset < at || replacement.length !== byteLength) throw new Error('internal: a patch of another length or place')
    yield replacement
    at = offset + byteLength
  }
  yield* upTo(source.size)
}

async function* hashed(chunks: AsyncIterable<Uint8Array>, hash: Hash): AsyncGenerator<Uint8Array, void, undefined> {
  for await (const chunk of chunks) {
    hash.update(chunk)
    yield chunk
  }
}

/** `check` throws before the file is put into its place. */
async function* verified(chunks: AsyncIterable<Uint8Array>, check: () => void): AsyncGenerator<Uint8Array, void, undefined> {
  yield* chunks
  check()
}

async function hashOf(source: FileSource): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of patched(source, [])) hash.update(chunk)
  return hash.digest('hex')
}

async function changedBytes(
  checkpoint: Checkpoint,
  name: string,
  { dtype, shape }: CheckpointTensor,
  change: WeightChange | undefined,
): Promise<Uint8Array> {
  const original = await checkpoint.read(name)
  if (change === undefined) return bytesOf(original)
  return bytesOf(rounded(dtype, shape, change(toFloat32(original), shape), name))
}

function rounded(dtype: DataType, dims: readonly number[], data: Float32Array, name: string): TensorValue {
  switch (dtype) {
    case 'float32':
      return { dtype, dims, data }
    case 'float16':
      return { dtype, dims, data: toFloat16(data) }
    case 'bfloat16':
      return { dtype, dims, data: toBfloat16(data) }
    default:
      throw new ModalignError({ code: 'WEIGHT_DTYPE', field: name, got: dtype, expected: 'float32, float16 or bfloat16' })
  }
}

function bytesOf({ data }: TensorValue): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
}

/** The weights' files by their real paths, with the names that the folder has for them: in the Hugging Face cache those are links. */
async function namesInFolder({ folder, files }: Checkpoint): Promise<ReadonlyMap<string, string>> {
  const wanted = new Set(files.map(({ file }) => file))
  const found = new Map<string, string>()
  for (const name of await readdir(folder)) {
    if (!name.endsWith('.safetensors')) continue
    const { path } = await fileSource(join(folder, name))
    if (wanted.has(path)) found.set(path, name)
  }
  return found
}

const largestSmallFile = 64 * 2 ** 20

/** Configuration, tokenizer, templates, the index of the shards, licences. */
async function smallFiles(folder: string): Promise<readonly string[]> {
  const kept: string[] = []
  for (const name of await readdir(folder)) {
    // The base may be a merged model itself: its way back is not this one's.
    if (name === manifestName) continue
    if (!/\.(json|jinja|txt|model|md)$/.test(name) && !/^LICEN[SC]E/.test(name)) continue
    const found = await stat(join(folder, name)).catch((error: unknown) => {
      throw fileError(error, join(folder, name))
    })
    if (found.isFile() && found.size <= largestSmallFile) kept.push(name)
  }
  return kept
}
