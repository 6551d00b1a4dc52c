/** The process in which the doctor tries one device: a native crash ends this process and no other. Argument: the device. */
import { errorData, unreachable } from '../errors.ts'
import type { DeviceTrial } from './doctor.ts'
import { createLocalSession } from './local.ts'
import { probeError, probeFeeds, probeModel } from './probe.ts'
import { profileRun, providerNames } from './profile.ts'
import { type Device, devices } from './session.ts'

async function tryDevice(device: Device): Promise<DeviceTrial> {
  const start = performance.now()
  const model = { bytes: probeModel() }
  if (device === 'wasm') {
    const session = await createLocalSession(model, { device })
    const error = probeError(await session.run(probeFeeds))
    await session.dispose()
    return { largestError: error, milliseconds: performance.now() - start, nodes: undefined }
  }
  const { outputs, nodes } = await profileRun(model, probeFeeds, { device }, createLocalSession)
  const there = nodes.filter((node) => node.provider === providerNames[device]).length
  return {
    largestError: probeError(outputs),
    milliseconds: performance.now() - start,
    nodes: { onDevice: there, elsewhere: nodes.length - there },
  }
}

const device = devices.find((name) => name === process.argv[2]) ?? unreachable(`no device ${process.argv[2]}`)
const answer = await tryDevice(device).then(
  (trial) => ({ trial }),
  (error: unknown) => ({ error: errorData(error) }),
)
process.send?.(answer, () => process.disconnect())
