import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { integerBlocks } from './blocks/index.ts'
import { dequantise } from './dequantise.ts'
import { openGguf } from './gguf.ts'
import { exactForm, type Repacked, type RepackedPart, repacked, repackedForm } from './repack.ts'

const file = await openGguf(fileURLToPath(new URL('../../../test/fixtures/gguf/blocks.gguf', import.meta.url)))

async function partOf(name: string, form: Repacked, part: RepackedPart): Promise<readonly number[]> {
  const values: number[] = []
  for await (const piece of repacked(file, name, form, part)) values.push(...piece)
  return values
}

test.each([...integerBlocks.keys()])('%s: the repacked blocks stand for the same values', async (name) => {
  const form = exactForm(file, name)
  if (form === undefined) throw new Error('it has blocks')
  const { bits, rows, blocks, bytes, hasMinimums } = form
  const [packed, scales, minimums] = [
    await partOf(name, form, 'packed'),
    await partOf(name, form, 'scales'),
    hasMinimums ? await partOf(name, form, 'minimums') : [],
  ]
  expect([packed.length, scales.length]).toEqual([rows * blocks * bytes, rows * blocks])
  const expected = await dequantise(file, name)
  const size = (bytes * 8) / bits
  const wrong = expected.findIndex((value, index) => {
    const block = Math.floor(index / size)
    const at = index % size
    const byte = packed[block * bytes + (bits === 8 ? at : at >> 1)] ?? Number.NaN
    const level = bits === 8 ? byte - 128 : ((at & 1) === 0 ? byte & 15 : byte >> 4) - 8
    const scaled = level * (scales[block] ?? Number.NaN)
    const least = hasMinimums ? (minimums[block] ?? Number.NaN) : 0
    // A minimum that moved with its levels was rounded to float32 once more.
    return !(Math.abs(scaled + least - value) <= 2 ** -23 * (Math.abs(scaled) + Math.abs(least)))
  })
  expect(wrong).toBe(-1)
})

const withMinimums = [...integerBlocks].filter(([, { hasMinimums, run }]) => hasMinimums && run === 32).map(([name]) => name)

test.each(withMinimums)('%s: a small matrix loses its minimums and half a 127th of the largest of each run at most', async (name) => {
  const form = repackedForm(file, name)
  if (form === undefined) throw new Error('it has blocks')
  const { rows, blocks, bytes } = form
  expect(form).toEqual({ bits: 8, rows, blocks, bytes: 32, hasMinimums: false })
  const [packed, scales] = [await partOf(name, form, 'packed'), await partOf(name, form, 'scales')]
  const expected = await dequantise(file, name)
  expect(packed).toHaveLength(expected.length)
  const wrong = expected.findIndex((value, index) => {
    const scale = scales[Math.floor(index / bytes)] ?? Number.NaN
    return !(Math.abs(((packed[index] ?? Number.NaN) - 128) * scale - value) <= 0.5001 * scale)
  })
  expect(wrong).toBe(-1)
})

test('what has no integer blocks has no such form', () => {
  for (const name of ['F32', 'F16', 'BF16']) expect(repackedForm(file, name)).toBeUndefined()
})
