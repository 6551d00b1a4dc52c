/** What works on this machine, tried for real. Data only: the command line renders it. */
import { execFile, fork } from 'node:child_process'
import { availableParallelism, freemem, release, totalmem } from 'node:os'
import { promisify, stripVTControlCharacters } from 'node:util'
import { type ErrorData, errorData, renderError } from '../errors.ts'
import { findFfmpeg } from '../media/ffmpeg.ts'
import { abortError } from './abort.ts'
import { deviceHint, devicesOf, reasonOf } from './devices.ts'
import { canRestart, type HugePageSetting, hugePageSetting, hugePageTunables } from './huge-pages.ts'
import { loadNative, nativeObstacle, nativeReservation, thisPlatform } from './native.ts'
import type { Device } from './session.ts'

/** What a device did with the probe. */
export interface DeviceTrial {
  /** Largest absolute difference from the result in float64. */
  readonly largestError: number
  /** Loading and the first run, the start of the process not counted. */
  readonly milliseconds: number
  /** How many nodes ran on the device and how many fell to the CPU; undefined on WASM, which has no profiles. */
  readonly nodes: { readonly onDevice: number; readonly elsewhere: number } | undefined
}

export type DeviceDiagnosis = {
  readonly device: Device
  /** Why `auto` would not take the device even though it works. */
  readonly reservation?: string
} & (({ readonly works: true } & DeviceTrial) | { readonly works: false; readonly reason: string; readonly hint: string })

export type ProgramDiagnosis =
  | { readonly works: true; readonly version: string; readonly path?: string }
  | { readonly works: false; readonly reason: string; readonly hint: string }

export interface Diagnosis {
  readonly node: { readonly version: string; readonly required: string; readonly works: boolean }
  readonly platform: { readonly os: string; readonly arch: string; readonly release: string }
  /** Threads that this process may use. */
  readonly threads: number
  /** `constrainedBytes`: what a container allows, where it says so. */
  readonly memory: { readonly totalBytes: number; readonly freeBytes: number; readonly constrainedBytes?: number }
  /** Linux alone. `tunables`: what glibc must be told for weights to lie on huge pages where they have to be asked for. */
  readonly hugePages?: { readonly setting: HugePageSetting; readonly tunables: string; readonly askedByItself: boolean }
  readonly onnxruntime: { readonly node: ProgramDiagnosis; readonly web: ProgramDiagnosis }
  /** All devices of the platform, in the order in which `auto` tries them. */
  readonly devices: readonly DeviceDiagnosis[]
  /** What `auto` takes; undefined when nothing works. */
  readonly auto: Device | undefined
  readonly ffmpeg: ProgramDiagnosis
  readonly sharp: ProgramDiagnosis
}

export interface DiagnoseOptions {
  /** The ffmpeg program; see `findFfmpeg`. */
  readonly ffmpeg?: string
  /** For one device. Default 120 s: the first use of CUDA can take half a minute. */
  readonly timeoutMs?: number
  readonly signal?: AbortSignal
}

/** As in package.json. */
export const requiredNode = '20.19'

/** The probe's values are below 1; float32 gets them to 1e-7, float16 arithmetic to 1e-3. */
const largestAllowedError = 1e-4

/**
 * Tries every device of the platform in a process of its own, with a small model and its known result, and looks for the programs that media need.
 * Nothing is installed, changed or sent.
 *
 * @throws an `AbortError` where `signal` says so; whatever does not work is data
 * @example
 * const { devices, auto } = await diagnose()
 * for (const device of devices) if (!device.works) console.log(device.device, device.reason, device.hint)
 */
export async function diagnose({ ffmpeg, timeoutMs = 120_000, signal }: DiagnoseOptions = {}): Promise<Diagnosis> {
  const devices: DeviceDiagnosis[] = []
  // One after the other: they would share the cores, and a GPU's memory.
  for (const device of devicesOf(thisPlatform)) {
    if (signal?.aborted) throw abortError(signal)
    devices.push(await diagnoseDevice(device, timeoutMs, signal))
  }
  const hugePages = hugePageSetting()
  const constrainedBytes = process.constrainedMemory()
  return {
    node: { version: process.versions.node, required: requiredNode, works: isAtLeast(process.versions.node, requiredNode) },
    platform: { ...thisPlatform, release: release() },
    threads: availableParallelism(),
    memory: {
      totalBytes: totalmem(),
      freeBytes: freemem(),
      // Without a limit, Linux names one beyond all memory.
      ...(constrainedBytes > 0 && constrainedBytes < totalmem() && { constrainedBytes }),
    },
    ...(hugePages !== undefined && { hugePages: { setting: hugePages, tunables: hugePageTunables, askedByItself: canRestart } }),
    onnxruntime: {
      node: await version(async () => (await loadNative()).env.versions.node, deviceHint('cpu', thisPlatform)),
      web: await version(async () => (await import('onnxruntime-web')).env.versions.web, deviceHint('wasm', thisPlatform)),
    },
    devices,
    auto: devices.find(({ works, reservation, device }) => works && reservation === undefined && isAutomatic(device))?.device,
    ffmpeg: await diagnoseFfmpeg(ffmpeg),
    sharp: await version(
      async () => (await import('sharp')).default.versions.sharp,
      'run npm install again; https://sharp.pixelplumbing.com/install names what sharp needs',
    ),
  }
}

