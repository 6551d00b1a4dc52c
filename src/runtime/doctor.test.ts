import { readFile } from 'node:fs/promises'
import { describe, expect, test } from 'vitest'
import { devicesOf } from './devices.ts'
import { diagnose, requiredNode } from './doctor.ts'
import { thisPlatform } from './native.ts'

describe('diagnose', () => {
  test('tries every device of the platform and finds the programs', async () => {
    const diagnosis = await diagnose()
    expect(diagnosis.node).toEqual({ version: process.versions.node, required: requiredNode, works: true })
    expect(diagnosis.devices.map(({ device }) => device)).toEqual(devicesOf(thisPlatform))
    for (const device of diagnosis.devices) {
      if (device.works) {
        expect(device.largestError).toBeLessThan(1e-6)
        if (device.device !== 'wasm') expect(device.nodes?.onDevice).toBeGreaterThan(0)
      } else {
        expect(device.reason).toMatch(/\w{3}/)
        expect(device.hint).toMatch(/\w{3}/)
      }
    }
    const working = diagnosis.devices.filter(({ works }) => works).map(({ device }) => device)
    expect(working).toContain('wasm')
    if (devicesOf(thisPlatform).includes('cpu')) expect(working).toContain('cpu')
    if (diagnosis.hugePages !== undefined) expect(diagnosis.hugePages.setting).toMatch(/^(always|madvise|never)$/)
    expect(working).toContain(diagnosis.auto)
    expect(diagnosis.onnxruntime.web).toMatchObject({ works: true, version: expect.stringMatching(/^\d+\.\d+/) })
    expect(diagnosis.sharp).toMatchObject({ works: true, version: expect.stringMatching(/^\d+\.\d+/) })
    expect(diagnosis.threads).toBeGreaterThan(0)
    expect(diagnosis.memory.freeBytes).toBeLessThanOrEqual(diagnosis.memory.totalBytes)
  })

  test('an ffmpeg that is none, and a device that does not answer in time, are told as such', async () => {
    const diagnosis = await diagnose({ ffmpeg: '/no/such/ffmpeg', timeoutMs: 1 })
    expect(diagnosis.ffmpeg).toMatchObject({ works: false, reason: expect.stringContaining('/no/such/ffmpeg') })
    expect(diagnosis.devices.find(({ device }) => device === 'wasm')).toMatchObject({
      works: false,
      reason: expect.stringContaining('within 1 ms'),
    })
    expect(diagnosis.auto).toBeUndefined()
  })

  test('abort', async () => {
    await expect(diagnose({ signal: AbortSignal.timeout(50) })).rejects.toMatchObject({ name: 'AbortError' })
  })

  test('the required version of Node is the one that package.json names', async () => {
    const { engines } = JSON.parse(await readFile(new URL('../../package.json', import.meta.url), 'utf8'))
    expect(engines.node).toBe(`>=${requiredNode}`)
  })
})
