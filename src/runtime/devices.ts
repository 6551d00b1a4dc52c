/**
 * Device negotiation. ONNX Runtime neither falls back nor says why a provider failed to load, so both are ours. Everything here is pure: the
 * attempt itself is handed in.
 */
import type { InferenceSession } from 'onnxruntime-web'
import { ModalignError } from '../errors.ts'
import type { Device, DeviceRequest, PassedOver, SessionOptions } from './session.ts'

/** As in `process.platform` and `process.arch`; in a browser `{ os: 'browser', arch: '' }`. */
export interface Platform {
  readonly os: string
  readonly arch: string
}

/** What onnxruntime-node 1.30 ships for each platform, in the order in which `auto` tries it. `wasm` (onnxruntime-web) runs everywhere. */
const shipped: Readonly<Record<string, readonly Device[]>> = {
  'linux/x64': ['cuda', 'webgpu', 'cpu', 'wasm'],
  'linux/arm64': ['cpu', 'wasm'],
  'win32/x64': ['directml', 'webgpu', 'cpu', 'wasm'],
  'win32/arm64': ['directml', 'webgpu', 'cpu', 'wasm'],
  'darwin/arm64': ['coreml', 'webgpu', 'cpu', 'wasm'],
  browser: ['webgpu', 'wasm'],
}

function platformName({ os, arch }: Platform): string {
  return arch === '' ? os : `${os}/${arch}`
}

/** The devices that can exist on a platform, in the order in which `auto` tries them. Without a native binary (Intel Macs) it is WASM alone. */
export function devicesOf(platform: Platform): readonly Device[] {
  return shipped[platformName(platform)] ?? ['wasm']
}

/** What to install or do when a device does not work. */
export function deviceHint(device: Device, platform: Platform): string {
  const name = platformName(platform)
  if (!devicesOf(platform).includes(device)) return `on ${name} there are: ${devicesOf(platform).join(', ')}`
  switch (device) {
    case 'cuda':
      return 'install the NVIDIA driver, CUDA 12 and cuDNN 9, then run `npm run setup:cuda` (in a project that depends on modalign: ONNXRUNTIME_NODE_INSTALL=true node node_modules/onnxruntime-node/script/install.js)'
    case 'directml':
      return 'DirectML needs a DirectX 12 GPU and its driver'
    case 'coreml':
      return 'Core ML needs macOS 12 or newer'
    case 'webgpu':
      return platform.os === 'linux'
        ? 'install the Vulkan loader (libvulkan1) and the Vulkan driver of your GPU'
        : platform.os === 'browser'
          ? 'use a browser with WebGPU, over https or localhost'
          : 'update the GPU driver'
    case 'cpu':
    case 'wasm':
      return 'reinstall modalign with its dependencies'
  }
}

type MaybePromise<T> = T | Promise<T>

export interface Attempts<T> {
  /** Why the device cannot work, where that is known without a try. */
  obstacle(device: Device): MaybePromise<string | undefined>
  /** Why `auto` should not take the device although it may work; a request by name is not held back by it. */
  reservation(device: Device): MaybePromise<string | undefined>
  /** Tries for real. Rejects when the device or the model does not work. */
  attempt(device: Device): Promise<T>
  /** Whether the device works with a model known to be sound: tells a bad model from a bad device. */
  sound(device: Device): Promise<boolean>
}
export interface Negotiated<T> {
  readonly device: Device
  readonly passedOver: readonly PassedOver[]
  readonly value: T
}

/**
 * `auto`: the devices of the platform in order, each failure recorded; the error of the last one (the CPU, or WASM where there is no native
 * CPU) is the model's. By name: that device or an error.
 *
 * @throws {ModalignError} `RUNTIME_DEVICE_UNAVAILABLE`, `RUNTIME_MODEL_INVALID`, and what the attempt throws as a ModalignError
 */
export async function negotiate<T>(request: DeviceRequest, platform: Platform, attempts: Attempts<T>): Promise<Negotiated<T>> {
  if (request !== 'auto') {
    if (!devicesOf(platform).includes(request)) throw unavailable(request, platform, `not available on ${platformName(platform)}`)
    const obstacle = await attempts.obstacle(request)
    if (obstacle !== undefined) throw unavailable(request, platform, obstacle)
    try {
      return { device: request, passedOver: [], value: await attempts.attempt(request) }
    } catch (error) {
      if (error instanceof ModalignError) throw error
      if (isFloor(request) || (await attempts.sound(request))) throw invalidModel(error)
      throw unavailable(request, platform, reasonOf(error), error)
    }
  }
  const passedOver: PassedOver[] = []
  const order = devicesOf(platform)
  if (!order.includes('cpu') && platform.os !== 'browser')
    passedOver.push({ device: 'cpu', reason: `onnxruntime-node has no binary for ${platformName(platform)}` })
  const last = order.includes('cpu') ? 'cpu' : 'wasm'
  for (const device of order) {
    const reason = (await attempts.obstacle(device)) ?? (await attempts.reservation(device))
    if (reason !== undefined) {
      if (device === last) throw unavailable(device, platform, reason)
      passedOver.push({ device, reason })
      continue
    }
    try {
      return { device, passedOver, value: await attempts.attempt(device) }
    } catch (error) {
      if (device === last) throw error instanceof ModalignError ? error : invalidModel(error)
      passedOver.push({ device, reason: reasonOf(error) })
    }
  }
  throw unavailable(last, platform, 'no device works')
}

