/** Where a row lies in its file. */
export interface RowPlace {
  readonly offset: number
  readonly byteLength: number
}

/**
 * Which rows a file has, by the ids of their items and by number: 0, 1, ... in the order in which they were added. A job may have ten million of them, so a row costs its id
 * and some twenty bytes, not an object.
 */
export class RowIndex {
  readonly #numbers = new Map<string, number>()
  readonly #codes = new Map<number, string>()
  #offsets = new Float64Array(0)
  #lengths = new Uint32Array(0)

  get size(): number {
    return this.#numbers.size
  }

  /** Rows that are errors. */
  get bad(): number {
    return this.#codes.size
  }

  numberOf(id: string): number | undefined {
    return this.#numbers.get(id)
  }

  place(row: number): RowPlace {
    return { offset: this.#offsets[row] ?? 0, byteLength: this.#lengths[row] ?? 0 }
  }

  /** The error's code; null for a caption. */
  code(row: number): string | null {
    return this.#codes.get(row) ?? null
  }

  /** @param code null for a caption. @returns the row's number. The id must be new. */
  add(id: string, { offset, byteLength }: RowPlace, code: string | null): number {
    const row = this.size
    if (row === this.#offsets.length) this.#grow()
    this.#numbers.set(id, row)
    this.#offsets[row] = offset
    this.#lengths[row] = byteLength
    if (code !== null) this.#codes.set(row, code)
    return row
  }

  /** Ids and numbers, by number. */
  entries(): IterableIterator<[string, number]> {
    return this.#numbers.entries()
  }

  #grow(): void {
    const room = Math.max(1024, this.size * 2)
    const [offsets, lengths] = [new Float64Array(room), new Uint32Array(room)]
    offsets.set(this.#offsets)
    lengths.set(this.#lengths)
    this.#offsets = offsets
    this.#lengths = lengths
  }
}
