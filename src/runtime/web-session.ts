/** A back end on onnxruntime-web, the same in a browser and in Node. No imports from Node here. */
import type { Env, InferenceSession } from 'onnxruntime-web'
import { ModalignError } from '../errors.ts'
import { ortSessionOptions, type Platform } from './devices.ts'
import type { Backend } from './host.ts'
import { type OrtModule, ortBackend } from './ort-backend.ts'
import type { ModelSource, SessionOptions } from './session.ts'

/** One build of onnxruntime-web. Its threads and file locations belong to the module, not to a session. */
export interface WebModule extends OrtModule {
  readonly env: Env
}

/** Where onnxruntime-web's files lie: a URL that ends in `/`, or the URL of each. */
export type WasmPaths = string | { readonly wasm?: string; readonly mjs?: string }

export interface WebEnvironment {
  readonly platform: Platform
  /** Threads where the options name none. */
  readonly defaultThreads: number
  readonly wasmPaths?: WasmPaths
}

interface Started {
  readonly threads: number
}
const started = new WeakMap<WebModule, Started>()

/** onnxruntime-web creates and runs one session at a time, whichever session it is. */
let tail: Promise<unknown> = Promise.resolve()

function inTurn<T>(work: () => Promise<T>): Promise<T> {
  const result = tail.then(work)
  tail = result.catch(() => undefined)
  return result
}

/**
 * Opens a model on one of the module's devices.
 *
 * @throws {ModalignError} `RUNTIME_OPTIONS` when the module already runs with another number of threads, `RUNTIME_EXTERNAL_ROOT` for a folder
 */
export async function openWebBackend(
  ort: WebModule,
  device: 'wasm' | 'webgpu',
  model: ModelSource,
  options: SessionOptions,
  environment: WebEnvironment,
): Promise<Backend> {
  const sessionOptions: InferenceSession.SessionOptions = {
    ...ortSessionOptions(device, options, environment.platform),
    ...(model.externalData !== undefined && { externalData: model.externalData.map(({ path, data }) => ({ path, data })) }),
  }
  if (model.externalRoot !== undefined)
    throw new ModalignError({
      code: 'RUNTIME_EXTERNAL_ROOT',
      file: model.externalRoot,
      got: 'a folder',
      expected: 'externalData: onnxruntime-web reads no files',
    })
  // Imported here because it brings the ONNX codec, which WASM does without.
  const bytes = device === 'webgpu' ? (await import('../onnx/webgpu-repairs.ts')).repairedForWebGpu(model.bytes) : model.bytes
  start(ort, options, environment)
  const backend = await inTurn(async () => ortBackend(await ort.InferenceSession.create(bytes, sessionOptions), ort.Tensor))
  return {
    ...backend,
    run: (feeds, fetch) => inTurn(() => backend.run(feeds, fetch)),
    release: () => inTurn(() => backend.release()),
  }
}

/** Sets what can be set only before the module's first session. */
function start(ort: WebModule, options: SessionOptions, { defaultThreads, wasmPaths }: WebEnvironment): void {
  const before = started.get(ort)
  if (before === undefined) {
    const threads = options.threads ?? defaultThreads
    ort.env.wasm.numThreads = threads
    ort.env.logLevel = 'error'
    if (wasmPaths !== undefined) ort.env.wasm.wasmPaths = wasmPaths
    started.set(ort, { threads })
  } else if (options.threads !== undefined && options.threads !== before.threads) {
    throw new ModalignError({
      code: 'RUNTIME_OPTIONS',
      field: '/threads',
      got: `${options.threads}`,
      expected: `${before.threads}: the WASM runtime of this thread was started with as many`,
    })
  }
}
