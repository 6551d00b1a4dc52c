/** A nameless file as a room that a process shares with a child, through which large values cross with one copy on either side and without the event loop's buffers. */
import { randomUUID } from 'node:crypto'
import { closeSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ModalignError } from '../errors.ts'

export interface SharedRoom {
  /** For the child's `stdio`. */
  readonly descriptor: number
  /** How many it takes. */
  readonly bytes: number
  /** @throws ModalignError `SHARED_ROOM_SHORT` where less was written */
  read(offset: number, length: number): Uint8Array
  close(): void
}

/**
 * @returns undefined where no temporary file can be made: then values cross as messages
 * @example
 * const room = openSharedRoom(2 ** 20)
 * fork('child.js', { stdio: ['ignore', 'inherit', 'inherit', 'ipc', room.descriptor] }) // there: writeToRoom(4, bytes, 0)
 */
export function openSharedRoom(bytes: number): SharedRoom | undefined {
  const descriptor = namelessFile()
  if (descriptor === undefined) return undefined
  return {
    descriptor,
    bytes,
    read(offset, length) {
      const found = new Uint8Array(length)
      let filled = 0
      while (filled < length) {
        const read = readSync(descriptor, found, filled, length - filled, offset + filled)
        if (read === 0) throw new ModalignError({ code: 'SHARED_ROOM_SHORT', got: `${filled} bytes at ${offset}`, expected: `${length}` })
        filled += read
      }
      return found
    },
    close: () => closeSync(descriptor),
  }
}

/** In the child. @returns false where the disk has no place for them */
export function writeToRoom(descriptor: number, bytes: Uint8Array, offset: number): boolean {
  try {
    let written = 0
    while (written < bytes.length) written += writeSync(descriptor, bytes, written, bytes.length - written, offset + written)
    return true
  } catch (error) {
    if (error instanceof Error && 'code' in error) return false
    throw error
  }
}

function namelessFile(): number | undefined {
  const path = join(tmpdir(), `modalign-${randomUUID()}`)
  try {
    const descriptor = openSync(path, 'wx+', 0o600)
    unlinkSync(path)
    return descriptor
  } catch (error) {
    if (error instanceof Error && 'code' in error) return undefined
    throw error
  }
}
