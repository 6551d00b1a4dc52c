import type { FsOps, WritableFile } from './fs-ops.ts'
import { nodeFs } from './fs-ops.ts'

/** Disks that fail on purpose, for tests of everything that persists: SQLite's loop "let operation n fail, for n = 1, 2, ... until none is left". */

export type FsOpName = 'open' | 'write' | 'truncate' | 'sync' | 'close' | 'rename' | 'link' | 'unlink' | 'mkdir' | 'readdir' | 'syncDir'

export interface FsOpRecord {
  readonly op: FsOpName
  readonly path: string
}

/** A disk that remembers what was asked of it. `hit`: whether the planned fault has happened. */
export interface FaultyFs extends FsOps {
  readonly log: readonly FsOpRecord[]
  readonly hit: boolean
}

/** What a {@link crashNth} disk throws, now and for ever after: the process is to be thought of as gone. */
export class SimulatedCrash extends Error {
  constructor(at: FsOpRecord) {
    super(`simulated crash at ${at.op} ${at.path}`)
    this.name = 'SimulatedCrash'
  }
}

/** Changes nothing and records every operation. */
export function recordOps(inner: FsOps = nodeFs): FaultyFs {
  return intercept(inner, () => undefined)
}

/**
 * The n-th operation (counted from 1) fails with `errno`; all others work. A failing write leaves the first half of its bytes behind, as a full disk does.
 *
 * @example
 * for (let n = 1; ; n++) {
 *   const fs = failNth(n, 'ENOSPC')
 *   await writeFileAtomic('a.json', '{}', { fs }).catch(() => {})
 *   if (!fs.hit) break
 * }
 */
export function failNth(n: number, errno: 'ENOSPC' | 'EIO' | 'EMFILE' | 'EROFS' | 'EACCES' | 'EDQUOT', inner: FsOps = nodeFs): FaultyFs {
  return intercept(inner, (index, at) => {
    if (index !== n) return undefined
    const error = Object.assign(new Error(`${errno}: injected, ${at.op} '${at.path}'`), { code: errno, syscall: at.op, path: at.path })
    return { error, torn: 0.5 }
  })
}

/**
 * From the n-th operation (counted from 1) on, nothing reaches the disk any more and every call throws {@link SimulatedCrash}. If the n-th is a write,
 * the given share of its bytes arrives first.
 */
export function crashNth(n: number, { torn = 0, inner = nodeFs }: { readonly torn?: number; readonly inner?: FsOps } = {}): FaultyFs {
  return intercept(inner, (index, at) => (index < n ? undefined : { error: new SimulatedCrash(at), torn: index === n ? torn : 0 }))
}

interface Fault {
  readonly error: Error
  readonly torn: number
}

function intercept(inner: FsOps, plan: (index: number, at: FsOpRecord) => Fault | undefined): FaultyFs {
  const log: FsOpRecord[] = []
  let hit = false

  function next(op: FsOpName, path: string): Fault | undefined {
    const at = { op, path }
    log.push(at)
    const fault = plan(log.length, at)
    if (fault !== undefined) hit = true
    return fault
  }
  async function guarded<T>(op: FsOpName, path: string, run: () => Promise<T>): Promise<T> {
    const fault = next(op, path)
    if (fault !== undefined) throw fault.error
    return run()
  }
  function file(real: WritableFile, path: string): WritableFile {
    return {
      async write(bytes, position) {
        const fault = next('write', path)
        if (fault === undefined) return real.write(bytes, position)
        const arrived = Math.floor(bytes.length * fault.torn)
        if (arrived > 0) await real.write(bytes.subarray(0, arrived), position)
        throw fault.error
      },
      truncate: (length) => guarded('truncate', path, () => real.truncate(length)),
      sync: () => guarded('sync', path, () => real.sync()),
      async close() {
        // The descriptor is always given back: a simulated crash must not leak it into the test's own process.
        const fault = next('close', path)
        await real.close()
        if (fault !== undefined) throw fault.error
      },
    }
  }
  return {
    get log() {
      return log
    },
    get hit() {
      return hit
    },
    open: (path, mode) => guarded('open', path, async () => file(await inner.open(path, mode), path)),
    rename: (from, to) => guarded('rename', to, () => inner.rename(from, to)),
    link: (existing, path) => guarded('link', path, () => inner.link(existing, path)),
    unlink: (path) => guarded('unlink', path, () => inner.unlink(path)),
    mkdir: (path) => guarded('mkdir', path, () => inner.mkdir(path)),
    readdir: (path) => guarded('readdir', path, () => inner.readdir(path)),
    syncDir: (path) => guarded('syncDir', path, () => inner.syncDir(path)),
  }
}
