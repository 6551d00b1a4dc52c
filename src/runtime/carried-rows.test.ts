import fc from 'fast-check'
import { expect, test } from 'vitest'
import { float32Tensor, type NamedTensors } from '../tensors.ts'
import { appendPlaces, arrangeRows, type CarriedRow } from './carried-rows.ts'
import type { AppendedOutput } from './session.ts'

const [heads, channels] = [2, 3]

/** Every number says where it stood. */
function cache(set: number, rows: number, places: number): NamedTensors {
  const at = (index: number): number => set * 1e6 + index
  const count = rows * heads * places * channels
  return {
    key: float32Tensor(
      Float32Array.from({ length: count }, (_, i) => at(i)),
      [rows, heads, places, channels],
    ),
  }
}

function place(values: NamedTensors | undefined, row: number, head: number, index: number): readonly number[] {
  const value = values?.key
  if (value?.dtype !== 'float32') throw new Error('a float32 key')
  const [, , places = 0] = value.dims
  const start = ((row * heads + head) * places + index) * channels
  return Array.from(value.data.subarray(start, start + channels))
}

test('every row holds the places of the row that it was, whatever was where before', () => {
  const size = fc.integer({ min: 1, max: 4 })
  fc.assert(
    fc.property(
      fc.array(fc.tuple(size, size), { minLength: 2, maxLength: 3 }),
      fc.infiniteStream(fc.nat()),
      size,
      fc.boolean(),
      (shapes, choices, count, same) => {
        const pick = (bound: number): number => Number(choices.next().value) % bound
        const make = () => new Map(shapes.map(([rows, places], set) => [`${set}`, cache(set, rows, places)]))
        const [sets, original] = [make(), make()]
        // The target's own shape: rows are moved in its memory.
        const total = same ? (shapes[0]?.[0] ?? 1) : count
        const capacity = same ? (shapes[0]?.[1] ?? 1) : 5
        const rows: readonly Required<CarriedRow>[] = Array.from({ length: total }, () => {
          const set = pick(shapes.length)
          const [available, places] = shapes[set] ?? [1, 1]
          return { set: `${set}`, row: pick(available), places: pick(Math.min(places, capacity) + 1) }
        })
        const arranged = arrangeRows(sets, '0', rows, capacity)
        expect(arranged.key?.dims).toEqual([total, heads, capacity, channels])
        for (const [row, source] of rows.entries())
          for (let head = 0; head < heads; head++)
            for (let index = 0; index < source.places; index++)
              expect(place(arranged, row, head, index)).toEqual(place(original.get(source.set), source.row, head, index))
      },
    ),
    { seed: 5, numRuns: 200 },
  )
})

test('in its own shape a set keeps its memory; no rows give nothing', () => {
  const sets = new Map([['a', cache(0, 2, 4)]])
  const turned = arrangeRows(
    sets,
    'a',
    [
      { set: 'a', row: 1, places: 4 },
      { set: 'a', row: 0, places: 2 },
    ],
    4,
  )
  expect(turned.key?.data).toBe(sets.get('a')?.key?.data)
  expect(arrangeRows(sets, 'a', [], 4)).toEqual({})
})

test.each<[string, CarriedRow]>([
  ['/rows/0/set', { set: 'b', row: 0, places: 1 }],
  ['/rows/0/row', { set: 'a', row: 2, places: 1 }],
  ['/rows/0/places', { set: 'a', row: 0, places: 5 }],
])('refuses %s that is not there', (field, row) => {
  expect(() => arrangeRows(new Map([['a', cache(0, 2, 4)]]), 'a', [row], 9)).toThrow(
    expect.objectContaining({ code: 'RUNTIME_CARRIED_ROWS', details: expect.objectContaining({ field }) }),
  )
})

const grown: AppendedOutput = { output: 'fresh', inputs: ['key', 'value'], starts: [2, 0], tokens: [1, 3] }
/** Values x batch, heads, tokens, channels. */
const fresh = float32Tensor(
  Float32Array.from({ length: 4 * heads * 3 * channels }, (_, index) => index),
  [4, heads, 3, channels],
)
const both = (): NamedTensors => ({ ...cache(1, 2, 4), value: cache(2, 2, 4).key ?? fresh })

test('new places are written where each row ends, padding is not, and all else stays', () => {
  const [values, before] = [both(), both()]
  appendPlaces(values, fresh, grown)
  for (const [index, name] of ['key', 'value'].entries())
    for (let row = 0; row < 2; row++)
      for (let head = 0; head < heads; head++)
        for (let at = 0; at < 4; at++) {
          const token = at - (grown.starts[row] ?? 0)
          const isNew = token >= 0 && token < (grown.tokens[row] ?? 0)
          const [value, old] = [values[name], before[name]]
          const expected = isNew ? place({ key: fresh }, index * 2 + row, head, token) : place(old && { key: old }, row, head, at)
          expect(place(value && { key: value }, row, head, at)).toEqual(expected)
        }
})

test.each<[string, Partial<AppendedOutput>]>([
  ['no room', { starts: [2, 2] }],
  ['more tokens than there are', { tokens: [1, 4] }],
  ['another batch', { starts: [0], tokens: [1] }],
  ['an unknown value', { inputs: ['key', 'other'] }],
])('%s is an error, and nothing is written', (_, wrong) => {
  const values = both()
  expect(() => appendPlaces(values, fresh, { ...grown, ...wrong })).toThrow(expect.objectContaining({ code: 'RUNTIME_CARRIED_ROWS' }))
  expect(values).toEqual(both())
})
