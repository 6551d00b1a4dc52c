/** Frozen features on disk, shared by runs and processes: an LMDB environment of checked records. */
import { hash } from 'node:crypto'
import { access, constants } from 'node:fs/promises'
import { resolve } from 'node:path'
import { open, type RootDatabase } from 'lmdb'
import { ModalignError } from '../errors.ts'
import { fileError } from '../io/file-error.ts'
import { nodeFs } from '../io/fs-ops.ts'
import {
  decodeRecord,
  type FeatureDtype,
  type FeatureKey,
  keyText,
  type PackedFeatures,
  packFeatures,
  type StoredFeatures,
} from './stored-features.ts'

export {
  type FeatureDtype,
  type FeatureKey,
  featureDtypes,
  type PackedFeatures,
  payloadBytes,
  type StoredFeatures,
} from './stored-features.ts'

export interface FeatureStoreOptions {
  /** How features are kept, and part of their key. Default float16: half the disk, and within half a thousandth of each value. */
  readonly dtype?: FeatureDtype
}

/** What a store has done since it was opened. */
export interface FeatureStoreCounts {
  readonly hits: number
  readonly misses: number
  readonly written: number
  /** Records that were there but unusable: computed again, and written over. */
  readonly damaged: number
  /** Of them the first, as a person would be told. */
  readonly firstDamage: string | undefined
  /** Kept as float32 in a float16 store, because a value is too large for it. */
  readonly widened: number
}

export interface FeatureStore extends AsyncDisposable {
  readonly folder: string
  readonly dtype: FeatureDtype
  /** Reading only: the folder cannot be written. */
  readonly readOnly: boolean
  readonly counts: FeatureStoreCounts
  /** Undefined where nothing usable is stored. The record holds its key, which is compared. */
  get(key: FeatureKey): StoredFeatures | undefined
  /** The record of features, for {@link FeatureStore.put}. @throws FEATURES_NOT_FINITE */
  pack(key: FeatureKey, features: StoredFeatures): PackedFeatures
  /**
   * Resolves when the records are committed: a process killed later loses none of them. Does nothing in a store for reading only.
   *
   * @throws FEATURE_STORE_WRITE (a full disk)
   */
  put(records: readonly PackedFeatures[]): Promise<void>
  close(): Promise<void>
}

/**
 * Opens a store, or makes one. Several processes may use one at once; LMDB lets one write at a time, and readers never wait.
 *
 * @throws FEATURE_STORE_OPEN, FILE_PERMISSION
 * @example
 * await using store = await openFeatureStore('cache/features', { dtype: 'float16' })
 * for await (const step of tune(model, data, { output: 'runs/first', features: new FeatureMemory(model, { root: 'coco', store }) })) console.log(step.loss)
 */
export async function openFeatureStore(folder: string, { dtype = 'float16' }: FeatureStoreOptions = {}): Promise<FeatureStore> {
  const path = resolve(folder)
  const readOnly = await isReadOnly(path)
  const database = openDatabase(path, readOnly)
  const counts = { hits: 0, misses: 0, written: 0, damaged: 0, firstDamage: undefined as string | undefined, widened: 0 }
  let closed = false

  const close = async (): Promise<void> => {
    if (closed) return
    closed = true
    await database.close()
  }
  /** LMDB reads from a snapshot that lasts for a while: what another process has written since shows in a new one. */
  const found = (id: Buffer): Buffer | undefined => {
    const bytes = database.getBinary(id)
    if (bytes !== undefined) return bytes
    database.resetReadTxn()
    return database.getBinary(id)
  }
  return {
    folder: path,
    dtype,
    readOnly,
    counts,
    get(key) {
      const bytes = found(digest(key, dtype))
      if (bytes === undefined) {
        counts.misses++
        return undefined
      }
      const decoded = decodeRecord(bytes, key, dtype)
      if ('features' in decoded) {
        counts.hits++
        return decoded.features
      }
      counts.damaged++
      counts.firstDamage ??= `${key.modality} ${key.content.slice(0, 12)}: ${decoded.damage}`
      return undefined
    },
    pack: (key, features) => packFeatures(key, features, dtype),
    async put(records) {
      if (readOnly || records.length === 0) return
      try {
        await database.transaction(() => {
          for (const { key, bytes } of records)
            database.putSync(digest(key, dtype), Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))
        })
      } catch (error) {
        throw new ModalignError({
          code: 'FEATURE_STORE_WRITE',
          file: path,
          got: error instanceof Error ? error.message : String(error),
          hint: 'free space on the disk, or name another folder; what was written before is kept',
          cause: error,
        })
      }
      counts.written += records.length
      counts.widened += records.filter((one) => one.dtype !== dtype).length
    },
    close,
    [Symbol.asyncDispose]: close,
  }
}

function digest(key: FeatureKey, dtype: FeatureDtype): Buffer {
  return hash('sha256', keyText(key, dtype), 'buffer')
}

async function isReadOnly(path: string): Promise<boolean> {
  try {
    await nodeFs.mkdir(path)
    await access(path, constants.W_OK)
    return false
  } catch (error) {
    // A store that somebody else filled, on a disk that this process may only read.
    const readable = await access(resolve(path, 'data.mdb'), constants.R_OK).then(
      () => true,
      () => false,
    )
    if (readable) return true
    throw fileError(error, path, 'a folder that can be written')
  }
}

function openDatabase(path: string, readOnly: boolean): RootDatabase<Buffer, Buffer> {
  try {
    return open<Buffer, Buffer>({ path, noSubdir: false, encoding: 'binary', keyEncoding: 'binary', readOnly })
  } catch (error) {
    throw new ModalignError({
      code: 'FEATURE_STORE_OPEN',
      file: path,
      got: error instanceof Error ? error.message : String(error),
      expected: 'a feature store, or an empty folder',
      hint: 'delete the folder if it is damaged: features are computed again',
      cause: error,
    })
  }
}
