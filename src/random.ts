/**
 * Random numbers without state. Every number is a pure function of (seed, stream, index), so nothing has to be saved to resume, nothing depends on the order
 * in which numbers are drawn, and two streams never share a number.
 */
import { ModalignError } from './errors.ts'

/** `seed`: the run's, an integer in [0, 2^53). `stream`: what the numbers are for, for example `init/0.weight` or `order/3`. */
export interface RandomKey {
  readonly seed: number
  readonly stream: string
}

const multiplier0 = 0xd2511f53
const multiplier1 = 0xcd9e8d57
const weyl0 = 0x9e3779b9
const weyl1 = 0xbb67ae85
const two32 = 2 ** 32

/** High 32 bits of the 64-bit product of two unsigned 32-bit integers. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff
  const aHigh = a >>> 16
  const bLow = b & 0xffff
  const bHigh = b >>> 16
  const low = aLow * bLow
  const middle = aHigh * bLow + (low >>> 16)
  const middleLow = aLow * bHigh + (middle % 0x10000)
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(middleLow / 0x10000)) >>> 0
}

/**
 * Philox4x32-10: a counter and a key to four unsigned 32-bit integers, written to `out[0..4)`.
 * Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 */
export function philox4x32(out: Uint32Array, c0: number, c1: number, c2: number, c3: number, k0: number, k1: number): void {
  let [x0, x1, x2, x3, key0, key1] = [c0 >>> 0, c1 >>> 0, c2 >>> 0, c3 >>> 0, k0 >>> 0, k1 >>> 0]
  for (let round = 0; round < 10; round++) {
    const high0 = multiplyHigh(multiplier0, x0)
    const low0 = Math.imul(multiplier0, x0) >>> 0
    const high1 = multiplyHigh(multiplier1, x2)
    const low1 = Math.imul(multiplier1, x2) >>> 0
    x0 = (high1 ^ x1 ^ key0) >>> 0
    x1 = low1
    x2 = (high0 ^ x3 ^ key1) >>> 0
    x3 = low0
    key0 = (key0 + weyl0) >>> 0
    key1 = (key1 + weyl1) >>> 0
  }
  out[0] = x0
  out[1] = x1
  out[2] = x2
  out[3] = x3
}

/** FNV-1a (64 bits as two halves) of a stream's name: which half of the counter space is the stream's. */
function streamWords(stream: string): readonly [number, number] {
  let hash = 0xcbf29ce484222325n
  for (const byte of new TextEncoder().encode(stream)) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n)
  return [Number(hash & 0xffffffffn), Number(hash >> 32n)]
}

/** The numbers of one key, by index. */
export interface RandomStream {
  /** Four unsigned 32-bit integers of block `index` (0 ... 2^53); the array is reused by the next call. */
  block(index: number): Uint32Array
  /** Uniform in [0, 1), with 53 bits. */
  uniform(index: number): number
  /** Standard normal (Box and Muller 1958). */
  normal(index: number): number
  /** Uniform among the integers 0 ... bound - 1; `bound` at most 2^32. Its bias is below 2^-21. */
  integer(index: number, bound: number): number
}

/**
 * The stream of a key.
 *
 * @throws ModalignError `SEED_RANGE`
 * @example
 * randomStream({ seed: 0, stream: 'dropout' }).uniform(7) // always the same number
 */
export function randomStream({ seed, stream }: RandomKey): RandomStream {
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw new ModalignError({ code: 'SEED_RANGE', got: String(seed), expected: 'an integer in [0, 2^53)' })
  const key0 = seed % two32
  const key1 = Math.floor(seed / two32)
  const [word0, word1] = streamWords(stream)
  const out = new Uint32Array(4)
  const block = (index: number): Uint32Array => {
    philox4x32(out, index % two32, Math.floor(index / two32), word0, word1, key0, key1)
    return out
  }
  const uniform = (index: number): number => {
    block(index)
    return toUnit(out[0], out[1])
  }
  return {
    block,
    uniform,
    normal(index) {
      block(index)
      return boxMuller(toUnit(out[0], out[1]), toUnit(out[2], out[3]))
    },
    integer: (index, bound) => Math.floor(uniform(index) * bound),
  }
}

/** 53 bits of two words as a number in [0, 1). */
function toUnit(high = 0, low = 0): number {
  return ((high >>> 5) * 67108864 + (low >>> 6)) / 9007199254740992
}

function boxMuller(u: number, v: number): number {
  return Math.sqrt(-2 * Math.log(1 - u)) * Math.cos(2 * Math.PI * v)
}

/**
 * Normal numbers with the given mean and standard deviation: element i depends on (key, i) alone.
 *
 * @example
 * const weight = normals(768 * 576, { seed: 0, stream: 'init/0.weight' }, { deviation: 0.02 })
 */
export function normals(
  length: number,
  key: RandomKey,
  { mean = 0, deviation = 1 }: { readonly mean?: number; readonly deviation?: number } = {},
): Float32Array {
  const stream = randomStream(key)
  return Float32Array.from({ length }, (_, i) => mean + deviation * stream.normal(i))
}

/**
 * Uniform numbers in [low, high): element i depends on (key, i) alone.
 *
 * @example
 * const bound = 1 / Math.sqrt(768)
 * const bias = uniforms(576, { seed: 0, stream: 'init/0.bias' }, { low: -bound, high: bound })
 */
export function uniforms(
  length: number,
  key: RandomKey,
  { low = 0, high = 1 }: { readonly low?: number; readonly high?: number } = {},
): Float32Array {
  const stream = randomStream(key)
  return Float32Array.from({ length }, (_, i) => low + (high - low) * stream.uniform(i))
}

/** A bijection of 0 ... length - 1. */
export type Permutation = (position: number) => number

/**
 * A random permutation that is computed, not stored: position -> value in O(log length) time and no memory, so a run resumes at any place at once.
 * The swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012): each round picks a pairing x <-> K - x and swaps each pair with an independent coin.
 *
 * @example
 * const order = permutation(665_298, { seed: 0, stream: 'order/epoch-2' })
 * order(100_000) // which record comes at position 100,000
 */
export function permutation(length: number, key: RandomKey): Permutation {
  if (!Number.isInteger(length) || length < 0 || length > two32)
    throw new RangeError(`length must be an integer in [0, 2^32], got ${length}`)
  const stream = randomStream(key)
  // 6 log2(length) rounds are the paper's order of magnitude; the constant keeps small lengths uniform too.
  const rounds = 24 + 6 * Math.ceil(Math.log2(Math.max(length, 2)))
  const offsets = Float64Array.from({ length: rounds }, (_, round) => stream.integer(2 * round, length))
  const salts = Uint32Array.from({ length: rounds }, (_, round) => stream.block(2 * round + 1)[0] ?? 0)
  return (position) => {
    if (!Number.isInteger(position) || position < 0 || position >= length)
      throw new RangeError(`position must be in [0, ${length}), got ${position}`)
    let x = position
    for (let round = 0; round < rounds; round++) {
      const offset = offsets[round] ?? 0
      const partner = offset >= x ? offset - x : offset - x + length
      if (coin(Math.max(x, partner), salts[round] ?? 0)) x = partner
    }
    return x
  }
}

/** One bit of a keyed 32-bit mix (the finaliser of MurmurHash3). */
function coin(value: number, salt: number): boolean {
  let h = (value ^ salt) >>> 0
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13) ^ salt, 0xc2b2ae35)
  return ((h ^ (h >>> 16)) & 1) === 1
}
