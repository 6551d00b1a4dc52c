import { expect, test } from 'vitest'
import { evaluate, value } from '../../src/graph/evaluate.ts'
import { gather } from '../../src/graph/operators/gather.ts'
import { input } from '../../src/graph/tensor.ts'
import { randomStream } from '../../src/random.ts'
import { cleanStandIns, drawStandIns, type StandInSettings, standIns } from './stand-ins.ts'

const width = 256
const count = 400
const settings: StandInSettings = { seed: 1, width, sharpness: 15, noise: 2, clean: 0, mixedFrom: 0, mixedFully: 1 }
const all = Array.from({ length: count }, (_, id) => id)
/** Names as directions of no preference, of several sizes. */
const table = Float64Array.from({ length: count * width }, (_, place) => {
  const normal = randomStream({ seed: 1, stream: 'names' }).normal(place)
  return normal * (1 + (Math.floor(place / width) % 3))
})

function vectorsOf(feeds: ReturnType<typeof drawStandIns>): Float64Array {
  const names = input('table', 'float32', [count, width])
  const { vectors } = standIns((ids) => gather(names, ids), width)
  const [result] = evaluate([vectors], { ...feeds, table: value('float32', [count, width], table) })
  return result?.data ?? new Float64Array(0)
}

function cosines(vector: Float64Array): Float64Array {
  const length = Math.hypot(...vector)
  return Float64Array.from(all, (name) => {
    const row = table.subarray(name * width, (name + 1) * width)
    return row.reduce((sum, x, channel) => sum + x * (vector[channel] ?? 0), 0) / Math.hypot(...row) / length
  })
}

test('a clean stand-in is the name itself', () => {
  const vectors = vectorsOf(cleanStandIns([0, 3, 1, 3], [7, 9], width))
  for (const [picture, name] of [7, 9].entries())
    for (let channel = 0; channel < width; channel++)
      expect(vectors[picture * width + channel]).toBeCloseTo(table[name * width + channel] ?? Number.NaN, 4)
})

test('before mixtures come into use every stand-in is clean', () => {
  const places = { rows: [0, 3, 1, 3], names: [7, 9], all }
  const early = vectorsOf(drawStandIns(4, places, { ...settings, mixedFrom: 5, mixedFully: 10 }))
  expect(cosines(early.subarray(0, width))[7]).toBeCloseTo(1, 4)
  expect(cosines(early.subarray(width))[9]).toBeCloseTo(1, 4)
})

test('the likeliest name is the answer as often as softmax(s cos) says', () => {
  const names = all.slice(0, 300)
  const rows = names.flatMap((_, row) => [row, 3])
  const vectors = vectorsOf(drawStandIns(1, { rows, names, all }, settings))
  let [expected, found] = [0, 0]
  names.forEach((name, picture) => {
    const masses = cosines(vectors.subarray(picture * width, (picture + 1) * width)).map((cosine) => Math.exp(settings.sharpness * cosine))
    const likeliest = Math.max(...masses)
    expected += likeliest / masses.reduce((total, mass) => total + mass, 0)
    found += masses[name] === likeliest ? 1 : 0
  })
  // Two standard errors of a share of 300.
  expect(Math.abs(found - expected) / names.length).toBeLessThan(0.06)
  expect(expected / names.length).toBeGreaterThan(0.2)
  expect(expected / names.length).toBeLessThan(0.8)
})
