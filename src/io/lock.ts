import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { createFileAtomic, writeFileAtomic } from './atomic.ts'
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
  token: z.uuid(),
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
  const lock = heldLock(path, mine.token, fs)
  try {
    // One round suffices where nobody else is at it; others may leave or take over the lock meanwhile.
    for (let round = 0; round < 8; round++) {
      if ((await create(path, mine, fs)) || (await takeOver(path, mine, fs))) {
        await removeAbandoned(path, fs)
        return lock
      }
    }
  } catch (error) {
    // The mark may stand although making it durable failed: it must not outlive this failure.
    if (error instanceof ModalignError) await lock.release()
    throw error
  }
  throw new ModalignError({
    code: 'OUTPUT_LOCKED',
    file: path,
    got: 'a lock that keeps changing hands',
    hint: 'other processes are starting on the same output: run one',
  })
}

async function create(path: string, mine: Holder, fs: FsOps): Promise<boolean> {
  try {
    await createFileAtomic(path, markOf(mine), { fs })
    return true
  } catch (error) {
    if (error instanceof ModalignError && error.code === 'FILE_EXISTS') return false
    throw error
  }
}

/**
 * Replaces the mark of a process that is gone. The right to do so is itself a lock, named after that very mark, so that only one process at a time has it; and
 * a mark whose process is gone changes by this way only. So what its holder reads under it stays true until it is replaced.
 */
async function takeOver(path: string, mine: Holder, fs: FsOps): Promise<boolean> {
  const holder = await readHolder(path)
  if (holder === undefined) return false
  if (!gone(holder)) throw lockedBy(path, holder)
  const right = await acquireLock(`${path}.${holder.token.slice(0, 8)}`, { fs })
  try {
    if ((await readHolder(path))?.token !== holder.token) return false
    await writeFileAtomic(path, markOf(mine), { fs })
    return true
  } finally {
    await right.release()
  }
}

function markOf(holder: Holder): string {
  return `${JSON.stringify(holder)}\n`
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

/** What processes that died while they took this lock have left beside it: unfinished marks, with the process id in their names, and rights to marks that are no more. */
async function removeAbandoned(path: string, fs: FsOps): Promise<void> {
  const folder = dirname(path)
  const name = basename(path)
  try {
    for (const entry of await fs.readdir(folder)) {
      if (entry.includes(name) && (await abandoned(join(folder, entry), entry, name))) await fs.unlink(join(folder, entry))
    }
  } catch (error) {
    throw fileError(error, path)
  }
}

async function abandoned(file: string, entry: string, name: string): Promise<boolean> {
  const pid = /\.tmp-(\d+)-[0-9a-f]{12}$/.exec(entry)?.[1]
  if (pid !== undefined) return !running(Number(pid))
  if (!entry.startsWith(name) || !/^(\.[0-9a-f]{8})+$/.test(entry.slice(name.length))) return false
  const holder = await readHolder(file)
  return holder !== undefined && gone(holder)
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
