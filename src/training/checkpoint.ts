/** Checkpoints of a run: written whole or not at all, found newest first, never trusted without looking. */
import { createHash } from 'node:crypto'
import { readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { Trainables } from '../graph/parameters.ts'
import { writeFileAtomic } from '../io/atomic.ts'
import { errnoOf } from '../io/file-error.ts'
import { type FsOps, nodeFs } from '../io/fs-ops.ts'
import { float32Tensor } from '../tensors.ts'
import { toFloat32 } from '../weights/float16.ts'
import { openSafetensors, safetensorsBytes } from '../weights/safetensors.ts'
import type { TrainerSnapshot } from './trainer.ts'

export interface RunState {
  /** Updates done. */
  readonly step: number
  /** Bytes of metrics.jsonl that belong to them. */
  readonly logBytes: number
  /** Hash of everything that decides what the next step computes: options, data, model. */
  readonly fingerprint: string
}
export interface RunCheckpoint extends RunState {
  readonly folder: string
  readonly snapshot: TrainerSnapshot
}

const stateName = 'state.json'
const tensorsName = 'tensors.safetensors'
const stateSchema = z.strictObject({
  format: z.literal(1),
  step: z.int().min(1),
  logBytes: z.int().min(0),
  fingerprint: z.string(),
  optimizerStep: z.int().min(0),
  /** Of tensors.safetensors. */
  sha256: z.string(),
})
const folderPattern = /^step-(\d{9})$/

/**
 * Writes `step-000000123/` below `root`: first the tensors, then the state that names their hash. A folder without a state is no checkpoint.
 * Keeps the newest `keep` checkpoints.
 */
export async function writeCheckpoint(
  root: string,
  state: RunState,
  snapshot: TrainerSnapshot,
  { keep = 2, fs = nodeFs }: { readonly keep?: number; readonly fs?: FsOps } = {},
): Promise<string> {
  const folder = join(root, `step-${String(state.step).padStart(9, '0')}`)
  await fs.mkdir(folder)
  const parameters = Object.entries(snapshot.parameters).map(([name, { dims, data }]) => ({
    name: `parameter/${name}`,
    value: float32Tensor(data, dims),
  }))
  const slots = Object.entries(snapshot.optimizer.slots).flatMap(([slot, arrays]) =>
    Object.entries(arrays).map(([name, data]) => ({
      name: `${slot}/${name}`,
      value: float32Tensor(data, snapshot.parameters[name]?.dims ?? [data.length]),
    })),
  )
  const bytes = await safetensorsBytes([...parameters, ...slots])
  await writeFileAtomic(join(folder, tensorsName), bytes, { fs })
  const text = JSON.stringify({ format: 1, ...state, optimizerStep: snapshot.optimizer.step, sha256: sha256(bytes) })
  await writeFileAtomic(join(folder, stateName), `${text}\n`, { fs })
  await fs.syncDir(root)
  const older = (await checkpointFolders(root)).filter((name) => name < `step-${String(state.step).padStart(9, '0')}`)
  for (const name of older.slice(0, Math.max(0, older.length - (keep - 1)))) await rm(join(root, name), { recursive: true, force: true })
  return folder
}

/**
 * The newest checkpoint that is whole; damaged ones are passed over and reported. Undefined if there is none.
 *
 * @throws CHECKPOINT_DAMAGED if there are checkpoints and all of them are damaged: to begin again would throw the run away.
 */
export async function newestCheckpoint(
  root: string,
  onDamaged: (error: ModalignError) => void = () => undefined,
): Promise<RunCheckpoint | undefined> {
  let damaged: ModalignError | undefined
  for (const name of (await checkpointFolders(root)).reverse()) {
    try {
      const found = await readCheckpoint(join(root, name))
      if (found !== undefined) return found
    } catch (error) {
      if (!(error instanceof ModalignError)) throw error
      damaged ??= error
      onDamaged(error)
    }
  }
  if (damaged !== undefined) throw damaged
  return undefined
}

/** Undefined for a folder without a state: its writing was cut short. */
async function readCheckpoint(folder: string): Promise<RunCheckpoint | undefined> {
  const damaged = (got: string, cause?: unknown): ModalignError =>
    new ModalignError({
      code: 'CHECKPOINT_DAMAGED',
      file: folder,
      got,
      expected: 'a whole checkpoint',
      hint: 'delete the folder to go on from an older checkpoint, or to begin again',
      cause,
    })
  const text = await readFile(join(folder, stateName), 'utf8').catch((error: unknown) => {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw damaged(error instanceof Error ? error.message : String(error), error)
  })
  if (text === undefined) return undefined
  let state: z.infer<typeof stateSchema>
  let bytes: Uint8Array
  try {
    state = stateSchema.parse(JSON.parse(text))
    bytes = await readFile(join(folder, tensorsName))
  } catch (error) {
    throw damaged(error instanceof Error ? error.message : String(error), error)
  }
  if (sha256(bytes) !== state.sha256) throw damaged('other bytes than its hash says')
  const file = await openSafetensors(join(folder, tensorsName))
  const parameters: Record<string, Trainables[string]> = {}
  const slots: Record<string, Record<string, Float32Array>> = {}
  for (const [key, { shape }] of file.tensors) {
    const cut = key.indexOf('/')
    const [kind, name] = [key.slice(0, cut), key.slice(cut + 1)]
    const data = toFloat32(await file.read(key))
    if (kind === 'parameter') parameters[name] = { dims: shape, data }
    else {
      slots[kind] ??= {}
      Object.assign(slots[kind], { [name]: data })
    }
  }
  const { step, logBytes, fingerprint, optimizerStep } = state
  return { folder, step, logBytes, fingerprint, snapshot: { parameters, optimizer: { step: optimizerStep, slots } } }
}

async function checkpointFolders(root: string): Promise<string[]> {
  const names = await readdir(root).catch((error: unknown) => {
    if (errnoOf(error) === 'ENOENT') return []
    throw error
  })
  return names.filter((name) => folderPattern.test(name)).sort()
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}