/** `auto` ends on the native CPU where there is one. */
function isAutomatic(device: Device): boolean {
  return device !== 'wasm' || !devicesOf(thisPlatform).includes('cpu')
}

async function diagnoseDevice(device: Device, timeoutMs: number, signal: AbortSignal | undefined): Promise<DeviceDiagnosis> {
  const reservation = nativeReservation(device)
  const about = { device, ...(reservation !== undefined && { reservation }) }
  const fails = (reason: string): DeviceDiagnosis => ({ ...about, works: false, reason, hint: deviceHint(device, thisPlatform) })
  const obstacle = nativeObstacle(device)
  if (obstacle !== undefined) return fails(obstacle)
  const outcome = await tryInProcess(device, timeoutMs, signal)
  if ('reason' in outcome) return fails(outcome.reason)
  const { largestError, nodes } = outcome
  if (!(largestError <= largestAllowedError)) return fails(`wrong values: off by ${largestError}`)
  if (nodes !== undefined && nodes.onDevice === 0) return fails('every node of the model was left to the CPU')
  return { ...about, works: true, ...outcome }
}

const deviceProcess = new URL(import.meta.url.endsWith('.ts') ? './doctor-device.ts' : './doctor-device.js', import.meta.url)

function tryInProcess(
  device: Device,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<DeviceTrial | { readonly reason: string }> {
  return new Promise((resolve, reject) => {
    const child = fork(deviceProcess, [device], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] })
    let answer: { readonly trial: DeviceTrial } | { readonly error: ErrorData } | undefined
    let words = ''
    let late = false
    const timer = setTimeout(() => {
      late = true
      child.kill('SIGKILL')
    }, timeoutMs)
    const abort = () => child.kill('SIGKILL')
    signal?.addEventListener('abort', abort)
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      words = (words + text).slice(-4096)
    })
    child.on('message', (message: { readonly trial: DeviceTrial } | { readonly error: ErrorData }) => {
      answer = message
    })
    const finish = (ending: string) => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', abort)
      if (signal?.aborted) reject(abortError(signal))
      else if (answer !== undefined && 'trial' in answer) resolve(answer.trial)
      else {
        const reason = late ? `no answer within ${timeoutMs} ms` : answer === undefined ? ending : (answer.error.got ?? answer.error.code)
        resolve({ reason: [reason, ...lastWords(words)].join('; ') })
      }
    }
    child.on('error', (error) => finish(error.message))
    child.on('close', (code, killed) => finish(killed === null ? `the process ended with code ${code}` : `the process died of ${killed}`))
  })
}

/** What the native libraries said on stderr about a failure, such as the name of a library that they miss. */
function lastWords(text: string): readonly string[] {
  return stripVTControlCharacters(text)
    .split('\n')
    .map((line) => reasonOf(line.replace(/^[\d :.-]+\[\w:[^\]]*\]/, '')))
    .filter((line) => /\b(error|fail|cannot|not found|no such)/i.test(line) && !line.startsWith('at ') && !line.includes('XDG_RUNTIME_DIR'))
    .slice(-2)
}

async function version(read: () => Promise<string | undefined>, hint: string): Promise<ProgramDiagnosis> {
  try {
    return { works: true, version: (await read()) ?? 'unknown' }
  } catch (error) {
    return { works: false, reason: reasonOf(error), hint }
  }
}

async function diagnoseFfmpeg(option: string | undefined): Promise<ProgramDiagnosis> {
  const hint =
    'needed for video and for most audio and for BMP pictures: install it (apt install ffmpeg, brew install ffmpeg, npm install ffmpeg-static) or name it in FFMPEG_PATH'
  try {
    const path = await findFfmpeg(option)
    const { stdout } = await promisify(execFile)(path, ['-hide_banner', '-version'], { timeout: 20_000 })
    const found = /^ffmpeg version (\S+)/.exec(stdout)?.[1]
    return found === undefined ? { works: false, reason: `${path} does not answer as ffmpeg`, hint } : { works: true, version: found, path }
  } catch (error) {
    return { works: false, reason: renderError(errorData(error)), hint }
  }
}

function isAtLeast(got: string, required: string): boolean {
  const [g, r] = [got, required].map((text) => text.split('.').map(Number))
  for (const [i, part] of (r ?? []).entries()) {
    const have = g?.[i] ?? 0
    if (have !== part) return have > part
  }
  return true
}
