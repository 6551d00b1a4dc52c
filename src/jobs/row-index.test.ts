import fc from 'fast-check'
import { expect, test } from 'vitest'
import { RowIndex } from './row-index.ts'

const row = fc.record({
  offset: fc.maxSafeNat(),
  byteLength: fc.nat(2 ** 32 - 1),
  code: fc.option(fc.constantFrom('IMAGE_CORRUPT', 'FILE_MISSING')),
})

test('rows are found again as they were added', () => {
  fc.assert(
    fc.property(fc.dictionary(fc.string(), row, { maxKeys: 50 }), (given) => {
      const rows = new RowIndex()
      const added = Object.entries(given)
      const numbers = added.map(([id, { offset, byteLength, code }]) => rows.add(id, { offset, byteLength }, code))
      expect(numbers).toEqual(added.map((_, index) => index))
      expect([...rows.entries()]).toEqual(added.map(([id], index) => [id, index]))
      expect(rows.size).toBe(added.length)
      expect(rows.bad).toBe(added.filter(([, { code }]) => code !== null).length)
      for (const [index, [id, { offset, byteLength, code }]] of added.entries()) {
        expect(rows.numberOf(id)).toBe(index)
        expect(rows.place(index)).toEqual({ offset, byteLength })
        expect(rows.code(index)).toBe(code)
      }
      expect(rows.numberOf('no such id, as it is longer than those')).toBeUndefined()
    }),
  )
})

test('there is room for any number of them', () => {
  const rows = new RowIndex()
  for (let index = 0; index < 5000; index++) rows.add(`${index}`, { offset: index * 2 ** 33, byteLength: index }, null)
  for (let index = 0; index < 5000; index++) expect(rows.place(index)).toEqual({ offset: index * 2 ** 33, byteLength: index })
})
