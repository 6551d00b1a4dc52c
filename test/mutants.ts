/** Damaged files: what parsers of strangers' files are tested with. */

/** How many mutants a parser sees: 2,000 in the normal run, 100,000 in the long one. */
export const mutantCount = process.env.MODALIGN_LONG === '1' ? 100_000 : 2000

/** Draws an integer from 0 to n - 1. */
export type Pick = (n: number) => number

/** Numbers without end that depend on the seed alone (mulberry32). */
export function pickFrom(seed: number): Pick {
  let state = seed
  return (n) => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * n)
  }
}

const interesting = [
  0n,
  1n,
  127n,
  128n,
  255n,
  2n ** 15n,
  2n ** 16n,
  2n ** 31n - 1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 53n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 1n,
]

/** One to three small damages: bytes set, flipped, inserted, removed, repeated, taken from another file; numbers that lie; an early end. */
export function mutantOf(seeds: readonly Uint8Array[], pick: Pick, tokens: readonly string[] = []): Uint8Array {
  const seed = seeds[pick(seeds.length)] ?? new Uint8Array(0)
  const bytes = [...seed]
  for (let rounds = 1 + pick(3); rounds > 0; rounds--) damage(bytes, seeds[pick(seeds.length)] ?? seed, pick, tokens)
  return Uint8Array.from(pick(20) === 0 ? bytes.slice(0, pick(bytes.length + 1)) : bytes)
}

function damage(bytes: number[], other: Uint8Array, pick: Pick, tokens: readonly string[]): void {
  const at = pick(bytes.length + 1)
  const span = 1 + pick(12)
  switch (pick(tokens.length === 0 ? 8 : 9)) {
    case 0:
      bytes.splice(at, 1, pick(256))
      break
    case 1:
      bytes.splice(at, 1, (bytes[at] ?? 0) ^ (1 << pick(8)))
      break
    case 2:
      bytes.splice(at, 0, ...Array.from({ length: span }, () => pick(256)))
      break
    case 3:
      bytes.splice(at, span)
      break
    case 4:
      bytes.splice(at, 0, ...bytes.slice(at, at + span * 4))
      break
    case 5: {
      const from = pick(other.length + 1)
      bytes.splice(at, span, ...other.subarray(from, from + span * 2))
      break
    }
    case 6:
    case 7: {
      const width = [2, 4, 8][pick(3)] ?? 8
      const number = interesting[pick(interesting.length)] ?? 0n
      const little = Array.from({ length: width }, (_, index) => Number((number >> BigInt(8 * index)) & 255n))
      bytes.splice(at, width, ...(pick(4) === 0 ? little.reverse() : little))
      break
    }
    default:
      bytes.splice(at, span % 3, ...Buffer.from(tokens[pick(tokens.length)] ?? ''))
  }
}
