import { expect, test } from 'vitest'
import { openSharedRoom, writeToRoom } from './shared-room.ts'

test('what one side writes the other reads, again and again; what was not written is missed', () => {
  const room = openSharedRoom(1000)
  if (room === undefined) throw new Error('no temporary files here')
  try {
    for (const [offset, values] of [
      [0, [1, 2, 3]],
      [0, [4, 5]],
      [3, [6, 7]],
    ] as const) {
      expect(writeToRoom(room.descriptor, Uint8Array.from(values), offset)).toBe(true)
      expect([...room.read(offset, values.length)]).toEqual(values)
    }
    expect([...room.read(0, 5)]).toEqual([4, 5, 3, 6, 7])
    expect(() => room.read(2, 4)).toThrowError(expect.objectContaining({ code: 'SHARED_ROOM_SHORT' }))
  } finally {
    room.close()
  }
})

test('a descriptor that cannot be written to says so', () => {
  expect(writeToRoom(999_999, Uint8Array.of(1), 0)).toBe(false)
})
