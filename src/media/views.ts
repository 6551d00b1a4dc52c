/** Where each pixel of a picture goes: what preprocessing does to places, for pixels and for boxes alike. */
import type { Region } from '../model/contracts.ts'
import { centreWindow, squareWindow } from './crop.ts'
import { type PictureSize, resizedSize } from './picture-size.ts'
import type { ImagePreprocessing } from './preprocess.ts'
import type { Window } from './resize.ts'
import { bestResolution, bestTileGrid, fittedSize } from './tiling.ts'

/** One resize of the padded picture, and the windows that are cut out of it, all of one size. What a window shows beyond the resized picture is black. */
export interface Layer {
  readonly resized: PictureSize
  readonly windows: readonly Window[]
  /** `tiles`: the windows are a grid, row by row. */
  readonly role: 'whole' | 'tiles'
  /** How many windows stand in one row. */
  readonly columns: number
}

export interface PicturePlan {
  /** The picture with its padding, in the picture's own coordinates. */
  readonly padded: Window
  readonly layers: readonly Layer[]
}

/**
 * How preprocessing moves a picture of this size.
 *
 * @throws {ModalignError} `IMAGE_ASPECT` for a picture too thin for pixel limits
 */
export function planPicture(picture: PictureSize, spec: ImagePreprocessing): PicturePlan {
  const padded = spec.padToSquare === undefined ? { left: 0, top: 0, ...sizeOf(picture) } : squareWindow(picture)
  const { resize, tiling, centreCrop } = spec
  if (tiling !== undefined && resize !== undefined && 'height' in resize.size) return { padded, layers: tiled(padded, resize.size, tiling) }
  const resized = resize === undefined ? sizeOf(padded) : resizedSize(padded, resize.size)
  const window = centreCrop === undefined ? { left: 0, top: 0, ...resized } : centreWindow(resized, centreCrop, spec.arithmetic ?? 'pillow')
  return { padded, layers: [{ resized, windows: [window], role: 'whole', columns: 1 }] }
}

function tiled(picture: PictureSize, tile: PictureSize, tiling: NonNullable<ImagePreprocessing['tiling']>): readonly Layer[] {
  const size = sizeOf(tile)
  const whole: Layer = { resized: size, windows: [{ left: 0, top: 0, ...size }], role: 'whole', columns: 1 }
  if (tiling.kind === 'dynamic') {
    const { columns, rows } = bestTileGrid(picture, tile, tiling)
    const resized = { width: columns * tile.width, height: rows * tile.height }
    const tiles: Layer = { resized, windows: gridOfWindows(columns, rows, tile, 0, 0), role: 'tiles', columns }
    return columns * rows > 1 ? [tiles, whole] : [tiles]
  }
  const canvas = bestResolution(picture, tiling.resolutions)
  const resized = fittedSize(picture, canvas)
  const left = -Math.floor((canvas.width - resized.width) / 2)
  const top = -Math.floor((canvas.height - resized.height) / 2)
  const [columns, rows] = [canvas.width / tile.width, canvas.height / tile.height]
  return [whole, { resized, windows: gridOfWindows(columns, rows, tile, left, top), role: 'tiles', columns }]
}

function gridOfWindows(columns: number, rows: number, { width, height }: PictureSize, left: number, top: number): readonly Window[] {
  return Array.from({ length: columns * rows }, (_, index) => ({
    left: left + (index % columns) * width,
    top: top + Math.floor(index / columns) * height,
    width,
    height,
  }))
}

function sizeOf({ width, height }: PictureSize): PictureSize {
  return { width, height }
}

/** One picture that an encoder sees. A point of the source lies in it at `x * scaleX + left`, `y * scaleY + top`; (0, 0) is a corner, not a pixel's centre. */
export interface View extends PictureSize {
  readonly scaleX: number
  readonly scaleY: number
  readonly left: number
  readonly top: number
  /** Where it stands among the tiles; absent for a view of the whole. */
  readonly tile?: { readonly row: number; readonly column: number }
}

/**
 * What an encoder sees of a picture of this size, in the order of the tensor's first axis.
 *
 * @throws {ModalignError} `IMAGE_ASPECT`
 * @example
 * viewsOf({ width: 100, height: 50 }, { resize: { size: { shortestEdge: 10 }, filter: 'bicubic' }, centreCrop: { width: 10, height: 10 } })
 * // [{ width: 10, height: 10, scaleX: 0.2, scaleY: 0.2, left: -5, top: 0 }]
 */
export function viewsOf(picture: PictureSize, spec: ImagePreprocessing): readonly View[] {
  const { padded, layers } = planPicture(picture, spec)
  return layers.flatMap(({ resized, windows, role, columns }) => {
    const scaleX = resized.width / padded.width
    const scaleY = resized.height / padded.height
    return windows.map((window, index) => ({
      width: window.width,
      height: window.height,
      scaleX,
      scaleY,
      // `0 -` rather than `-`: no minus zero.
      left: 0 - padded.left * scaleX - window.left,
      top: 0 - padded.top * scaleY - window.top,
      ...(role === 'tiles' && windows.length > 1 && { tile: { row: Math.floor(index / columns), column: index % columns } }),
    }))
  })
}

export type Box = Extract<Region, { type: 'box' }>

/** A box in the pixels of one view. */
export interface ViewBox extends Box {
  /** Index among {@link viewsOf}. */
  readonly view: number
  /** The part of the source's box that this view shows, by area: 1 if nothing was cut off. */
  readonly visible: number
}

/**
 * A box of the picture (in pixels, after its EXIF orientation) in every view that shows some of it, cut at the view's edges. A box without area keeps the views in
 * which its corner lies.
 *
 * @returns an empty list if a crop took it away
 * @throws {ModalignError} `IMAGE_ASPECT`
 * @example
 * remapBox({ type: 'box', x: 40, y: 10, width: 20, height: 20 }, { width: 100, height: 50 }, encoder.preprocessing)
 */
export function remapBox(box: Box, picture: PictureSize, spec: ImagePreprocessing): readonly ViewBox[] {
  return viewsOf(picture, spec).flatMap((view, index) => {
    const across = clipped(box.x * view.scaleX + view.left, box.width * view.scaleX, view.width)
    const down = clipped(box.y * view.scaleY + view.top, box.height * view.scaleY, view.height)
    if (across === undefined || down === undefined) return []
    const { start: x, length: width, share: shareX } = across
    const { start: y, length: height, share: shareY } = down
    return [{ type: 'box' as const, x, y, width, height, view: index, visible: shareX * shareY }]
  })
}

/** The part of a span that lies in 0..size. */
function clipped(
  from: number,
  length: number,
  size: number,
): { readonly start: number; readonly length: number; readonly share: number } | undefined {
  const start = Math.max(0, from)
  const end = Math.min(size, from + length)
  if (end < start || (end === start && length > 0) || start >= size) return undefined
  return { start, length: end - start, share: length === 0 ? 1 : (end - start) / length }
}
