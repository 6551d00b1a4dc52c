/** The worker thread of one session: see node.ts. */
import { unreachable } from '../errors.ts'
import type { NamedTensors } from '../tensors.ts'
import type { CarriedRow } from './carried-rows.ts'
import { openCheckedSession } from './checked-session.ts'
import type { HostedSession } from './host.ts'
import { type CallContext, serve, transferring } from './rpc.ts'
import type { ModelSource, RunOptions, Session, SessionOptions } from './session.ts'

export type SessionDescription = Pick<Session, 'device' | 'passedOver' | 'inputs' | 'outputs'>

interface ArrangeRequest {
  readonly set: string
  readonly rows: readonly CarriedRow[]
  readonly capacity: number | undefined
}

let opened: HostedSession | undefined
const session = () => opened ?? unreachable('a call before open')

const handlers = {
  async open({ model, options }: { readonly model: ModelSource; readonly options: SessionOptions }): Promise<SessionDescription> {
    opened = await openCheckedSession(model, options)
    const { device, passedOver, inputs, outputs } = opened
    return { device, passedOver, inputs, outputs }
  },
  async run(
    { feeds, ...options }: { readonly feeds: NamedTensors } & Pick<RunOptions, 'fetch' | 'carry' | 'carrySet' | 'append' | 'pixels'>,
    { signal, aborted }: CallContext,
  ) {
    const outputs = await session().run(feeds, { ...options, signal, aborted })
    return transferring(outputs, buffersOf(outputs))
  },
  async setCarried({ values, set }: { readonly values: NamedTensors; readonly set: string | undefined }): Promise<void> {
    await session().setCarried(values, set)
  },
  async arrangeCarried({ set, rows, capacity }: ArrangeRequest): Promise<void> {
    await session().arrangeCarried(set, rows, capacity)
  },
}
export type SessionHandlers = typeof handlers

serve(handlers, { dispose: async () => opened?.dispose() })

/** Each once: two outputs may share one. */
function buffersOf(values: NamedTensors): ArrayBuffer[] {
  const buffers = new Set(Object.values(values).map(({ data }) => data.buffer))
  return [...buffers].filter((buffer) => buffer instanceof ArrayBuffer)
}
