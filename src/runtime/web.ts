/** Sessions on onnxruntime-web, for browsers. No module of Node is reachable from here by import. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import { negotiate, type Platform } from './devices.ts'
import { hostSession } from './host.ts'
import { probeError, probeFeeds, probeModel } from './probe.ts'
import { checkModelSource, type Device, type ModelSource, type Session, type SessionOptions, withoutUndefined } from './session.ts'
import { parseOptions, sessionOptionsSchema } from './session-options.ts'
import { openWebBackend, type WasmPaths, type WebEnvironment } from './web-session.ts'

export interface WebSessionOptions extends SessionOptions {
  /** Where the page finds onnxruntime-web's `.wasm` and `.mjs` files. Default: beside the module that was loaded. Counts for the first session of each device. */
  readonly wasmPaths?: WasmPaths
}

const webOptionsSchema = sessionOptionsSchema.extend({
  wasmPaths: z.union([z.string(), z.strictObject({ wasm: z.string().exactOptional(), mjs: z.string().exactOptional() })]).optional(),
})

const platform: Platform = { os: 'browser', arch: '' }

/**
 * Loads a model on onnxruntime-web. `auto` takes WebGPU where the page has an adapter that is not software, else WASM; by name any adapter
 * will do. Runs of all sessions of the page take turns, because onnxruntime-web cannot overlap them, and run on the calling thread: use a Worker of the page
 * to keep it responsive.
 *
 * `threads` counts for WASM and for what WebGPU leaves to the CPU. More than one needs a cross-origin isolated page. Default: half of the cores, at most four;
 * one elsewhere. All sessions of a device share the number. In Node this is WASM on one thread; `createSession` with `device: 'wasm'` has more.
 *
 * @throws {ModalignError} as `createSession`
 * @example
 * const session = await createWebSession({ bytes: new Uint8Array(await (await fetch('model.onnx')).arrayBuffer()) })
 */
export async function createWebSession(model: ModelSource, options: WebSessionOptions = {}): Promise<Session> {
  const { wasmPaths, ...parsed } = parseOptions(webOptionsSchema, options)
  const checked = withoutUndefined(parsed)
  checkModelSource(model)
  const isolated = globalThis.crossOriginIsolated === true
  if ((checked.threads ?? 1) > 1 && !isolated)
    throw new ModalignError({
      code: 'RUNTIME_OPTIONS',
      field: '/threads',
      got: `${checked.threads}`,
      expected: '1: this page is not cross-origin isolated',
      hint: 'serve it with Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp',
    })
  const environment: WebEnvironment = {
    platform,
    defaultThreads: isolated ? Math.min(4, Math.ceil(globalThis.navigator.hardwareConcurrency / 2)) : 1,
    ...(wasmPaths !== undefined && { wasmPaths }),
  }
  const open = async (device: Device, source: ModelSource, sourceOptions: SessionOptions) =>
    device === 'webgpu'
      ? openWebBackend(await import('onnxruntime-web/webgpu'), device, source, sourceOptions, environment)
      : openWebBackend(await import('onnxruntime-web/wasm'), 'wasm', source, sourceOptions, environment)
  const { device, passedOver, value } = await negotiate(checked.device ?? 'auto', platform, {
    obstacle: (device) => (device === 'webgpu' ? webgpuObstacle() : undefined),
    reservation: (device) => (device === 'webgpu' ? webgpuReservation() : undefined),
    attempt: (device) => open(device, model, checked),
    async sound(device) {
      try {
        const probe = await open(device, { bytes: probeModel() }, {})
        try {
          return probeError(await probe.run(probeFeeds, ['y'])) < 1e-3
        } finally {
          await probe.release()
        }
      } catch {
        return false
      }
    },
  })
  return hostSession(value, { device, passedOver })
}

interface GpuAdapter {
  readonly isFallbackAdapter?: boolean
  readonly info?: {
    readonly vendor?: string
    readonly architecture?: string
    readonly description?: string
    readonly isFallbackAdapter?: boolean
  }
}
interface NavigatorWithGpu {
  readonly gpu?: { requestAdapter(): Promise<GpuAdapter | null> }
}

/** The part of WebGPU that the DOM types of TypeScript may lack. */
function gpu(): NavigatorWithGpu['gpu'] {
  const navigator: NavigatorWithGpu | undefined = globalThis.navigator
  return navigator?.gpu
}

async function webgpuObstacle(): Promise<string | undefined> {
  const api = gpu()
  if (api === undefined) return 'this browser or page has no navigator.gpu'
  return (await api.requestAdapter()) === null ? 'the browser gives no WebGPU adapter' : undefined
}

async function webgpuReservation(): Promise<string | undefined> {
  const adapter = await gpu()?.requestAdapter()
  const info = adapter?.info
  const software = adapter?.isFallbackAdapter === true || info?.isFallbackAdapter === true
  const named = [info?.vendor, info?.architecture, info?.description].filter((part) => part).join(' ')
  return software || /swiftshader|llvmpipe|lavapipe|basic render/i.test(named)
    ? `the adapter is software (${named === '' ? 'fallback' : named}), slower than WASM; ask for webgpu by name`
    : undefined
}
