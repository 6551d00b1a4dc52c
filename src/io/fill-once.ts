import { existsSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ModalignError } from '../errors.ts'
import { fileError } from './file-error.ts'
import { type FsOps, nodeFs } from './fs-ops.ts'
import { acquireLock } from './lock.ts'

export interface FillOnceOptions {
  readonly fs?: FsOps | undefined
  readonly signal?: AbortSignal | undefined
  /** How often to look whether another process is done. Default 200. */
  readonly pollMs?: number | undefined
}

/**
 * Sees to it that a file is there: where it is missing one process fills it, under a lock beside it, and the others wait.
 *
 * @param fill makes the file; it appears under its name only when it is whole. If it fails, the next process in line tries
 * @throws what `fill` throws, an AbortError, `DISK_*`
 * @example
 * await fillOnce('cache/table.bin', () => writeFileAtomic('cache/table.bin', table))
 */
export async function fillOnce(
  path: string,
  fill: () => Promise<void>,
  { fs = nodeFs, signal, pollMs = 200 }: FillOnceOptions = {},
): Promise<void> {
  while (!existsSync(path)) {
    signal?.throwIfAborted()
    await fs.mkdir(dirname(path)).catch((error: unknown) => {
      throw fileError(error, dirname(path))
    })
    const lock = await acquireLock(`${path}.lock`, { fs }).catch((error: unknown) => {
      if (error instanceof ModalignError && error.code === 'OUTPUT_LOCKED') return undefined
      throw error
    })
    if (lock === undefined) {
      await sleep(pollMs, undefined, signal === undefined ? {} : { signal })
      continue
    }
    try {
      if (!existsSync(path)) await fill()
    } finally {
      await lock.release()
    }
  }
}
