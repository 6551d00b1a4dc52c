/** What prompts begin with in common: it is read once. */
import type { Tokens } from './cache-rows.ts'

/** How many tokens two sequences begin with in common; tokens of media are equal if their embeddings are. */
export function commonPrefix(a: Tokens, b: Tokens, hiddenSize: number): number {
  const most = Math.min(a.ids.length, b.ids.length)
  let mediaTokens = 0
  for (let place = 0; place < most; place++) {
    const [one = 0, other = 0] = [a.ids[place], b.ids[place]]
    if (one < 0 && other < 0) {
      if (!equalRows(a.media, b.media, mediaTokens * hiddenSize, hiddenSize)) return place
      mediaTokens++
    } else if (one !== other) return place
  }
  return most
}

/** The tokens from `start` to `end`, with the media among them. */
export function slice({ ids, media }: Tokens, start: number, end: number, hiddenSize: number): Tokens {
  const part = Array.from(ids).slice(start, end)
  if (media === undefined) return { ids: part }
  const before = Array.from(ids)
    .slice(0, start)
    .filter((id) => id < 0).length
  const inside = part.filter((id) => id < 0).length
  return { ids: part, media: media.subarray(before * hiddenSize, (before + inside) * hiddenSize) }
}

function equalRows(a: Float32Array | undefined, b: Float32Array | undefined, start: number, length: number): boolean {
  if (a === undefined || b === undefined) return false
  for (let index = start; index < start + length; index++) if (a[index] !== b[index]) return false
  return true
}
