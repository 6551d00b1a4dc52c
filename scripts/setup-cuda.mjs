/**
 * `npm run setup:cuda`: fetches ONNX Runtime's CUDA provider, which its npm package leaves out for its size, by running that package's own
 * installer with the download on. The ordinary installation skips it, so that it works without access to NuGet.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'

const say = (line) => process.stdout.write(`${line}\n`)
const platform = `${process.platform}/${process.arch}`

if (platform !== 'linux/x64') {
  const instead = {
    'win32/x64': 'DirectML, for any GPU with DirectX 12, is part of the installation: nothing to set up.',
    'win32/arm64': 'DirectML, for any GPU with DirectX 12, is part of the installation: nothing to set up.',
    'darwin/arm64': 'Core ML and WebGPU are part of the installation: nothing to set up.',
    'darwin/x64': 'ONNX Runtime has no binary for Intel Macs; modalign runs on WASM there.',
  }
  say(`ONNX Runtime has its CUDA provider for Node on linux/x64 only; this is ${platform}.`)
  say(instead[platform] ?? 'modalign computes on the CPU here.')
  process.exit(1)
}

const root = join(dirname(createRequire(import.meta.url).resolve('onnxruntime-node')), '..')
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const folder = join(root, 'bin', 'napi-v6', process.platform, process.arch)
const libraries = ['libonnxruntime_providers_shared.so', 'libonnxruntime_providers_cuda.so'].map((name) => join(folder, name))

say(`Fetching the CUDA 12 provider of ONNX Runtime ${version} from NuGet (some hundred megabytes) into`)
say(`  ${folder}`)
// `true`, not `cuda12`: onnxruntime-node 1.30 forgets to return that value and then does nothing for the root package. The variable goes before .npmrc's `skip`.
const { status, stderr } = spawnSync(process.execPath, [join(root, 'script', 'install.js')], {
  stdio: ['ignore', 'inherit', 'pipe'],
  encoding: 'utf8',
  env: { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'true' },
})

const missing = libraries.filter((path) => !existsSync(path))
if (status !== 0 || missing.length > 0) {
  const reason = stderr.split('\n').find((line) => line.includes('Error:'))
  say(`The download did not succeed${reason === undefined ? '' : `: ${reason.trim()}`}.`)
  if (missing.length > 0) say(`Missing: ${missing.join(', ')}`)
  say('Behind a proxy, set GLOBAL_AGENT_HTTPS_PROXY. Without a network, take the package Microsoft.ML.OnnxRuntime.Gpu.Linux')
  say(`of exactly version ${version} from another machine (a .nupkg is a ZIP file) and copy the files from its`)
  say('runtimes/linux-x64/native/ into the folder above.')
  process.exit(1)
}
for (const path of libraries) say(`${path}: ${(statSync(path).size / 1e6).toFixed(0)} MB`)
say('CUDA 12, cuDNN 9 and the NVIDIA driver must be installed as well. `npx modalign doctor` tries the device.')
