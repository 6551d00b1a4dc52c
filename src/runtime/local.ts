/** A session in the calling thread, for our own workers: a run blocks that thread. Everyone else uses `createSession`. */
import { openCheckedSession } from './checked-session.ts'
import type { HostedSession } from './host.ts'
import type { ModelSource, SessionOptions } from './session.ts'
import { parseSessionOptions } from './session-options.ts'

/**
 * Loads a model into the calling thread, which every run then blocks (`session.run` of onnxruntime-node is synchronous).
 *
 * @throws {ModalignError} `RUNTIME_OPTIONS`, `RUNTIME_DEVICE_UNAVAILABLE`, `RUNTIME_MODEL_INVALID`, `RUNTIME_MODEL_TYPE`, `RUNTIME_EXTERNAL_ROOT`, `RUNTIME_OUT_OF_MEMORY`
 * @example
 * await using session = await createLocalSession({ bytes: await readFile('model.onnx') }, { device: 'cpu' })
 * const { y } = await session.run({ x: float32Tensor(Float32Array.of(1, 2, 3), [1, 3]) })
 */
export async function createLocalSession(model: ModelSource, options: SessionOptions = {}): Promise<HostedSession> {
  return openCheckedSession(model, parseSessionOptions(options))
}
