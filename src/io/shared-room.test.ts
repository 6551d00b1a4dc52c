import { expect, test } from 'vitest'
import { openSharedRoom, writeToRoom } from './shared-room.ts'

test('what one side writes the other reads, again and again; what was not written is missed', () => {
  const room = openSharedRoom(1000)
  if (room === undefined) throw new Error('no temporary files here')
  try {
    for (const values of [
      [1, 2, 3],
      [4, 5],
    ]) {
      expect(writeToRoom(room.descriptor, Uint8Array.from(values))).toBe(true)
      expect([...room.read(values.length)]).toEqual(values)
    }
    expect(() => room.read(4)).toThrowError(expect.objectContaining({ code: 'SHARED_ROOM_SHORT' }))
  } finally {
    room.close()
  }
})

test('a descriptor that cannot be written to says so', () => {
  expect(writeToRoom(999_999, Uint8Array.of(1))).toBe(false)
})
