/** Values that stay beside a session, batch along axis 0, put together anew: rows join and leave a batch, beams follow one another, a prompt's cache serves many. */
import { ModalignError } from '../errors.ts'
import type { NamedTensors, TensorValue } from '../tensors.ts'
import { dataArrays } from './feeds.ts'
import type { AppendedOutput } from './session.ts'

/** Where a row of the new values comes from: a row of a set of carried values, of which the first `places` along axis 2 are kept (default: all that fit). */
export interface CarriedRow {
  readonly set: string
  readonly row: number
  readonly places?: number
}

/** Carried values by the name of their set. */
export type CarriedSets = ReadonlyMap<string, NamedTensors>

/**
 * Rows of carried values as a new set. Every value is [batch, heads, places, channels]; the new ones have `capacity` places (default: as many as the longest source of
 * that value), of which those past a row's own hold anything. Where the target has this shape already, only rows that change are moved.
 *
 * @throws {ModalignError} `RUNTIME_CARRIED_ROWS`
 */
export function arrangeRows(sets: CarriedSets, target: string, rows: readonly CarriedRow[], capacity?: number): NamedTensors {
  const sources = rows.map((row, index) => sets.get(row.set) ?? missing(`/rows/${index}/set`, `no carried values '${row.set}'`))
  const names = Object.keys(sources[0] ?? {})
  const before = sets.get(target)
  return Object.fromEntries(names.map((name) => [name, arranged(name, rows, sources, before?.[name], capacity)]))
}

/**
 * Writes new places into carried values where they lie.
 *
 * @throws {ModalignError} `RUNTIME_CARRIED_ROWS` where they have no room; nothing is written then
 */
export function appendPlaces(carried: NamedTensors, added: TensorValue, { inputs, starts, tokens }: AppendedOutput): void {
  const batch = starts.length
  const [rows = 0, heads = 0, length = 0, channels = 0] = added.dims
  if (added.dims.length !== 4 || rows !== inputs.length * batch || tokens.length !== batch)
    missing('/append', `new places [${added.dims.join(', ')}] of ${batch} rows of ${inputs.length} values`)
  const values = inputs.map((name, index) => carried[name] ?? missing(`/append/inputs/${index}`, `no carried value '${name}'`))
  for (const [index, { dtype, dims }] of values.entries()) {
    const [, , places = 0] = dims
    if (dtype !== added.dtype || dims.length !== 4 || dims[0] !== batch || dims[1] !== heads || dims[3] !== channels)
      missing(`/append/inputs/${index}`, `'${inputs[index]}': ${dtype} [${dims.join(', ')}]`)
    for (const [row, start] of starts.entries()) {
      const count = tokens[row] ?? 0
      if (start < 0 || count < 0 || count > length || start + count > places)
        missing(`/append/starts/${row}`, `${count} places from ${start} of ${places}`)
    }
  }
  for (const [index, { dims, data }] of values.entries()) {
    const [, , places = 0] = dims
    for (const [row, start] of starts.entries())
      for (let head = 0; head < heads; head++) {
        const from = ((index * batch + row) * heads + head) * length * channels
        write(data, added.data.subarray(from, from + (tokens[row] ?? 0) * channels), ((row * heads + head) * places + start) * channels)
      }
  }
}

function arranged(
  name: string,
  rows: readonly CarriedRow[],
  sources: readonly NamedTensors[],
  before: TensorValue | undefined,
  wanted: number | undefined,
): TensorValue {
  const values = sources.map((source, index) => source[name] ?? missing(`/rows/${index}/set`, `no value '${name}'`))
  const [first = missing('/rows', 'no rows')] = values
  const [, heads = 0, , channels = 0] = first.dims
  const capacity = wanted ?? Math.max(...values.map(({ dims }) => dims[2] ?? 0))
  const kept = (index: number): number => rows[index]?.places ?? Math.min(values[index]?.dims[2] ?? 0, capacity)
  for (const [index, { dims }] of values.entries()) {
    const [row, places] = [rows[index]?.row ?? 0, kept(index)]
    if (dims.length !== 4 || dims[1] !== heads || dims[3] !== channels) missing(`/rows/${index}`, `'${name}' of shape [${dims.join(', ')}]`)
    if (row < 0 || row >= (dims[0] ?? 0)) missing(`/rows/${index}/row`, `row ${row} of ${dims[0]}`)
    if (places < 0 || places > Math.min(dims[2] ?? 0, capacity)) missing(`/rows/${index}/places`, `${places} places of ${dims[2]}`)
  }
  const dims = [rows.length, heads, capacity, channels]
  const inPlace = before !== undefined && String(before.dims) === String(dims)
  const data = inPlace ? before.data : new dataArrays[first.dtype](rows.length * heads * capacity * channels)
  const moves = rows.flatMap(({ row }, index) => {
    const source = values[index] ?? first
    return source.data === data && row === index ? [] : [{ source, row, places: kept(index), index }]
  })
  // What is read may be written over by an earlier move: all is read first.
  const read = moves.map((move) => ({ ...move, heads: rowOf(move.source, move.row, move.places, inPlace && move.source.data === data) }))
  for (const { index, heads: parts } of read)
    for (const [head, part] of parts.entries()) write(data, part, (index * heads + head) * capacity * channels)
  return valueLike(first, dims, data)
}

/** One head's places each: views, or copies where the source is about to change. */
function rowOf({ dims, data }: TensorValue, row: number, places: number, copy: boolean): readonly TensorValue['data'][] {
  const [, heads = 0, length = 0, channels = 0] = dims
  return Array.from({ length: heads }, (_, head) => {
    const start = (row * heads + head) * length * channels
    return copy ? data.slice(start, start + places * channels) : data.subarray(start, start + places * channels)
  })
}

function write(target: TensorValue['data'], part: TensorValue['data'], offset: number): void {
  // Both are of the dtype's own class; bigint and number arrays never meet here.
  ;(target as Float32Array).set(part as Float32Array, offset)
}

function valueLike({ dtype }: TensorValue, dims: readonly number[], data: TensorValue['data']): TensorValue {
  // The array's class is the one that dataArrays pairs with the dtype.
  return { dtype, dims, data } as TensorValue
}

function missing(field: string, got: string): never {
  throw new ModalignError({ code: 'RUNTIME_CARRIED_ROWS', field, got, expected: 'rows of carried values [batch, heads, places, channels]' })
}
