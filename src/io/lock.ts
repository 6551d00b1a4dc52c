import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { createFileAtomic } from './atomic.ts'
import { errnoOf, fileError } from './file-error.ts'
import { type FsOps, nodeFs } from './fs-ops.ts'

/** Held until released. The process may also die holding it: the next one takes it over. */
export interface Lock extends AsyncDisposable {
  readonly path: string
  release(): Promise<void>
}

const holderSchema = z.strictObject({
  pid: z.int().positive(),
  host: z.string(),
  /** Changes with every start of the machine; null where the system does not say. */
  bootId: z.string().nullable(),
  /** Of the process, in clock ticks since the start of the machine: tells a reused pid apart. Null where the system does not say. */
  startTicks: z.string().nullable(),
  /** Unique to this one acquisition. */
  token: z.string(),
  since: z.string(),
})
type Holder = z.infer<typeof holderSchema>

/**
 * Makes the file at `path` this process's mark that it alone writes here. A mark left by a process that no longer runs on this machine is taken over; one from
 * another machine never is, because its process cannot be seen from here.
 *
 * @throws ModalignError `OUTPUT_LOCKED` with the holder; else as `createFileAtomic`
 * @example
 * await using lock = await acquireLock('runs/first/.lock')
 */
export async function acquireLock(path: string, { fs = nodeFs }: { readonly fs?: FsOps } = {}): Promise<Lock> {
  const mine: Holder = {
    pid: process.pid,
    host: hostname(),
    bootId: bootId(),
    startTicks: startTicks(process.pid),
    token: randomUUID(),
    since: new Date().toISOString(),
  }
  // Two rounds suffice against dead holders; more are needed only while others take and leave the lock at the same moment.
  for (let round = 0; round < 8; round++) {
    try {
      await createFileAtomic(path, `${JSON.stringify(mine)}\n`, { fs })
      await removeAbandoned(path, fs)
      return heldLock(path, mine.token, fs)
    } catch (error) {
      // Another process has taken our mark, not yet in place, for an abandoned one.
      if (error instanceof ModalignError && error.code === 'FILE_MISSING' && round < 7) continue
      if (!(error instanceof ModalignError) || error.code !== 'FILE_EXISTS') {
        // The mark may stand although making it durable failed: it must not outlive this failure.
        if (error instanceof ModalignError) await heldLock(path, mine.token, fs).release()
        throw error
      }
    }
    const holder = await readHolder(path)
    if (holder === undefined) continue
    if (!gone(holder)) throw lockedBy(path, holder)
    await takeAway(path, holder.token, fs)
  }
  throw new ModalignError({
    code: 'OUTPUT_LOCKED',
    file: path,
    got: 'a lock that keeps changing hands',
    hint: 'other processes are starting on the same output: run one',
  })
}

function heldLock(path: string, token: string, fs: FsOps): Lock {
  let held = true
  async function release(): Promise<void> {
    if (!held) return
    held = false
    const holder = await readHolder(path)
    if (holder?.token !== token) return
    try {
      await fs.unlink(path)
    } catch (error) {
      throw fileError(error, path)
    }
  }
  return { path, release, [Symbol.asyncDispose]: release }
}

/** Undefined: there is no lock any more. */
async function readHolder(path: string): Promise<Holder | undefined> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw fileError(error, path)
  }
  const parsed = holderSchema.safeParse(parseJson(text))
  if (parsed.success) return parsed.data
  throw new ModalignError({
    code: 'OUTPUT_LOCKED',
    file: path,
    got: text,
    expected: 'a lock file of this program',
    hint: 'if nothing writes to this output, delete the file',
  })
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** The lock is renamed to a name of ours before it goes: of several processes that found it stale, one gets it. If it was a fresh one instead, it goes back. */
async function takeAway(path: string, staleToken: string, fs: FsOps): Promise<void> {
  const aside = `${path}.stale-${process.pid}-${randomUUID()}`
  try {
    await fs.rename(path, aside)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return
    throw fileError(error, path)
  }
  const taken = await readHolder(aside)
  try {
    if (taken !== undefined && taken.token !== staleToken) await fs.link(aside, path)
    await fs.unlink(aside)
    await fs.syncDir(dirname(path))
  } catch (error) {
    throw fileError(error, path)
  }
}

/** What processes that died while they took the lock have left beside it. Their process ids are part of the names. */
async function removeAbandoned(path: string, fs: FsOps): Promise<void> {
  const folder = dirname(path)
  const name = basename(path)
  try {
    for (const entry of await fs.readdir(folder)) {
      const pid = entry.includes(name) ? /\.(?:tmp|stale)-(\d+)-[0-9a-f-]+$/.exec(entry)?.[1] : undefined
      if (pid !== undefined && !running(Number(pid))) await fs.unlink(join(folder, entry))
    }
  } catch (error) {
    throw fileError(error, path)
  }
}

function gone(holder: Holder): boolean {
  if (holder.host !== hostname()) return false
  if (holder.bootId !== null && holder.bootId !== bootId()) return true
  if (!running(holder.pid)) return true
  return holder.startTicks !== null && holder.startTicks !== startTicks(holder.pid)
}

function running(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    // EPERM: it runs, as another user.
    return errnoOf(error) !== 'ESRCH'
  }
}

function lockedBy(path: string, holder: Holder): ModalignError {
  const here = holder.host === hostname()
  return new ModalignError({
    code: 'OUTPUT_LOCKED',
    file: path,
    got: `a lock of process ${holder.pid} on ${holder.host} since ${holder.since}`,
    expected: 'no other process writing here',
    hint: here ? 'wait for it, stop it, or choose another output' : 'if that machine no longer writes here, delete the file',
  })
}

function bootId(): string | null {
  return readProc('/proc/sys/kernel/random/boot_id')?.trim() ?? null
}

/** Field 22 of /proc/PID/stat; the second field, the command's name, may itself contain spaces and parentheses. */
function startTicks(pid: number): string | null {
  const text = readProc(`/proc/${pid}/stat`)
  return text?.slice(text.lastIndexOf(')') + 2).split(' ')[19] ?? null
}

/** /proc is Linux's own: elsewhere there is nothing to read, and the caller does without. */
function readProc(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}
