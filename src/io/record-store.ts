import { open } from 'node:fs/promises'
import { ModalignError, unreachable } from '../errors.ts'
import { errnoOf, fileError } from './file-error.ts'
import { type FsOps, nodeFs } from './fs-ops.ts'

/** Records kept on disk for as long as a program works with them, with only their places in memory: 8 bytes a record. */
export interface RecordStore extends AsyncDisposable {
  readonly length: number
  /** Adds a record at the end. Records are written in blocks; one call at a time. */
  append(record: Uint8Array): Promise<void>
  /** @throws ModalignError `FILE_CHANGED` if the file is not what was written */
  read(index: number): Promise<Uint8Array>
  /** Removes the file. */
  dispose(): Promise<void>
}

const blockBytes = 1 << 20

/**
 * Opens an empty store in a new file at `path`. What a killed program left there is overwritten; nothing of it is kept.
 *
 * @throws ModalignError as `fileError` maps them
 * @example
 * await using store = await openRecordStore('runs/first/.samples')
 * await store.append(Buffer.from('a record'))
 * String.fromCharCode(...(await store.read(0))) // 'a record'
 */
export async function openRecordStore(path: string, { fs = nodeFs }: { readonly fs?: FsOps } = {}): Promise<RecordStore> {
  const failing = async <T>(work: Promise<T>): Promise<T> =>
    work.catch((error: unknown) => {
      throw fileError(error, path)
    })
  const file = await failing(fs.open(path, 'update'))
  await failing(file.truncate(0))
  const reader = await failing(open(path, 'r'))
  const ends = new Offsets()
  /** What no write has taken yet; it begins at `taken`. */
  let pending: Uint8Array[] = []
  let pendingBytes = 0
  let taken = 0
  let writing: Promise<void> = Promise.resolve()
  let closed = false

  /** Everything appended so far is in the file when this ends, whoever wrote it. */
  const flush = (): Promise<void> => {
    if (pendingBytes > 0) {
      const block = Buffer.concat(pending, pendingBytes)
      const start = taken
      taken += block.length
      pending = []
      pendingBytes = 0
      writing = writing.then(() => failing(file.write(block, start)))
    }
    return writing
  }
  const dispose = async (): Promise<void> => {
    if (closed) return
    closed = true
    await writing.catch(() => undefined)
    await Promise.all([file.close(), reader.close()])
    await fs.unlink(path).catch((error: unknown) => {
      // Gone already: somebody tidied up.
      if (errnoOf(error) !== 'ENOENT') throw fileError(error, path)
    })
  }
  return {
    get length() {
      return ends.length
    },
    async append(record) {
      pending.push(record.slice())
      pendingBytes += record.length
      ends.push(taken + pendingBytes)
      if (pendingBytes >= blockBytes) await flush()
    },
    async read(index) {
      if (!(index >= 0 && index < ends.length)) return unreachable(`record ${index} of ${ends.length}`)
      await flush()
      const start = index === 0 ? 0 : ends.at(index - 1)
      const record = new Uint8Array(ends.at(index) - start)
      for (let filled = 0; filled < record.length; ) {
        const { bytesRead } = await failing(reader.read(record, filled, record.length - filled, start + filled))
        if (bytesRead === 0)
          throw new ModalignError({
            code: 'FILE_CHANGED',
            file: path,
            got: `an end at byte ${start + filled}`,
            expected: 'the file as it was written',
          })
        filled += bytesRead
      }
      return record
    },
    dispose,
    [Symbol.asyncDispose]: dispose,
  }
}

/** A growing list of file offsets, 8 bytes each. */
class Offsets {
  #values = new Float64Array(1024)
  #length = 0

  get length(): number {
    return this.#length
  }

  push(value: number): void {
    if (this.#length === this.#values.length) {
      const larger = new Float64Array(this.#length * 2)
      larger.set(this.#values)
      this.#values = larger
    }
    this.#values[this.#length++] = value
  }

  at(index: number): number {
    return this.#values[index] ?? unreachable('an offset that was never stored')
  }
}
