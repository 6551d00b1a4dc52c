/** Large pictures as several tiles of an encoder's size, and one view of the whole: which canvas fits a picture best. */
import { z } from 'zod'
import { edge, type PictureSize } from './picture-size.ts'

const resolution = z.strictObject({ height: edge, width: edge }).readonly()

/** How a picture is cut into tiles; the size of a tile is what `resize` says. */
export const tilingSchema = z.discriminatedUnion('kind', [
  /**
   * LLaVA-1.6 and LLaVA-OneVision: of the resolutions the one that keeps most pixels, then wastes least; the picture is fitted into it with its proportions,
   * black around it. First a view of the whole, squeezed into one tile, then the tiles row by row.
   */
  z.strictObject({ kind: z.literal('anyres'), resolutions: z.array(resolution).min(1).max(1024).readonly() }).readonly(),
  /**
   * InternVL: of all grids of `minTiles` to `maxTiles` tiles the one nearest in proportion, into which the picture is squeezed. The tiles row by row, then a
   * view of the whole if there is more than one.
   */
  z.strictObject({ kind: z.literal('dynamic'), minTiles: z.int().min(1).max(256), maxTiles: z.int().min(1).max(256) }).readonly(),
])
export type Tiling = z.infer<typeof tilingSchema>

/**
 * The resolution in which most of the picture's own pixels survive, and among equals the one that wastes least (LLaVA's `select_best_resolution`).
 *
 * @param resolutions at least one
 * @example
 * bestResolution({ width: 800, height: 300 }, [{ width: 672, height: 336 }, { width: 336, height: 672 }]) // { width: 672, height: 336 }
 */
export function bestResolution(picture: PictureSize, resolutions: readonly PictureSize[]): PictureSize {
  let best: PictureSize = { width: 1, height: 1 }
  let [mostKept, leastWasted] = [0, Number.POSITIVE_INFINITY]
  for (const { width, height } of resolutions) {
    const scale = Math.min(width / picture.width, height / picture.height)
    const fitted = Math.trunc(picture.width * scale) * Math.trunc(picture.height * scale)
    const kept = Math.min(fitted, picture.width * picture.height)
    const wasted = width * height - kept
    if (kept < mostKept || (kept === mostKept && wasted >= leastWasted)) continue
    best = { width, height }
    mostKept = kept
    leastWasted = wasted
  }
  return best
}

/**
 * The picture's size within a resolution, proportions kept, rounded up (`get_patch_output_size`).
 *
 * @example
 * fittedSize({ width: 800, height: 300 }, { width: 672, height: 336 }) // { width: 672, height: 252 }
 */
export function fittedSize(picture: PictureSize, within: PictureSize): PictureSize {
  const across = within.width / picture.width
  const down = within.height / picture.height
  return across < down
    ? { width: within.width, height: Math.min(Math.ceil(picture.height * across), within.height) }
    : { width: Math.min(Math.ceil(picture.width * down), within.width), height: within.height }
}

/**
 * The grid of tiles nearest in proportion; among equals the later in order of size, as long as the picture fills half of it (`get_optimal_tiled_canvas`).
 *
 * @example
 * bestTileGrid({ width: 800, height: 400 }, { width: 448, height: 448 }, { minTiles: 1, maxTiles: 12 }) // { columns: 2, rows: 1 }
 */
export function bestTileGrid(
  picture: PictureSize,
  tile: PictureSize,
  { minTiles, maxTiles }: { readonly minTiles: number; readonly maxTiles: number },
): { readonly columns: number; readonly rows: number } {
  const grids: { readonly columns: number; readonly rows: number }[] = []
  for (let columns = 1; columns <= maxTiles; columns++) {
    for (let rows = 1; rows <= maxTiles; rows++) if (columns * rows >= minTiles && columns * rows <= maxTiles) grids.push({ columns, rows })
  }
  grids.sort((a, b) => a.columns * a.rows - b.columns * b.rows)
  const proportion = picture.width / picture.height
  const area = picture.width * picture.height
  let best = { columns: 1, rows: 1 }
  let smallest = Number.POSITIVE_INFINITY
  for (const grid of grids) {
    const difference = Math.abs(proportion - grid.columns / grid.rows)
    const fills = area > 0.5 * tile.width * tile.height * grid.columns * grid.rows
    if (difference > smallest || (difference === smallest && !fills)) continue
    best = grid
    smallest = difference
  }
  return best
}
