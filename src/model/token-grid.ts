import type { Projector, TokenGrid } from './contracts.ts'

/** How many tokens a grid holds, separators included: the one place where tokens of a medium are counted. */
export function gridTokens({ segments }: TokenGrid): number {
  let tokens = 0
  for (const [index, { frames, rows, columns, separator }] of segments.entries()) {
    tokens += frames * rows * (columns + (separator === 'row' ? 1 : 0))
    if (separator === 'segment' && index < segments.length - 1) tokens += 1
  }
  return tokens
}

/** How many features lie in a grid: separators are none. */
export function gridFeatures({ segments }: TokenGrid): number {
  return segments.reduce((sum, { frames, rows, columns }) => sum + frames * rows * columns, 0)
}

/** Where among the tokens of a grid the separators stand, in order. */
export function separatorPlaces({ segments }: TokenGrid): readonly number[] {
  const places: number[] = []
  let place = 0
  for (const [index, { frames, rows, columns, separator }] of segments.entries()) {
    for (let row = 0; row < frames * rows; row++) {
      place += columns
      if (separator === 'row') places.push(place++)
    }
    if (separator === 'segment' && index < segments.length - 1) places.push(place++)
  }
  return places
}

/** The texts among the tokens of a grid, in order: what stands there, and behind how many of the grid's tokens. */
export function labelPlaces({ segments }: TokenGrid): readonly { readonly behind: number; readonly text: string }[] {
  let behind = 0
  return segments.flatMap((segment) => {
    const { frames, labels = [] } = segment
    const each = gridTokens({ segments: [segment] }) / frames
    const start = behind
    behind += frames * each
    return labels.flatMap((text, frame) => (text === '' ? [] : [{ behind: start + frame * each, text }]))
  })
}

/** How many of the language model's tokens a projector makes of features that lie so. */
export function projectedTokens(projector: Projector, grid: TokenGrid): number {
  return gridTokens(projectedGrid(projector, grid))
}

/** How those tokens lie. */
export function projectedGrid({ definition, options }: Projector, grid: TokenGrid): TokenGrid {
  return definition.tokens(grid, options)
}

/** So many features, filled up to the multiple that a projector takes. */
export function paddedTokens({ definition, options }: Projector, tokens: number): number {
  const multiple = definition.multipleOf?.(options) ?? 1
  return Math.ceil(tokens / multiple) * multiple
}

/** So many features in a row. */
export function rowGrid(tokens: number): TokenGrid {
  return { segments: [{ frames: 1, rows: 1, columns: tokens }] }
}

/** One picture of rows x columns features. */
export function imageGrid(rows: number, columns: number): TokenGrid {
  return { segments: [{ frames: 1, rows, columns }] }
}

/** Says of two grids whether their media can go through an encoder together. */
export function gridKey({ segments }: TokenGrid): string {
  return segments.map(({ frames, rows, columns, separator = '' }) => `${frames}x${rows}x${columns}${separator}`).join()
}

/** Whether two media can stand in one batch: the same number of tokens, lying alike. */
export function sameGrid(a: TokenGrid, b: TokenGrid): boolean {
  return (
    a.segments.length === b.segments.length &&
    a.segments.every((segment, index) => {
      const other = b.segments[index]
      return (
        other !== undefined &&
        segment.frames === other.frames &&
        segment.rows === other.rows &&
        segment.columns === other.columns &&
        segment.separator === other.separator
      )
    })
  )
}
