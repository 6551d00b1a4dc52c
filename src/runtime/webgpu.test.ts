import { readFile } from 'node:fs/promises'
import { expect, test } from 'vitest'
import { skipWithout } from '../../test/skip.ts'
import { useSoftwareVulkan } from '../../test/software-vulkan.ts'
import { float32Tensor, type TensorValue } from '../tensors.ts'
import { createSession } from './node.ts'
import { probeError, probeFeeds, probeModel } from './probe.ts'
import { profileRun, providerNames } from './profile.ts'

const fixture = (name: string) => readFile(new URL(`../../test/fixtures/runtime/${name}.onnx`, import.meta.url))
const numbers = (value: TensorValue | undefined) => Array.from(value?.data ?? [], Number)

const missing = useSoftwareVulkan('the WebGPU provider of onnxruntime-node') ? undefined : 'no software Vulkan, see test/software-vulkan.ts'
skipWithout(missing).describe('the WebGPU provider on software Vulkan', () => {
  test('every node runs on it, and the values are those of the CPU provider', async () => {
    const onCpu = await profileRun({ bytes: probeModel() }, probeFeeds, { device: 'cpu' })
    const onGpu = await profileRun({ bytes: probeModel() }, probeFeeds, { device: 'webgpu' })
    expect(new Set(onCpu.nodes.map((node) => node.provider))).toEqual(new Set([providerNames.cpu]))
    expect(new Set(onGpu.nodes.map((node) => node.provider))).toEqual(new Set([providerNames.webgpu]))
    expect(onGpu.nodes.map((node) => node.operator)).toContain('Softmax')
    expect(probeError(onGpu.outputs)).toBeLessThan(1e-6)
    const [expected, got] = [numbers(onCpu.outputs.y), numbers(onGpu.outputs.y)]
    for (const [i, value] of got.entries()) expect(Math.abs(value - (expected[i] ?? Number.NaN))).toBeLessThan(1e-6)
  })

  test('carried values and several sessions at a time', async () => {
    await using first = await createSession({ bytes: await fixture('cache') }, { device: 'webgpu' })
    await using second = await createSession({ bytes: probeModel() }, { device: 'webgpu' })
    await first.setCarried({ past: float32Tensor(Float32Array.of(1, 1), [1, 1, 2]) })
    const feeds = { x: float32Tensor(Float32Array.of(2, 3), [1, 1, 2]) }
    const [once, other] = await Promise.all([first.run(feeds, { carry: { present: 'past' } }), second.run(probeFeeds)])
    expect(numbers(once.total)).toEqual([7])
    expect(probeError(other)).toBeLessThan(1e-6)
    expect(numbers((await first.run(feeds)).present)).toEqual([1, 1, 2, 3, 2, 3])
  })

  test('sessions of several threads that are made and run at the same time do not bring the process down', async () => {
    const sessions = await Promise.all([1, 2, 3].map(() => createSession({ bytes: probeModel() }, { device: 'webgpu' })))
    for (let round = 0; round < 5; round++)
      for (const outputs of await Promise.all(sessions.map((session) => session.run(probeFeeds))))
        expect(probeError(outputs)).toBeLessThan(1e-6)
    await Promise.all(sessions.map((session) => session.dispose()))
  })

  test('auto leaves a software adapter alone and says so', async () => {
    await using session = await createSession({ bytes: probeModel() })
    expect(session.device).toBe('cpu')
    expect(session.passedOver.find(({ device }) => device === 'webgpu')?.reason).toMatch(/software/)
  })
})
