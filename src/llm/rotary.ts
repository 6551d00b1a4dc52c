/** Rotary positions in a graph: tables of angles, and heads turned by them.   Su et al. 2021. */
import { rotaryEmbedding } from '../graph/composites/rotary-embedding.ts'
import type { Dim } from '../graph/dim.ts'
import { add } from '../graph/operators/add.ts'
import { cast } from '../graph/operators/cast.ts'
import { concat } from '../graph/operators/concat.ts'
import { cos } from '../graph/operators/cos.ts'
import { greaterOrEqual } from '../graph/operators/greater-or-equal.ts'
import { mul } from '../graph/operators/mul.ts'
import { range, sizeAsTensor } from '../graph/operators/range.ts'
import { reduceMax } from '../graph/operators/reduce-max.ts'
import { sin } from '../graph/operators/sin.ts'
import { split } from '../graph/operators/split.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import { where } from '../graph/operators/where.ts'
import { constant, fixedDim, integers, type Tensor } from '../graph/tensor.ts'
import type { DecodeContext } from './decoder.ts'
import type { Rotary } from './rope-scaling.ts'

export interface RotaryTables {
  /** float32 [places, turned channels / 2]; where there are angles for long sequences, their table follows. */
  readonly cos: Tensor
  readonly sin: Tensor
  /** Rows before the table for long sequences: int64, rank 0. */
  readonly offset: Tensor
}

/** Tables of at most so many angles are constants of the graph; larger ones, of contexts of 100,000 tokens, are computed for as many places as a call has. */
const largestConstant = 2 ** 19
const constants = new WeakMap<Rotary, RotaryTables>()

/** Angles of places 0, 1, ... of a sequence: of at least `places` of them. */
export function rotaryTables(rotary: Rotary, places: Dim): RotaryTables {
  const { frequencies, maxPositions, long } = rotary
  if (maxPositions * frequencies.length > largestConstant) return computedTables(rotary, places)
  const known = constants.get(rotary)
  if (known !== undefined) return known
  const parts = [frequencies, ...(long === undefined ? [] : [long.frequencies])]
  const table = (of: (angle: number) => number): Tensor => {
    const data = parts.map((part) => tableValues(rotary, part, of))
    return constant({ dtype: 'float32', dims: [parts.length * maxPositions, frequencies.length], data: joined(data) })
  }
  const made = { cos: table(Math.cos), sin: table(Math.sin), offset: integers([maxPositions], []) }
  constants.set(rotary, made)
  return made
}

function tableValues({ maxPositions, amplitude }: Rotary, frequencies: Float32Array, of: (angle: number) => number): Float32Array {
  const half = frequencies.length
  // float32 angles and values, as the reference computes them: at high positions the rounding is visible.
  const { fround } = Math
  return new Float32Array(maxPositions * half).map((_, index) => {
    const angle = fround(Math.floor(index / half) * (frequencies[index % half] ?? 0))
    return fround(of(angle)) * amplitude
  })
}

function computedTables({ frequencies, amplitude, long }: Rotary, places: Dim): RotaryTables {
  const positions = unsqueeze(cast(range(places), 'float32'), [1])
  const angles = [frequencies, ...(long === undefined ? [] : [long.frequencies])].map((data) =>
    mul(positions, constant({ dtype: 'float32', dims: [1, data.length], data })),
  )
  const table = (of: (x: Tensor) => Tensor): Tensor => {
    const values = angles.map((one) => (amplitude === 1 ? of(one) : mul(of(one), amplitude)))
    const [only, ...others] = values
    return only !== undefined && others.length === 0 ? only : concat(values, 0)
  }
  return { cos: table(cos), sin: table(sin), offset: sizeAsTensor(places) }
}

/** Whether fused attention can turn whole heads itself. */
export function turnsWholeHeads({ frequencies, long }: Rotary, headDim: number): boolean {
  return long === undefined && 2 * frequencies.length === headDim
}

/**
 * Turns the first channels of every head, as many as there are angles for; the others stay.  x [batch, heads, tokens, headDim]; `places`: of the sequence or its cache.
 *
 * The reference chooses the angles for long sequences by the longest sequence of a call; here every row of a cached batch chooses by its own length.
 */
export function rotate(x: Tensor, rotary: Rotary, { positions, cache }: Pick<DecodeContext, 'positions' | 'cache'>, places: Dim): Tensor {
  const { long, frequencies } = rotary
  const { cos: cosines, sin: sines, offset } = rotaryTables(rotary, places)
  const rows = long === undefined ? positions : add(positions, where(isLong(long.after, positions, cache), offset, integers([0], [])))
  const headDim = fixedDim(x.shape, -1, 'rotary head')
  const turned = 2 * frequencies.length
  if (turned === headDim) return rotaryEmbedding(x, rows, cosines, sines)
  const [first, rest] = split(x, [turned, headDim - turned], -1)
  if (first === undefined || rest === undefined) throw new Error('internal: two parts')
  return concat([rotaryEmbedding(first, rows, cosines, sines), rest], -1)
}

function isLong(after: number, positions: Tensor, cache: DecodeContext['cache']): Tensor {
  const last = cache === undefined ? reduceMax(positions, [0, 1], { keepdims: true }) : unsqueeze(cast(cache.lastPlaces, 'int64'), [1])
  return greaterOrEqual(last, after)
}

function joined(parts: readonly Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0))
  let start = 0
  for (const part of parts) {
    whole.set(part, start)
    start += part.length
  }
  return whole
}
