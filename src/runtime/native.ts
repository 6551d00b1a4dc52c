/** onnxruntime-node: loading it, and what can be told about its devices before a try. */
import { accessSync, constants, existsSync, readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { devicesOf, type Platform } from './devices.ts'
import type { Device, DeviceRequest } from './session.ts'

export const thisPlatform: Platform = { os: process.platform, arch: process.arch }

let loading: Promise<typeof import('onnxruntime-node')> | undefined

/** Imported only when needed: the package throws on platforms for which it has no binary. */
export function loadNative(): Promise<typeof import('onnxruntime-node')> {
  loading ??= import('onnxruntime-node').then((ort) => {
    // Before the first session: what the environment itself says is not for our users' terminals below an error.
    ort.env.logLevel = 'error'
    return ort
  })
  return loading
}

/** The folder of onnxruntime-node's binaries for this platform, whether or not it exists. */
export function nativeFolder(platform: Platform = thisPlatform): string {
  const entry = createRequire(import.meta.url).resolve('onnxruntime-node')
  return join(dirname(entry), '..', 'bin', 'napi-v6', platform.os, platform.arch)
}

/** Why a device cannot work here, where the files alone tell. Spares the user ONNX Runtime's own complaint on stderr. */
export function nativeObstacle(device: Device, platform: Platform = thisPlatform): string | undefined {
  if (device === 'wasm') return undefined
  const folder = nativeFolder(platform)
  if (!existsSync(folder)) return `onnxruntime-node has no binary for ${platform.os}/${platform.arch}`
  if (device === 'cuda' && !existsSync(join(folder, 'libonnxruntime_providers_cuda.so')))
    return `the CUDA provider is not installed: no libonnxruntime_providers_cuda.so in ${folder}`
  return undefined
}

/**
 * Why `auto` should not take a device that would work. ONNX Runtime does not say which WebGPU adapter it got, and a software one
 * (SwiftShader, llvmpipe, WARP) is a hundred times slower than the CPU provider. So `auto` takes WebGPU only where hardware can be seen
 * beforehand: on Apple silicon always, on Linux with a DRM render node that this process may open and no Vulkan driver forced by the environment, on
 * Windows never (DirectML comes first there; where that fails, what is left is most often WARP).
 */
export function nativeReservation(
  device: Device,
  platform: Platform = thisPlatform,
  environment: NodeJS.ProcessEnv = process.env,
): string | undefined {
  if (device !== 'webgpu' || platform.os === 'darwin') return undefined
  if (platform.os === 'win32') return 'whether the adapter is hardware cannot be told; ask for webgpu by name'
  const forced = environment.VK_DRIVER_FILES ?? environment.VK_ICD_FILENAMES
  if (forced !== undefined && /swiftshader|lvp|llvmpipe/i.test(forced))
    return `the environment forces a software Vulkan driver (${forced}); ask for webgpu by name`
  return canOpenRenderNode()
    ? undefined
    : 'no GPU that this process may open (/dev/dri/renderD*); a software adapter would be slower than the CPU'
}

/** The device that a request gets if every device that may work does: nothing is tried. */
export function expectedDevice(request: DeviceRequest = 'auto', platform: Platform = thisPlatform): Device {
  if (request !== 'auto') return request
  const known = devicesOf(platform).find(
    (device) => nativeObstacle(device, platform) === undefined && nativeReservation(device, platform) === undefined,
  )
  return known ?? 'wasm'
}

function canOpenRenderNode(): boolean {
  const folder = '/dev/dri'
  if (!existsSync(folder)) return false
  return readdirSync(folder).some((name) => name.startsWith('renderD') && mayOpen(join(folder, name)))
}

function mayOpen(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}
