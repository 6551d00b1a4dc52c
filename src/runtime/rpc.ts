/**
 * Typed calls between a thread and a worker thread of its own.
 *
 * * Requests and results cross by structured clone; buffers in a transfer list move instead. Who transfers a buffer no longer has it.
 * * Handlers start in the order of the calls and may overlap where they await; a handler that must not overlap queues itself.
 * * Errors cross as `ErrorData` and arrive as `ModalignError`; anything else a handler throws arrives with the code `INTERNAL`, the worker's
 *   stack in its cause.
 * * Abort: the caller's promise rejects at once with an `AbortError`. The worker learns it through `context.signal` (an event, when its thread
 *   is free) and `context.aborted()` (shared memory, at any time). A late result is dropped.
 * * Dispose: calls not yet answered reject with `RUNTIME_DISPOSED`; in the worker their contexts are aborted, running handlers end, then the
 *   worker's own `dispose` runs, then the thread ends. Native code cannot be interrupted: `dispose()` resolves after it.
 * * A worker that dies (an uncaught error, `process.exit`, no memory) rejects every pending and later call with `RUNTIME_WORKER_DIED`.
 * * An idle worker does not keep the process alive; a pending call does.
 */
import { parentPort, type Transferable, Worker, type WorkerOptions } from 'node:worker_threads'
import { type ErrorData, errorData, ModalignError, unreachable } from '../errors.ts'
import { abortError } from './abort.ts'
import { disposedError } from './host.ts'
// Before any worker starts: its thread must find the process's shared memory.
import './native-call.ts'
import { unlock } from './process-lock.ts'
import { workerModule } from './typescript-worker.ts'

/** What a handler knows about its call. */
export interface CallContext {
  readonly signal: AbortSignal
  /** Whether the caller has given up, even if a blocking call kept the signal's event from being delivered. */
  aborted(): boolean
}

/** `never`: any function of one request (and a context) will do. Its result may be a promise and may be {@link transferring}. */
export type Handlers = Readonly<Record<string, (request: never, context: CallContext) => unknown>>

/** A result whose buffers move to the caller. */
export class Transferring<T> {
  readonly value: T
  readonly transfer: readonly Transferable[]
  constructor(value: T, transfer: readonly Transferable[]) {
    this.value = value
    this.transfer = transfer
  }
}

/** For a handler's `return`: the value, and the buffers in it that move instead of being copied. */
export function transferring<T>(value: T, transfer: readonly Transferable[]): Transferring<T> {
  return new Transferring(value, transfer)
}

export type RequestOf<H extends Handlers, K extends keyof H> = Parameters<H[K]>[0]
export type ResultOf<H extends Handlers, K extends keyof H> =
  Awaited<ReturnType<H[K]>> extends Transferring<infer T> ? T : Awaited<ReturnType<H[K]>>

type ToWorker =
  | { readonly type: 'call'; readonly id: number; readonly method: string; readonly request: unknown; readonly flag: Int32Array }
  | { readonly type: 'abort'; readonly id: number }
  | { readonly type: 'dispose' }
type ToOwner =
  | { readonly type: 'result'; readonly id: number; readonly value: unknown }
  | { readonly type: 'error'; readonly id: number; readonly error: CrossedError }
  | { readonly type: 'event'; readonly event: unknown }
  | { readonly type: 'disposed'; readonly error: CrossedError | undefined }
interface CrossedError {
  readonly data: ErrorData
  /** Of a defect, for its cause. */
  readonly stack: string | undefined
}

export interface Served<E> {
  /** Sends an event to the owner's `onEvent`. Events and results arrive in the order in which they were sent. */
  emit(event: E, transfer?: readonly Transferable[]): void
}

/**
 * Answers the owner's calls; to be called once, when the worker's module is loaded.
 *
 * @example
 * const handlers = { square: (x: number) => x * x }
 * export type SquareHandlers = typeof handlers
 * serve(handlers)
 */
export function serve<E = never>(handlers: Handlers, options: { readonly dispose?: () => void | Promise<void> } = {}): Served<E> {
  const port = parentPort ?? unreachable('serve() outside a worker thread')
  const post = (message: ToOwner, transfer: readonly Transferable[] = []) => port.postMessage(message, transfer)
  const running = new Map<number, { readonly controller: AbortController; readonly ended: Promise<void> }>()

  const answer = async ({ id, method, request, flag }: ToWorker & { type: 'call' }, signal: AbortSignal) => {
    try {
      const handler = Object.hasOwn(handlers, method) ? handlers[method] : undefined
      if (handler === undefined) unreachable(`no handler '${method}'`)
      // The owner's `call` gave the request the type that this handler takes.
      const result = await handler(request as never, { signal, aborted: () => Atomics.load(flag, 0) === 1 })
      if (result instanceof Transferring) post({ type: 'result', id, value: result.value }, result.transfer)
      else post({ type: 'result', id, value: result })
    } catch (error) {
      post({ type: 'error', id, error: crossing(error) })
    }
  }

  const dispose = async () => {
    for (const { controller } of running.values()) controller.abort()
    await Promise.all([...running.values()].map(({ ended }) => ended))
    try {
      await options.dispose?.()
      post({ type: 'disposed', error: undefined })
    } catch (error) {
      post({ type: 'disposed', error: crossing(error) })
    }
  }

  port.on('message', (message: ToWorker) => {
    switch (message.type) {
      case 'call': {
        const controller = new AbortController()
        const ended = answer(message, controller.signal).finally(() => running.delete(message.id))
        running.set(message.id, { controller, ended })
        return
      }
      case 'abort':
        running.get(message.id)?.controller.abort()
        return
      case 'dispose':
        void dispose()
        return
    }
  })
  return { emit: (event, transfer = []) => post({ type: 'event', event }, transfer) }
}

