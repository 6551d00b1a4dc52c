/** What a session is, wherever it runs: Node's main thread, a worker thread, or a browser tab. See `session-options.ts` for the schema of its options, which threads that run sessions do without. */
import { ModalignError } from '../errors.ts'
import type { PixelTensor } from '../pixel-planes.ts'
import type { DataType, NamedTensors } from '../tensors.ts'
import type { CarriedRow } from './carried-rows.ts'

export const devices = ['cpu', 'cuda', 'directml', 'coreml', 'webgpu', 'wasm'] as const

/** Where a session computes. `cpu` is the native CPU provider, `wasm` the one of onnxruntime-web. */
export type Device = (typeof devices)[number]

/** `auto` takes the first device of the platform that works; a named device is taken or refused, never replaced. */
export type DeviceRequest = 'auto' | Device

/** What a session is made from. The bytes are copied or read before the session exists; the caller keeps them. */
export interface ModelSource {
  /** An encoded ModelProto. */
  readonly bytes: Uint8Array
  /** Node: the existing folder to which the initializers' external `location`s are relative (see `externalLayout`). */
  readonly externalRoot?: string
  /** The same as bytes, for places without files; `path` equals the `location` in the model. */
  readonly externalData?: readonly ExternalData[]
}
export interface ExternalData {
  readonly path: string
  readonly data: Uint8Array
}

export interface SessionOptions {
  /** Default `auto`. */
  readonly device?: DeviceRequest
  /** Threads of one run on the CPU. Default: ONNX Runtime's choice (the physical cores; WASM: see `createWebSession`). */
  readonly threads?: number
  /** Graph optimisation. Default `all`. */
  readonly optimization?: 'disabled' | 'basic' | 'extended' | 'all'
  /** Plan the memory of a run ahead. Default true (DirectML: always false). False lowers the peak of large training graphs by a third. */
  readonly memoryPattern?: boolean
  /** Repack constant weights for speed. Default true. False keeps external weights mapped instead of copied, for 3-5 % of speed. */
  readonly prepacking?: boolean
  /** Write a profile to `PREFIX_<date>.json`, complete once the session is disposed. Native devices only. */
  readonly profile?: string
  /** Names of ONNX Runtime optimizers to leave out, for example `CommonSubexpressionElimination`. */
  readonly disabledOptimizers?: readonly string[]
  /** Idle threads spin. Default: ONNX Runtime's (true). False where several sessions share the cores. */
  readonly spinning?: boolean
}

/** A device that `auto` did not take, and why. */
export interface PassedOver {
  readonly device: Device
  readonly reason: string
}

/** One input or output. A size is a number, a name, or `''` where the model does not even name it. */
export interface TensorDescription {
  readonly name: string
  readonly dtype: DataType
  readonly dims: readonly (number | string)[]
}

export interface RunOptions {
  /** Which outputs are wanted. Default: all that are not carried. */
  readonly fetch?: readonly string[]
  /**
   * The promise rejects at once with an `AbortError`. A run that has not begun never begins; a native run ends at its own pace and its
   * result, carried outputs included, is dropped.
   */
  readonly signal?: AbortSignal
  /**
   * Outputs that stay beside the session and feed the named inputs of later runs (a KV cache): `{ 'present.0.key': 'past.0.key' }`. They
   * are not returned. A value stays until it is replaced; a feed of the same name wins over it for one run.
   */
  readonly carry?: Readonly<Record<string, string>>
  /** Which set of carried values the run reads and replaces. Sets know nothing of each other. Default `''`. */
  readonly carrySet?: string
  /** An output that is written into carried values of the set instead of being returned: so much less is copied than where a whole cache comes out of every run. */
  readonly append?: AppendedOutput
  /** Feeds of pictures, by input name: their tensors are made where the session is, in memory that it keeps. Their bytes are copied or move as other feeds do. */
  readonly pixels?: Readonly<Record<string, PixelTensor>>
  /** The feeds' buffers move to the session's thread instead of being copied, where a session has one: the caller does not touch them again. */
  readonly giveFeeds?: boolean
}

/** New places of carried values [batch, heads, places, channels], all in one output. */
export interface AppendedOutput {
  /** [values x batch, heads, tokens, channels]: for each of `inputs` one row after another. */
  readonly output: string
  /** Names of carried values with room. */
  readonly inputs: readonly string[]
  /** Of each row: where its tokens go. */
  readonly starts: readonly number[]
  /** Of each row: how many of them are written; the others are padding. */
  readonly tokens: readonly number[]
}

/** A loaded model. Runs queue: one at a time, in the order of the calls. */
export interface Session extends AsyncDisposable {
  readonly device: Device
  readonly passedOver: readonly PassedOver[]
  readonly inputs: readonly TensorDescription[]
  readonly outputs: readonly TensorDescription[]
  /**
   * Runs the model. The feeds are checked against {@link Session.inputs} first.
   *
   * @throws {ModalignError} `RUNTIME_FEED_UNKNOWN`, `RUNTIME_FEED_MISSING`, `RUNTIME_FEED_DTYPE`, `RUNTIME_FEED_SHAPE`,
   *   `RUNTIME_FEED_DATA`, `RUNTIME_FETCH`, `RUNTIME_CARRY`, `RUNTIME_CARRIED_ROWS`, `RUNTIME_RUN_FAILED`, `RUNTIME_OUT_OF_MEMORY`, `RUNTIME_DISPOSED`, `RUNTIME_WORKER_DIED`
   */
  run(feeds: NamedTensors, options?: RunOptions): Promise<NamedTensors>
  /** Replaces all carried values of a set, in turn with the runs: names are inputs. `{}` clears them. */
  setCarried(values: NamedTensors, set?: string): Promise<void>
  /**
   * Makes a set out of rows of carried values, in turn with the runs; the values are [batch, heads, places, channels], and the new ones have `capacity` places (default: as
   * many as the longest). No rows clear the set.
   *
   * @throws {ModalignError} `RUNTIME_CARRIED_ROWS`
   */
  arrangeCarried(set: string, rows: readonly CarriedRow[], capacity?: number): Promise<void>
  /** Frees the model once a native run under way has ended; calls not yet answered reject with `RUNTIME_DISPOSED`. Further calls do nothing. */
  dispose(): Promise<void>
}

export type CreateSession = (model: ModelSource, options?: SessionOptions) => Promise<Session>

/** Before anything is copied or read. @throws {ModalignError} `RUNTIME_MODEL_INVALID` */
export function checkModelSource(model: ModelSource): void {
  if (!(model?.bytes instanceof Uint8Array))
    throw new ModalignError({ code: 'RUNTIME_MODEL_INVALID', field: '/bytes', got: typeof model?.bytes, expected: 'a Uint8Array' })
  for (const [index, entry] of (model.externalData ?? []).entries()) {
    if (typeof entry?.path !== 'string' || !(entry.data instanceof Uint8Array))
      throw new ModalignError({
        code: 'RUNTIME_MODEL_INVALID',
        field: `/externalData/${index}`,
        got: typeof entry,
        expected: '{ path, data: Uint8Array }',
      })
  }
}

type Defined<T> = { [K in keyof T]: Exclude<T[K], undefined> }

/** Without the properties that are undefined: what zod gives for optional ones, and what `exactOptionalPropertyTypes` does not take. */
export function withoutUndefined<T extends object>(value: T): Defined<T> {
  return Object.fromEntries(Object.entries(value).filter(([, entry]) => entry !== undefined)) as Defined<T>
}
