/** A session in the calling thread whose options were checked before: what worker threads run. They load no schemas, which would take half of the time of their start. */
import { availableParallelism } from 'node:os'
import { negotiate, ortSessionOptions } from './devices.ts'
import { realExternalRoot } from './external.ts'
import { type Backend, type HostedSession, hostSession } from './host.ts'
import { loadNative, nativeObstacle, nativeReservation, thisPlatform } from './native.ts'
import { nativeCall } from './native-call.ts'
import { ortBackend } from './ort-backend.ts'
import { probeError, probeFeeds, probeModel } from './probe.ts'
import { needsProcessLock, whileLocked } from './process-lock.ts'
import { checkModelSource, type Device, type ModelSource, type SessionOptions } from './session.ts'
import { openWebBackend } from './web-session.ts'

/**
 * Loads a model into the calling thread.
 *
 * @param checked as `parseSessionOptions` gives them
 * @throws as `createLocalSession`, but for the options
 */
export async function openCheckedSession(model: ModelSource, checked: SessionOptions): Promise<HostedSession> {
  checkModelSource(model)
  const externalRoot = model.externalRoot === undefined ? undefined : await realExternalRoot(model.externalRoot)
  const source: ModelSource = { ...model, ...(externalRoot !== undefined && { externalRoot }) }
  const { device, passedOver, value } = await negotiate(checked.device ?? 'auto', thisPlatform, {
    obstacle: nativeObstacle,
    reservation: nativeReservation,
    attempt: (candidate) => (candidate === 'wasm' ? openWasm(source, checked) : openNative(source, checked, candidate)),
    sound: isSound,
  })
  return hostSession(value, { device, passedOver })
}

async function openNative(model: ModelSource, options: SessionOptions, device: Device): Promise<Backend> {
  const ort = await loadNative()
  const sessionOptions = {
    ...ortSessionOptions(device, options, thisPlatform, model.externalRoot),
    ...(model.externalData !== undefined && { externalData: model.externalData.map(({ path, data }) => ({ path, data: unshared(data) })) }),
  }
  // As below, the codec comes only with the sessions that need it.
  const bytes = device === 'webgpu' ? (await import('../onnx/webgpu-repairs.ts')).repairedForWebGpu(model.bytes) : model.bytes
  const call = <T>(work: () => Promise<T>): Promise<T> =>
    needsProcessLock(device) ? whileLocked(() => nativeCall(work)) : nativeCall(work)
  const backend = await call(async () => ortBackend(await ort.InferenceSession.create(unshared(bytes), sessionOptions), ort.Tensor))
  return {
    ...backend,
    run: (feeds, fetch) => call(() => backend.run(feeds, fetch)),
    release: () => call(() => backend.release()),
  }
}

/** On onnxruntime-web's build for Node. */
async function openWasm(model: ModelSource, options: SessionOptions): Promise<Backend> {
  const { externalRoot, externalData, bytes } = model
  // Imported here because it brings the ONNX codec, which every other session does without.
  const data = externalData ?? (externalRoot && (await (await import('./external-data.ts')).readExternalData(bytes, externalRoot)))
  const source: ModelSource = { bytes, ...(data && { externalData: data }) }
  const defaultThreads = Math.min(4, Math.ceil(availableParallelism() / 2))
  return openWebBackend(await import('onnxruntime-web'), 'wasm', source, options, { platform: thisPlatform, defaultThreads })
}

/** ONNX Runtime does not read memory shared between threads. */
function unshared(bytes: Uint8Array): Uint8Array {
  return bytes.buffer instanceof ArrayBuffer ? bytes : new Uint8Array(bytes)
}

/** Whether the device computes a model known to be sound. */
async function isSound(device: Device): Promise<boolean> {
  try {
    const backend = await openNative({ bytes: probeModel() }, {}, device)
    try {
      return probeError(await backend.run(probeFeeds, ['y'])) < 1e-3
    } finally {
      await backend.release()
    }
  } catch {
    return false
  }
}
