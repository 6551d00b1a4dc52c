import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { ggufBytes } from '../../../test/gguf-bytes.ts'
import { memorySource } from '../../io/byte-source.ts'
import { toFloat16 } from '../float16.ts'
import { integerBlocks } from './blocks/index.ts'
import { dequantise } from './dequantise.ts'
import { type GgufFile, openGguf, readGguf } from './gguf.ts'
import { exactForm, type Repacked, type RepackedPart, repacked, repackedForm } from './repack.ts'

const file = await openGguf(fileURLToPath(new URL('../../../test/fixtures/gguf/blocks.gguf', import.meta.url)))

async function partOf(name: string, form: Repacked, part: RepackedPart, of: GgufFile = file): Promise<readonly number[]> {
  const values: number[] = []
  for await (const piece of repacked(of, name, form, part)) values.push(...piece)
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

test.each(withMinimums)('%s: a small matrix loses its minimums, and half a step of each run at most', async (name) => {
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

test('of blocks on both sides of zero, as those of weights are, less than half is lost of what rounding every value would lose', async () => {
  const blocks = 64
  const bytes = ggufBytes({ tensors: [{ name: 'w', sizes: [32n, BigInt(blocks)], type: 3 }] })
  const from = bytes.length - blocks * 20
  for (let block = 0; block < blocks; block++) {
    const scale = 0.01 + 0.0007 * ((block * 37) % 64)
    const halves = toFloat16(Float32Array.of(scale, -scale * (6.5 + ((block * 29) % 64) / 32)))
    bytes.set(new Uint8Array(halves.buffer), from + block * 20)
    for (let at = 4; at < 20; at++) bytes[from + block * 20 + at] = (block * 89 + at * 151) % 256
  }
  const made = await readGguf(memorySource(bytes))
  const form = repackedForm(made, 'w')
  if (form === undefined) throw new Error('it has blocks')
  const expected = await dequantise(made, 'w')
  const [packed, steps] = [await partOf('w', form, 'packed', made), await partOf('w', form, 'scales', made)]
  let [ours, usual] = [0, 0]
  for (const [index, value] of expected.entries()) {
    const run = index - (index % 32)
    const largest = expected.subarray(run, run + 32).reduce((most, other) => Math.max(most, Math.abs(other)), 0)
    ours += (((packed[index] ?? 0) - 128) * (steps[run / 32] ?? 0) - value) ** 2
    usual += ((Math.round((value / largest) * 127) / 127) * largest - value) ** 2
  }
  expect(usual).toBeGreaterThan(0)
  expect(Math.sqrt(ours / usual)).toBeLessThan(0.4)
})

test('what has no integer blocks has no such form', () => {
  for (const name of ['F32', 'F16', 'BF16']) expect(repackedForm(file, name)).toBeUndefined()
})
