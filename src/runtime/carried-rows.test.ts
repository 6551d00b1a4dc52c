import fc from 'fast-check'
import { expect, test } from 'vitest'
import { float32Tensor, type NamedTensors } from '../tensors.ts'
import { arrangeRows, type CarriedRow } from './carried-rows.ts'

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