function crossing(error: unknown): CrossedError {
  return { data: errorData(error), stack: error instanceof ModalignError || !(error instanceof Error) ? undefined : error.stack }
}

function arrived({ data, stack }: CrossedError): ModalignError {
  if (stack === undefined) return new ModalignError(data)
  const cause = new Error(data.got)
  cause.stack = stack
  return new ModalignError({ ...data, cause })
}

export interface ConnectOptions<E> extends Pick<WorkerOptions, 'workerData' | 'name' | 'resourceLimits'> {
  readonly onEvent?: (event: E) => void
}
export interface CallOptions {
  readonly transfer?: readonly Transferable[]
  readonly signal?: AbortSignal
}
export interface WorkerConnection<H extends Handlers> extends AsyncDisposable {
  call<K extends keyof H & string>(method: K, request: RequestOf<H, K>, options?: CallOptions): Promise<ResultOf<H, K>>
  dispose(): Promise<void>
}

interface Pending {
  readonly flag: Int32Array
  resolve(value: unknown): void
  reject(error: Error): void
}

/**
 * Starts a worker whose module calls {@link serve} with handlers of type `H`, and which emits events of type `E`.
 *
 * @param entry the module's URL, with the extension of the file that starts it: `new URL(import.meta.url.endsWith('.ts') ? './w.ts' : './w.js', import.meta.url)`
 * @example
 * await using worker = connectWorker<SquareHandlers>(new URL('./square.js', import.meta.url))
 * await worker.call('square', 3) // 9
 */
export function connectWorker<H extends Handlers, E = never>(
  entry: URL,
  { onEvent, ...workerOptions }: ConnectOptions<E> = {},
): WorkerConnection<H> {
  const worker = new Worker(workerModule(entry), workerOptions)
  const { threadId } = worker
  worker.unref()
  const pending = new Map<number, Pending>()
  const exited = new Promise<void>((resolve) => worker.once('exit', () => resolve()))
  let nextId = 0
  /** Set once calls are no longer taken: why. */
  let over: (() => ModalignError) | undefined
  let disposal: Promise<void> | undefined
  let disposeFailure: ModalignError | undefined

  const post = (message: ToWorker, transfer: readonly Transferable[] = []) => worker.postMessage(message, transfer)
  const settle = (id: number): Pending | undefined => {
    const call = pending.get(id)
    pending.delete(id)
    if (pending.size === 0 && disposal === undefined) worker.unref()
    return call
  }
  const end = (why: () => ModalignError) => {
    over ??= why
    for (const [id, { flag }] of pending) {
      Atomics.store(flag, 0, 1)
      settle(id)?.reject(over())
    }
  }
  const died = (how: string) => end(() => new ModalignError({ code: 'RUNTIME_WORKER_DIED', got: how, expected: 'a living worker thread' }))

  worker.on('message', (message: ToOwner) => {
    switch (message.type) {
      case 'result':
        settle(message.id)?.resolve(message.value)
        return
      case 'error':
        settle(message.id)?.reject(arrived(message.error))
        return
      case 'event':
        // The worker's serve<E> and this connection are declared over the same E.
        onEvent?.(message.event as E)
        return
      case 'disposed':
        disposeFailure = message.error && arrived(message.error)
        void worker.terminate()
        return
    }
  })
  worker.on('error', (error: unknown) => died(error instanceof Error ? error.message : String(error)))
  worker.on('messageerror', (error) => died(`a message that cannot be read: ${error.message}`))
  worker.on('exit', (code) => {
    unlock(threadId)
    died(`exit code ${code}`)
  })

  const call = <K extends keyof H & string>(
    method: K,
    request: RequestOf<H, K>,
    { transfer = [], signal }: CallOptions = {},
  ): Promise<ResultOf<H, K>> =>
    new Promise((resolve, reject) => {
      if (over !== undefined) return reject(over())
      if (signal?.aborted) return reject(abortError(signal))
      const id = nextId++
      const flag = new Int32Array(new SharedArrayBuffer(4))
      try {
        post({ type: 'call', id, method, request, flag }, transfer)
      } catch (error) {
        return reject(
          new ModalignError({
            code: 'RUNTIME_REQUEST',
            got: error instanceof Error ? error.message : String(error),
            expected: 'values that can be cloned',
            cause: error,
          }),
        )
      }
      const abort = () => {
        if (!pending.has(id) || signal === undefined) return
        Atomics.store(flag, 0, 1)
        post({ type: 'abort', id })
        settle(id)?.reject(abortError(signal))
      }
      const ended = () => signal?.removeEventListener('abort', abort)
      pending.set(id, {
        flag,
        resolve(value) {
          ended()
          // The handler of this method returned it.
          resolve(value as ResultOf<H, K>)
        },
        reject(error) {
          ended()
          reject(error)
        },
      })
      signal?.addEventListener('abort', abort)
      worker.ref()
    })

  const dispose = (): Promise<void> => {
    disposal ??= (async () => {
      const alive = over === undefined
      end(disposedError)
      if (!alive) return
      worker.ref()
      post({ type: 'dispose' })
      await exited
      if (disposeFailure !== undefined) throw disposeFailure
    })()
    return disposal
  }

  return { call, dispose, [Symbol.asyncDispose]: dispose }
}
