/** Texts in segments that are tokenized as one: which segment each token lies in. */
import type { Extent } from './alignment.ts'

/** A piece of a text that is tokenized as one. */
export interface TextSegment {
  readonly text: string
  /** Added tokens that are plain text here, by content. A token that reaches into such a segment from another one is plain text too. */
  readonly plain?: ReadonlySet<string>
}

/** Ids with the first and the last segment that each token's characters lie in. */
export interface SegmentedIds {
  readonly ids: number[]
  readonly first: number[]
  readonly last: number[]
}

export interface Edge extends Extent {
  readonly segment: number
}

/** Where each segment that has text lies. */
export function segmentEdges(segments: readonly TextSegment[]): readonly Edge[] {
  let at = 0
  return segments.flatMap(({ text }, segment) => {
    const start = at
    at += text.length
    return text === '' ? [] : [{ start, end: at, segment }]
  })
}

/** The edges inside a section, counted from its start. */
export function within(edges: readonly Edge[], { start, end }: Extent): readonly Edge[] {
  return edges.flatMap((edge) =>
    edge.start < end && edge.end > start
      ? [{ start: Math.max(edge.start, start) - start, end: Math.min(edge.end, end) - start, segment: edge.segment }]
      : [],
  )
}

/** Normalizers work from left to right: what is in front of an edge becomes a prefix of the whole, except for characters that combine across it. */
export function normalizedEdges(
  normalized: string,
  text: string,
  edges: readonly Edge[],
  normalize: (part: string) => string,
): readonly Edge[] {
  const starts = edges.map(({ start }) => (start === 0 ? 0 : commonPrefix(normalized, normalize(text.slice(0, start)))))
  return edges.map(({ segment }, i) => ({ segment, start: starts[i] ?? 0, end: starts[i + 1] ?? normalized.length }))
}

function commonPrefix(a: string, b: string): number {
  let length = 0
  while (length < a.length && a[length] === b[length]) length++
  return length
}

export function pushToken(out: SegmentedIds, id: number, extent: Extent | undefined, edges: readonly Edge[]): void {
  out.ids.push(id)
  const [only] = edges
  const first = extent === undefined || edges.length === 1 ? only : edges.findLast((edge) => edge.start <= extent.start)
  const last =
    extent === undefined || extent.end <= extent.start || edges.length === 1 ? first : edges.findLast((edge) => edge.start < extent.end)
  out.first.push(first?.segment ?? 0)
  out.last.push(last?.segment ?? 0)
}
