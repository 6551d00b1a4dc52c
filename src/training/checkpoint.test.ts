import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { ModalignError } from '../errors.ts'
import { newestCheckpoint, writeCheckpoint } from './checkpoint.ts'
import type { TrainerSnapshot } from './trainer.ts'

let root: string
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'modalign-checkpoint-'))
})
afterEach(() => rm(root, { recursive: true, force: true }))

/** Values that no rounding survives. */
function snapshot(step: number): TrainerSnapshot {
  const data = Float32Array.of(Math.PI * step, -0, 1e-40, Number.MAX_VALUE, 0.1, 1 / 3)
  return {
    parameters: { 'image.0.weight': { dims: [2, 3], data }, 'image.0.bias': { dims: [1], data: Float32Array.of(step) } },
    optimizer: {
      step: step + 7,
      slots: {
        exp_avg: { 'image.0.weight': data.map((value) => value / 3), 'image.0.bias': Float32Array.of(0.5) },
        exp_avg_sq: { 'image.0.weight': data.map((value) => value * value), 'image.0.bias': Float32Array.of(0.25) },
      },
    },
  }
}

const stateOf = (step: number) => ({ step, logBytes: 100 * step, fingerprint: 'abc' })

test('what is written comes back, bit for bit', async () => {
  const folder = await writeCheckpoint(root, stateOf(12), snapshot(12))
  expect(folder).toBe(join(root, 'step-000000012'))
  expect(await newestCheckpoint(root)).toEqual({ ...stateOf(12), folder, snapshot: snapshot(12) })
})

test('the newest counts, two are kept, and writing one again is no second one', async () => {
  for (const step of [9, 10, 100, 100]) await writeCheckpoint(root, stateOf(step), snapshot(step))
  expect((await readdir(root)).sort()).toEqual(['step-000000010', 'step-000000100'])
  expect((await newestCheckpoint(root))?.step).toBe(100)
})

test('no folder, and folders of other names, are no checkpoint', async () => {
  expect(await newestCheckpoint(join(root, 'nowhere'))).toBeUndefined()
  await writeFile(join(root, 'step-12'), '')
  expect(await newestCheckpoint(root)).toBeUndefined()
})

test.each<[string, (folder: string) => Promise<void>]>([
  ['a flipped bit in its tensors', (folder) => flipBit(join(folder, 'tensors.safetensors'))],
  ['truncated tensors', (folder) => truncate(join(folder, 'tensors.safetensors'), 100)],
  ['empty tensors', (folder) => truncate(join(folder, 'tensors.safetensors'), 0)],
  ['missing tensors', (folder) => rm(join(folder, 'tensors.safetensors'))],
  ['half a state', (folder) => truncate(join(folder, 'state.json'), 20)],
  ['an empty state', (folder) => truncate(join(folder, 'state.json'), 0)],
  ['a state of another format', (folder) => edit(join(folder, 'state.json'), '"format":1', '"format":2')],
  ['a state with a negative step', (folder) => edit(join(folder, 'state.json'), '"step":5', '"step":-5')],
])('one with %s is reported and passed over', async (_, damage) => {
  await writeCheckpoint(root, stateOf(4), snapshot(4))
  const newest = await writeCheckpoint(root, stateOf(5), snapshot(5))
  await damage(newest)
  const reported: ModalignError[] = []
  expect(await newestCheckpoint(root, (error) => reported.push(error))).toMatchObject({ step: 4, snapshot: snapshot(4) })
  expect(reported.map(({ code, details }) => [code, details.file])).toEqual([['CHECKPOINT_DAMAGED', newest]])
})

test('one whose writing was cut short, before its state, is none', async () => {
  await writeCheckpoint(root, stateOf(4), snapshot(4))
  const newest = await writeCheckpoint(root, stateOf(5), snapshot(5))
  await rm(join(newest, 'state.json'))
  const reported: ModalignError[] = []
  expect((await newestCheckpoint(root, (error) => reported.push(error)))?.step).toBe(4)
  await rm(join(root, 'step-000000004'), { recursive: true })
  expect(await newestCheckpoint(root, (error) => reported.push(error))).toBeUndefined()
  expect(reported).toEqual([])
})

test('where all are damaged, the newest one is the error', async () => {
  for (const step of [4, 5]) await flipBit(join(await writeCheckpoint(root, stateOf(step), snapshot(step)), 'tensors.safetensors'))
  await expect(newestCheckpoint(root)).rejects.toMatchObject({
    code: 'CHECKPOINT_DAMAGED',
    details: { file: join(root, 'step-000000005') },
  })
})

async function flipBit(file: string): Promise<void> {
  const bytes = await readFile(file)
  bytes.writeUInt8(bytes.readUInt8(bytes.length - 3) ^ 1, bytes.length - 3)
  await writeFile(file, bytes)
}

async function edit(file: string, from: string, to: string): Promise<void> {
  const text = await readFile(file, 'utf8')
  expect(text).toContain(from)
  await writeFile(file, text.replace(from, to))
}
