/** ONNX Runtime's profiles: which node ran where, and for how long. The proof that a provider did the work and did not leave it to the CPU. */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { NamedTensors } from '../tensors.ts'
import { createSession } from './node.ts'
import type { CreateSession, Device, ModelSource, SessionOptions } from './session.ts'

/** One execution of one node, in the order in which they ended. After optimisation: fused nodes have names and operators of their own. */
export interface ProfiledNode {
  readonly name: string
  readonly operator: string
  /** ONNX Runtime's name of the execution provider: see {@link providerNames}. */
  readonly provider: string
  readonly durationMs: number
}

/** How profiles name the provider of each native device. */
export const providerNames = {
  cpu: 'CPUExecutionProvider',
  cuda: 'CUDAExecutionProvider',
  directml: 'DmlExecutionProvider',
  coreml: 'CoreMLExecutionProvider',
  webgpu: 'WebGpuExecutionProvider',
} as const satisfies Partial<Record<Device, string>>

const nodeEvent = z.object({
  cat: z.literal('Node'),
  name: z.string().endsWith('_kernel_time'),
  /** Microseconds. */
  dur: z.number().nonnegative(),
  args: z.object({ provider: z.string(), op_name: z.string() }),
})

/**
 * Reads a profile that a disposed session has left.
 *
 * @throws {ModalignError} `RUNTIME_PROFILE` for a file that is missing or not a whole profile
 * @example
 * const nodes = await readProfile((await profileFiles('/tmp/step'))[0])
 * const onCpu = nodes.filter((node) => node.provider === providerNames.cpu)
 */
export async function readProfile(path: string): Promise<readonly ProfiledNode[]> {
  let events: unknown
  try {
    events = JSON.parse(await readFile(path, 'utf8'))
  } catch (cause) {
    throw new ModalignError({
      code: 'RUNTIME_PROFILE',
      file: path,
      got: cause instanceof Error ? cause.message : String(cause),
      expected: 'a profile of ONNX Runtime',
      hint: 'a profile is complete once its session is disposed',
      cause,
    })
  }
  if (!Array.isArray(events))
    throw new ModalignError({ code: 'RUNTIME_PROFILE', file: path, got: typeof events, expected: 'a list of events' })
  return events.flatMap((event: unknown) => {
    const { success, data } = nodeEvent.safeParse(event)
    if (!success) return []
    const { provider, op_name: operator } = data.args
    return [{ name: data.name.slice(0, -'_kernel_time'.length), operator, provider, durationMs: data.dur / 1000 }]
  })
}

/** The profiles that sessions with the option `profile: prefix` have written, oldest first: ONNX Runtime adds the date and the process id. */
export async function profileFiles(prefix: string): Promise<readonly string[]> {
  const folder = dirname(resolve(prefix))
  const start = `${basename(prefix)}_`
  const names = await readdir(folder)
  return names
    .filter((name) => name.startsWith(start) && name.endsWith('.json'))
    .sort()
    .map((name) => join(folder, name))
}

/**
 * Runs a model once with profiling on and leaves no file behind.
 *
 * @param create `createSession`, or `createLocalSession` inside a worker
 * @throws {ModalignError} as the session
 * @example
 * const { outputs, nodes } = await profileRun({ bytes }, feeds, { device: 'webgpu' })
 * nodes.every((node) => node.provider === providerNames.webgpu)
 */
export async function profileRun(
  model: ModelSource,
  feeds: NamedTensors,
  options: Omit<SessionOptions, 'profile'> = {},
  create: CreateSession = createSession,
): Promise<{ readonly device: Device; readonly outputs: NamedTensors; readonly nodes: readonly ProfiledNode[] }> {
  const folder = await mkdtemp(join(tmpdir(), 'modalign-profile-'))
  try {
    const prefix = join(folder, 'run')
    const session = await create(model, { ...options, profile: prefix })
    let outputs: NamedTensors
    try {
      outputs = await session.run(feeds)
    } finally {
      await session.dispose()
    }
    const [path] = await profileFiles(prefix)
    if (path === undefined)
      throw new ModalignError({ code: 'RUNTIME_PROFILE', file: prefix, got: 'no file', expected: 'a profile of ONNX Runtime' })
    return { device: session.device, outputs, nodes: await readProfile(path) }
  } finally {
    await rm(folder, { recursive: true })
  }
}
