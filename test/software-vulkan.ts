/** For tests of the WebGPU provider on machines without a GPU: a software Vulkan driver that Dawn accepts. */
import { existsSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Where Chromium's packages put the manifest of SwiftShader. Mesa's llvmpipe is no substitute: Dawn refuses it. */
const manifests = [
  '/usr/lib/chromium/vk_swiftshader_icd.json',
  '/usr/lib64/chromium-browser/vk_swiftshader_icd.json',
  '/usr/lib/chromium-browser/vk_swiftshader_icd.json',
  '/opt/google/chrome/vk_swiftshader_icd.json',
]
const libraryFolders = ['/usr/lib/x86_64-linux-gnu', '/lib/x86_64-linux-gnu', '/usr/lib64', '/usr/lib', '/usr/local/lib']

export type SoftwareVulkan = { readonly manifest: string } | { readonly missing: string }

/**
 * Finds SwiftShader's manifest and the Vulkan loader.
 *
 * @example
 * const vulkan = findSoftwareVulkan()
 * if ('manifest' in vulkan) process.env.VK_DRIVER_FILES = vulkan.manifest // before the first session on WebGPU
 */
export function findSoftwareVulkan(): SoftwareVulkan {
  if (process.platform !== 'linux' || process.arch !== 'x64')
    return { missing: `onnxruntime-node has WebGPU over Vulkan on linux/x64 only, not on ${process.platform}/${process.arch}` }
  const manifest = manifests.find((path) => existsSync(path))
  if (manifest === undefined) return { missing: `no SwiftShader (${manifests[0]}): install Debian's package chromium` }
  const loader = libraryFolders.some(
    (folder) =>
      existsSync(folder) && readdirSync(folder).some((name) => name.startsWith('libvulkan.so.1') && existsSync(join(folder, name))),
  )
  return loader ? { manifest } : { missing: "no Vulkan loader (libvulkan.so.1): install Debian's package libvulkan1" }
}

/**
 * Names the software driver to this process, once, before the provider loads; says on stderr why it could not. To be called when a test file is loaded.
 *
 * @returns whether WebGPU can be tested
 * @example
 * const webgpu = useSoftwareVulkan('operators on WebGPU')
 * describe.skipIf(!webgpu)('operators on WebGPU', ...)
 */
export function useSoftwareVulkan(what: string): boolean {
  if (process.env.VK_DRIVER_FILES !== undefined) return true
  const vulkan = findSoftwareVulkan()
  if ('missing' in vulkan) {
    console.warn(`skipped: ${what}: ${vulkan.missing}`)
    return false
  }
  process.env.VK_DRIVER_FILES = vulkan.manifest
  // The driver's window system complains on stderr where a session has none; nothing is written there.
  process.env.XDG_RUNTIME_DIR ??= tmpdir()
  return true
}