/** The devices of which a working copy is part of every installation: when these refuse a model, the model is at fault. */
function isFloor(device: Device): boolean {
  return device === 'cpu' || device === 'wasm'
}

function unavailable(device: Device, platform: Platform, reason: string, cause?: unknown): ModalignError {
  return new ModalignError({
    code: 'RUNTIME_DEVICE_UNAVAILABLE',
    field: '/device',
    got: `${device}: ${reason}`,
    expected: 'a working device',
    hint:
      platform.os === 'browser'
        ? deviceHint(device, platform)
        : `${deviceHint(device, platform)}; \`npx modalign doctor\` tries every device`,
    cause,
  })
}

function invalidModel(error: unknown): ModalignError {
  if (isOutOfMemory(error)) return outOfMemory(error)
  return new ModalignError({
    code: 'RUNTIME_MODEL_INVALID',
    got: reasonOf(error),
    expected: 'a model that ONNX Runtime can load',
    cause: error,
  })
}

function outOfMemory(error: unknown): ModalignError {
  return new ModalignError({
    code: 'RUNTIME_OUT_OF_MEMORY',
    got: reasonOf(error),
    hint: 'use smaller batches or a smaller model',
    cause: error,
  })
}

function isOutOfMemory(error: unknown): boolean {
  return /bad_alloc|bad allocation|failed to allocate|out of memory|Array buffer allocation failed/i.test(String(error))
}

/** A failure of a run, as data. Bad arguments were refused before; what is left is the kernel's or the memory's. */
export function runFailure(error: unknown): ModalignError {
  if (error instanceof ModalignError) return error
  return isOutOfMemory(error) ? outOfMemory(error) : new ModalignError({ code: 'RUNTIME_RUN_FAILED', got: reasonOf(error), cause: error })
}

/** ONNX Runtime's message without its build machine's paths, C++ signatures and line breaks. */
export function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  const node = /running (\S+) node\. Name:'([^']*)' Status Message: /.exec(text)
  const message = node === null ? text : `${node[1]} '${node[2]}': ${text.slice(node.index + node[0].length)}`
  return message
    .replace(/\/\S*onnxruntime_src\/\S+?:\d+ .*?(?=was false\. |\[ONNXRuntimeError\])/gs, '')
    .replace(/\/\S*onnxruntime_src\/\S+?:\d+ /g, '')
    .replace(/was false\. /g, '')
    .replace(/\[ONNXRuntimeError\] : \d+ : \w+ : /g, '')
    .replace(/\s+/g, ' ')
    .trim()
}

/** Core ML's flags of onnxruntime 1.30. An ML program keeps float32; the older format computes in float16 off the CPU. */
const coreMlProgram = 0x010

/**
 * ONNX Runtime's option object for one device. Keys below `extra` are nested and their values strings, as the Node binding joins them.
 *
 * @throws {ModalignError} `RUNTIME_OPTIONS` for what a device cannot do
 * @example
 * ortSessionOptions('directml', { threads: 4 }, { os: 'win32', arch: 'x64' }).executionMode // 'sequential'
 */
export function ortSessionOptions(
  device: Device,
  options: SessionOptions,
  platform: Platform,
  externalRoot?: string,
): InferenceSession.SessionOptions {
  if (!devicesOf(platform).includes(device)) throw unavailable(device, platform, `not available on ${platformName(platform)}`)
  const web = device === 'wasm' || platform.os === 'browser'
  if (device === 'directml' && options.memoryPattern === true) throw refusal('memoryPattern', 'DirectML cannot plan memory ahead')
  if (web && options.profile !== undefined) throw refusal('profile', 'onnxruntime-web cannot write profiles')
  const session = {
    ...(options.prepacking === false && { disable_prepacking: '1' }),
    ...(options.spinning !== undefined && { intra_op: { allow_spinning: options.spinning ? '1' : '0' } }),
    ...(externalRoot !== undefined && { model_external_initializers_file_folder_path: externalRoot }),
  }
  const extra = {
    ...(Object.keys(session).length > 0 && { session }),
    ...(options.disabledOptimizers !== undefined &&
      options.disabledOptimizers.length > 0 && { optimization: { disable_specified_optimizers: options.disabledOptimizers.join(';') } }),
  }
  return {
    executionProviders: [executionProvider(device)],
    executionMode: 'sequential',
    graphOptimizationLevel: options.optimization ?? 'all',
    enableCpuMemArena: true,
    enableMemPattern: device === 'directml' ? false : (options.memoryPattern ?? true),
    // What ONNX Runtime would print as an error we throw.
    logSeverityLevel: 4,
    ...(options.threads !== undefined && !web && { intraOpNumThreads: options.threads }),
    ...(options.profile !== undefined && { enableProfiling: true, profileFilePrefix: options.profile }),
    ...(Object.keys(extra).length > 0 && { extra }),
  }
}

function executionProvider(device: Device): InferenceSession.ExecutionProviderConfig {
  switch (device) {
    case 'directml':
      return { name: 'dml', deviceId: 0 }
    case 'cuda':
      return { name: 'cuda', deviceId: 0 }
    case 'coreml':
      return { name: 'coreml', coreMlFlags: coreMlProgram }
    case 'cpu':
    case 'webgpu':
    case 'wasm':
      return device
  }
}

function refusal(option: string, reason: string): ModalignError {
  return new ModalignError({ code: 'RUNTIME_OPTIONS', field: `/${option}`, got: reason, expected: `no option '${option}' on this device` })
}
