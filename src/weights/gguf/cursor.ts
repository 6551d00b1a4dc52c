import { ModalignError } from '../../errors.ts'
import type { ByteSource } from '../../io/memory-source.ts'

/** Read ahead so much at a time: the header of a file of gigabytes has a few megabytes. */
const chunkBytes = 2 ** 20
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/**
 * Reads a header of unknown length from front to back. Never asks for bytes that the file lacks, and never holds more than one piece of it: what a length in
 * the file says is compared with what is left before anything of that length is made.
 */
export class Cursor {
  readonly file: string | undefined
  readonly #source: ByteSource
  #buffer: Uint8Array = new Uint8Array(0)
  #view = new DataView(this.#buffer.buffer)
  #start = 0
  #position = 0

  constructor(source: ByteSource, file: string | undefined) {
    this.#source = source
    this.file = file
  }

  /** Bytes from the file's beginning. */
  get position(): number {
    return this.#position
  }

  /** Bytes that follow in the file. */
  get left(): number {
    return this.#source.size - this.#position
  }

  /** Whether the next bytes are in memory already: reading then needs no {@link load}. */
  holds(bytes: number): boolean {
    return this.#position - this.#start + bytes <= this.#buffer.length
  }

  /** @throws ModalignError `GGUF_TRUNCATED` */
  async load(bytes: number, what: string): Promise<void> {
    if (bytes > this.left) throw this.truncated(what, `${bytes} bytes`)
    if (this.holds(bytes)) return
    this.#buffer = await this.#source.read(this.#position, Math.min(this.left, Math.max(bytes, chunkBytes)))
    this.#view = new DataView(this.#buffer.buffer, this.#buffer.byteOffset, this.#buffer.byteLength)
    this.#start = this.#position
  }

  uint32(): number {
    return this.#view.getUint32(this.#advance(4), true)
  }

  uint64(): bigint {
    return this.#view.getBigUint64(this.#advance(8), true)
  }

  /** Bytes of the caller's own, aligned for any type. */
  bytes(length: number): Uint8Array<ArrayBuffer> {
    const at = this.#advance(length)
    const copy = new Uint8Array(length)
    copy.set(this.#buffer.subarray(at, at + length))
    return copy
  }

  /** Undefined where the bytes are no UTF-8. */
  text(length: number): string | undefined {
    const at = this.#advance(length)
    try {
      return utf8.decode(this.#buffer.subarray(at, at + length))
    } catch (error) {
      if (error instanceof TypeError) return undefined
      throw error
    }
  }

  truncated(what: string, needed: string): ModalignError {
    return new ModalignError({
      code: 'GGUF_TRUNCATED',
      file: this.file,
      field: what,
      got: `${this.left} bytes from byte ${this.#position} to the end of the file`,
      expected: needed,
      hint: 'the file is cut off or damaged: download it again',
    })
  }

  /** The place of the next bytes in the buffer. */
  #advance(bytes: number): number {
    const at = this.#position - this.#start
    this.#position += bytes
    return at
  }
}
