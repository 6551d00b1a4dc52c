/** Pixels that several decoding processes may have in hand together. */

export interface PixelBudget {
  /** Calls `admit` once there is room; the function returned gives the room back, or leaves the queue. */
  take(pixels: number, admit: () => void): () => void
}

/** Claims are admitted in the order in which they come; one larger than everything goes alone. */
export function pixelBudget(most: number): PixelBudget {
  interface Claim {
    readonly pixels: number
    readonly admit: () => void
  }
  const held = new Set<Claim>()
  const queue: Claim[] = []
  const admitNext = (): void => {
    for (let next = queue[0]; next !== undefined; next = queue[0]) {
      const used = [...held].reduce((sum, { pixels }) => sum + pixels, 0)
      if (held.size > 0 && used + next.pixels > most) return
      queue.shift()
      held.add(next)
      next.admit()
    }
  }
  return {
    take(pixels, admit) {
      const claim = { pixels, admit }
      queue.push(claim)
      admitNext()
      return () => {
        held.delete(claim)
        const at = queue.indexOf(claim)
        if (at >= 0) queue.splice(at, 1)
        admitNext()
      }
    },
  }
}
