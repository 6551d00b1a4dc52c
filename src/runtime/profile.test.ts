import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { float32Tensor } from '../tensors.ts'
import { createLocalSession } from './local.ts'
import { probeFeeds, probeModel } from './probe.ts'
import { profileFiles, profileRun, providerNames, readProfile } from './profile.ts'
import type { SessionOptions } from './session.ts'

let folder = ''
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'modalign-profiles-'))
})
afterAll(() => rm(folder, { recursive: true }))

const operators = async (name: string, options: SessionOptions) => {
  const bytes = await readFile(new URL(`../../test/fixtures/runtime/${name}.onnx`, import.meta.url))
  const feeds = name === 'probe' ? probeFeeds : { x: float32Tensor(Float32Array.of(1, 2), [2]) }
  const { nodes } = await profileRun({ bytes }, feeds, { device: 'cpu', ...options }, createLocalSession)
  return nodes.map(({ operator }) => operator)
}

describe('profiles', () => {
  test('name every node that ran, its provider and its time, once per run', async () => {
    const prefix = join(folder, 'probe')
    const session = await createLocalSession({ bytes: probeModel() }, { device: 'cpu', optimization: 'disabled', profile: prefix })
    await session.run(probeFeeds)
    await session.run(probeFeeds)
    await session.dispose()
    const files = await profileFiles(prefix)
    expect(files).toHaveLength(1)
    const nodes = await readProfile(files[0] ?? '')
    expect(nodes.map(({ name, operator, provider }) => [name, operator, provider])).toEqual(
      [1, 2].flatMap(() => [
        ['product', 'MatMul', providerNames.cpu],
        ['bias', 'Add', providerNames.cpu],
        ['softmax', 'Softmax', providerNames.cpu],
      ]),
    )
    for (const { durationMs } of nodes) expect(durationMs).toBeGreaterThanOrEqual(0)
    expect(nodes.reduce((sum, { durationMs }) => sum + durationMs, 0)).toBeLessThan(10_000)
  })

  test('files of another prefix do not count; broken ones are errors that say why', async () => {
    expect(await profileFiles(join(folder, 'prob'))).toEqual([])
    const truncated = join(folder, 'truncated.json')
    await writeFile(truncated, '[\n{"cat" : "Node"')
    await expect(readProfile(truncated)).rejects.toMatchObject({
      code: 'RUNTIME_PROFILE',
      details: { hint: expect.stringContaining('disposed') },
    })
    await writeFile(truncated, '{}')
    await expect(readProfile(truncated)).rejects.toMatchObject({ code: 'RUNTIME_PROFILE' })
    await expect(readProfile(join(folder, 'none.json'))).rejects.toMatchObject({ code: 'RUNTIME_PROFILE' })
  })
})

// ONNX Runtime ignores options that it does not know: that ours have an effect must be seen.
describe('options have their effect', () => {
  test('optimization', async () => {
    expect(await operators('probe', { optimization: 'disabled' })).toEqual(['MatMul', 'Add', 'Softmax'])
    expect(await operators('probe', {})).toEqual(['Gemm', 'Softmax'])
  })

  test('disabledOptimizers, one and several', async () => {
    const exponentials = async (...disabledOptimizers: string[]) =>
      (await operators('twice', { disabledOptimizers })).filter((operator) => operator === 'Exp').length
    expect(await exponentials()).toBe(1)
    expect(await exponentials('CommonSubexpressionElimination')).toBe(2)
    expect(await exponentials('GeluFusion', 'CommonSubexpressionElimination', 'MatMulAddFusion')).toBe(2)
    expect(await exponentials('GeluFusion')).toBe(1)
  })
})
