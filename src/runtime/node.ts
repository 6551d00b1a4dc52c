/** Sessions in Node: each in a worker thread of its own, because a run of onnxruntime-node blocks the thread that calls it. */
import type { PixelTensor } from '../pixel-planes.ts'
import type { NamedTensors, TensorValue } from '../tensors.ts'
import { abortError } from './abort.ts'
import { checkPixels, checkValues, dataArrays } from './feeds.ts'
import { planOutputs } from './host.ts'
import { connectWorker } from './rpc.ts'
import { checkModelSource, type ModelSource, type RunOptions, type Session, type SessionOptions, withoutUndefined } from './session.ts'
import { parseSessionOptions } from './session-options.ts'
import type { SessionHandlers } from './session-worker.ts'

const entry = new URL(import.meta.url.endsWith('.ts') ? './session-worker.ts' : './session-worker.js', import.meta.url)

/**
 * Loads a model into a worker thread. The caller's thread stays free while the model is loaded and run.
 *
 * Feeds are copied once on the caller's thread when `run` is called, so their buffers may be reused at once; feeds in a SharedArrayBuffer cross
 * without that copy (the worker makes it) and must not change before the run has ended; with `giveFeeds` they move. Output buffers move. A session that is idle does not keep the process alive; a
 * pending run does.
 *
 * @throws {ModalignError} `RUNTIME_OPTIONS`, `RUNTIME_DEVICE_UNAVAILABLE`, `RUNTIME_MODEL_INVALID`, `RUNTIME_MODEL_TYPE`, `RUNTIME_EXTERNAL_ROOT`, `RUNTIME_OUT_OF_MEMORY`, `RUNTIME_WORKER_DIED`
 * @example
 * await using session = await createSession({ bytes: await readFile('model.onnx') })
 * const { y } = await session.run({ x: float32Tensor(Float32Array.of(1, 2, 3), [1, 3]) }, { signal: AbortSignal.timeout(10_000) })
 */
export async function createSession(model: ModelSource, options: SessionOptions = {}): Promise<Session> {
  const checked = parseSessionOptions(options)
  checkModelSource(model)
  const worker = connectWorker<SessionHandlers>(entry, { name: 'modalign session' })
  try {
    const copy = copiedModel(model)
    const description = await worker.call('open', { model: copy.model, options: checked }, { transfer: copy.buffers })
    return {
      ...description,
      async run(
        feeds: NamedTensors,
        { fetch, carry, carrySet, append, pixels, giveFeeds, signal }: RunOptions = {},
      ): Promise<NamedTensors> {
        if (signal?.aborted) throw abortError(signal)
        // Here too, so that a mistake costs no copy. What is missing only the worker can tell: it has the carried values.
        planOutputs(withoutUndefined({ fetch, carry, append }), description.inputs, description.outputs)
        checkValues(feeds, description.inputs)
        if (pixels !== undefined) checkPixels(pixels)
        const copies = new Copies(giveFeeds)
        const request = {
          feeds: copies.ofTensors(feeds),
          ...(pixels !== undefined && { pixels: copies.ofPixels(pixels) }),
          ...withoutUndefined({ fetch, carry, carrySet, append }),
        }
        return worker.call('run', request, { transfer: copies.buffers, ...(signal !== undefined && { signal }) })
      },
      async setCarried(values: NamedTensors, set?: string): Promise<void> {
        checkValues(values, description.inputs)
        const copies = new Copies()
        return worker.call('setCarried', { values: copies.ofTensors(values), set }, { transfer: copies.buffers })
      },
      arrangeCarried: (set, rows, capacity) => worker.call('arrangeCarried', { set, rows, capacity }),
      dispose: worker.dispose,
      [Symbol.asyncDispose]: worker.dispose,
    }
  } catch (error) {
    await worker.dispose()
    throw error
  }
}

/** A copy of a model to move to another thread, and the buffers that move. */
export function copiedModel({ bytes, externalRoot, externalData }: ModelSource): {
  readonly model: ModelSource
  readonly buffers: readonly ArrayBuffer[]
} {
  const copies = new Copies()
  const model: ModelSource = {
    bytes: copies.of(bytes),
    ...(externalRoot !== undefined && { externalRoot }),
    ...(externalData !== undefined && { externalData: externalData.map(({ path, data }) => ({ path, data: copies.of(data) })) }),
  }
  return { model, buffers: copies.buffers }
}

/** Copies to move to another thread: one pass over the data, where a structured clone makes two and takes the whole buffer behind a view. */
class Copies {
  readonly buffers: ArrayBuffer[] = []
  readonly #given: boolean

  /** @param given buffers that belong to one tensor as a whole move themselves */
  constructor(given = false) {
    this.#given = given
  }

  of(data: Uint8Array): Uint8Array {
    if (!(data.buffer instanceof ArrayBuffer)) return data
    const copy = new Uint8Array(data)
    this.buffers.push(copy.buffer)
    return copy
  }

  ofTensors(values: NamedTensors): NamedTensors {
    return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, this.#ofTensor(value)]))
  }

  ofPixels(given: Readonly<Record<string, PixelTensor>>): Readonly<Record<string, PixelTensor>> {
    return Object.fromEntries(
      Object.entries(given).map(([name, one]) => [name, { ...one, pixels: one.pixels.map((bytes) => this.#moved(bytes)) }]),
    )
  }

  #moved(bytes: Uint8Array): Uint8Array {
    const { buffer } = bytes
    if (!this.#given || !(buffer instanceof ArrayBuffer) || bytes.length !== buffer.byteLength || this.buffers.includes(buffer))
      return this.of(bytes)
    this.buffers.push(buffer)
    return bytes
  }

  #ofTensor(value: TensorValue): TensorValue {
    const { buffer, byteOffset, byteLength } = value.data
    if (!(buffer instanceof ArrayBuffer)) return { ...value, dims: [...value.dims] }
    const moves = this.#given && byteLength === buffer.byteLength && !this.buffers.includes(buffer)
    const copy = moves ? buffer : buffer.slice(byteOffset, byteOffset + byteLength)
    this.buffers.push(copy)
    return viewAs(value, copy)
  }
}

/** The same tensor over another buffer. */
function viewAs({ dtype, dims }: TensorValue, buffer: ArrayBuffer): TensorValue {
  // The array's class is the one that dataArrays pairs with the dtype.
  return { dtype, dims: [...dims], data: new dataArrays[dtype](buffer) } as TensorValue
}
