/** Large pictures seen in tiles by an encoder of small ones: `anyres` of LLaVA-1.6 and LLaVA-OneVision, dynamic tiles of InternVL. */
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import { cropImage } from '../src/media/crop.ts'
import type { PictureSize } from '../src/media/picture-size.ts'
import { type ImagePreprocessing, imagePreprocessingSchema, preprocessedSize, transformImage } from '../src/media/preprocess.ts'
import { type Tiling, tilingSchema } from '../src/media/tiling.ts'
import { viewsOf } from '../src/media/views.ts'
import type { DecodedImage, Encoder, Features, MediaSize, TokenGrid, TokenSegment } from '../src/model/contracts.ts'
import type { NamedTensors } from '../src/tensors.ts'
import { requireFrozen } from './blocks/frozen-parts.ts'
import type { ImageEncoder } from './blocks/graph-image.ts'
import { digest } from './onnx-file.ts'

export interface TiledOptions {
  readonly tiling: Tiling
  /**
   * `anyres`: the tiles' features are put together to one map, the rows and columns that only show padding are cut off, and rows end with a separator. This is the most
   * that is kept of such a map, in tiles; larger ones are shrunk bilinearly (`anyres_max_9`: 9). Default: no limit.
   */
  readonly maxTiles?: number | undefined
}

const optionsSchema = z.strictObject({ tiling: tilingSchema, maxTiles: z.int().min(1).max(1024).optional() })

/**
 * The encoder, over tiles. How many tokens a picture has, and how they lie, hangs on its size: `grid({ width, height })`. With `anyres` there are two segments, the
 * view of the whole and the map, whose rows end with a separator for the projector's side to fill; with `dynamic` each tile is a segment, and the view of the whole
 * the last.
 *
 * @throws {ModalignError} `ENCODER_OPTIONS`; `ENCODER_PREPROCESSING` (the encoder takes no pictures of one size, or resolutions are no whole tiles)
 *
 * @example
 * const resolutions = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]].map(([height = 0, width = 0]) => ({ height, width }))
 * const encoder = tiled(await clip('models/clip-vit-large-patch14-336'), { tiling: { kind: 'anyres', resolutions } })
 */
export function tiled(inner: ImageEncoder, options: TiledOptions): Encoder<'image'> & Pick<ImageEncoder, 'preprocessing' | 'device'> {
  const { tiling, maxTiles } = parsed(options)
  requireFrozen(inner)
  const tile = preprocessedSize(inner.preprocessing)
  const { padToSquare: _, centreCrop: __, ...rest } = inner.preprocessing
  const preprocessing = imagePreprocessingSchema.safeParse({
    ...rest,
    resize: { size: tile, filter: inner.preprocessing.resize?.filter ?? 'bicubic' },
    tiling,
  })
  if (tile === undefined || !preprocessing.success || rest.arithmetic === 'torchvision-float') {
    throw new ModalignError({
      code: 'ENCODER_PREPROCESSING',
      field: `/${preprocessing.error?.issues[0]?.path.join('/') ?? ''}`,
      got: preprocessing.error?.issues[0]?.message ?? 'preprocessing that is no 8-bit picture of one size',
      expected: 'an encoder of pictures of one size, and resolutions in whole tiles of it',
    })
  }
  const spec = preprocessing.data
  const [seen] = viewsOf(tile, inner.preprocessing)
  if (seen === undefined || seen.scaleX !== 1 || seen.scaleY !== 1 || seen.left !== 0 || seen.top !== 0) {
    throw new ModalignError({
      code: 'ENCODER_PREPROCESSING',
      got: `preprocessing that resizes a picture of ${tile.height} x ${tile.width} and crops it again`,
      expected: 'preprocessing that leaves a tile as it is',
      hint: 'open the encoder with preprocessing that resizes to the height and width of a tile',
    })
  }
  const own = innerGrid(inner)
  const layoutOf = (picture: PictureSize): TiledLayout => layout(picture, spec, own, maxTiles)
  const { recipe } = inner
  return {
    modality: 'image',
    label: `${inner.label} in tiles`,
    fingerprint: digest({ kind: 'tiled 1', encoder: inner.fingerprint, tiling, ...(maxTiles !== undefined && { maxTiles }) }),
    ...(recipe !== undefined && {
      recipe: {
        family: 'tiled',
        options: {
          encoder: { family: recipe.family, ...(recipe.model !== undefined && { model: recipe.model }), options: recipe.options },
          tiling: z.json().parse(tiling),
          ...(maxTiles !== undefined && { maxTiles }),
        },
      },
    }),
    width: inner.width,
    gridVaries: true,
    preprocessing: spec,
    device: inner.device,
    grid: ({ width = tile.width, height = tile.height }: MediaSize): TokenGrid => ({ segments: layoutOf({ width, height }).segments }),
    async preprocess(image) {
      const named: Record<string, NamedTensors[string]> = {
        image_size: { dtype: 'int32', dims: [2], data: Int32Array.of(image.height, image.width) },
      }
      for (const [index, view] of cut(transformImage(image, spec), tile).entries()) {
        // A tile has the size that the encoder's own preprocessing gives: nothing is resized or cropped again.
        for (const [name, value] of Object.entries(await inner.preprocess(view))) named[`${index}.${name}`] = value
      }
      return named
    },
    async encode(inputs, encodeOptions) {
      const layouts = inputs.map((named) => layoutOf(sizeIn(named)))
      const [first] = layouts
      if (first === undefined) return { count: 0, tokens: 0, width: inner.width, data: new Float32Array(0) }
      const tokens = first.tokens
      const odd = layouts.find((one) => one.tokens !== tokens)
      if (odd !== undefined) {
        throw new ModalignError({
          code: 'ENCODER_INPUT',
          got: `pictures of ${tokens} and of ${odd.tokens} tokens`,
          expected: 'pictures of one grid in one call',
          hint: 'group pictures by encoder.grid({ width, height })',
        })
      }
      const views = inputs.flatMap((named, index) => Array.from({ length: layouts[index]?.views ?? 0 }, (__, view) => viewIn(named, view)))
      const all = await inner.encode(views, encodeOptions)
      const data = new Float32Array(inputs.length * tokens * inner.width)
      let from = 0
      for (const [index, one] of layouts.entries()) {
        const size = all.tokens * all.width
        data.set(
          one.arrange({ ...all, count: one.views, data: all.data.subarray(from * size, (from + one.views) * size) }),
          index * tokens * inner.width,
        )
        from += one.views
      }
      return { count: inputs.length, tokens, width: inner.width, data }
    },
    dispose: () => inner.dispose(),
  }
}

function parsed(options: TiledOptions): z.infer<typeof optionsSchema> {
  const result = optionsSchema.safeParse(options)
  if (result.success) return result.data
  const [issue] = result.error.issues
  throw new ModalignError({
    code: 'ENCODER_OPTIONS',
    field: `/${issue?.path.join('/') ?? ''}`,
    got: issue?.message,
    expected: 'options of tiled',
  })
}

function innerGrid(inner: Encoder<'image'>): { readonly rows: number; readonly columns: number } {
  const { segments } = inner.grid({})
  const [only] = segments
  if (only !== undefined && segments.length === 1) return only
  throw new ModalignError({
    code: 'ENCODER_OPTIONS',
    got: `${inner.label}, whose pictures are several segments`,
    expected: 'an encoder of whole pictures',
  })
}

interface TiledLayout {
  readonly segments: readonly TokenSegment[]
  /** Pictures that the inner encoder sees. */
  readonly views: number
  /** Features, separators not counted. */
  readonly tokens: number
  /** Features of the views [views, tokens, width] in the order of the segments. */
  arrange(features: Features): Float32Array
}

function layout(
  picture: PictureSize,
  spec: ImagePreprocessing,
  { rows, columns }: { readonly rows: number; readonly columns: number },
  maxTiles: number | undefined,
): TiledLayout {
  const views = viewsOf(picture, spec)
  const each = rows * columns
  if (spec.tiling?.kind !== 'anyres') {
    const segments = views.map(() => ({ frames: 1, rows, columns }))
    return { segments, views: views.length, tokens: views.length * each, arrange: ({ data }) => data }
  }
  const tiles = views.flatMap(({ tile }) => tile ?? [])
  // A single tile is a view like the whole, and still a map of its own.
  const tileRows = Math.max(1, ...tiles.map(({ row }) => row + 1))
  const tileColumns = Math.max(1, ...tiles.map(({ column }) => column + 1))
  const kept = withoutPadding({ rows: tileRows * rows, columns: tileColumns * columns }, picture)
  const shrunk = shrunkSize(kept, maxTiles, rows)
  return {
    segments: [
      { frames: 1, rows, columns },
      { frames: 1, rows: shrunk.rows, columns: shrunk.columns, separator: 'row' },
    ],
    views: views.length,
    tokens: each + shrunk.rows * shrunk.columns,
    arrange({ data, width }) {
      const map = new Float32Array(kept.rows * kept.columns * width)
      for (let row = 0; row < kept.rows; row++) {
        for (let column = 0; column < kept.columns; column++) {
          const [y, x] = [row + kept.top, column + kept.left]
          const view = 1 + Math.floor(y / rows) * tileColumns + Math.floor(x / columns)
          const from = (view * each + (y % rows) * columns + (x % columns)) * width
          map.set(data.subarray(from, from + width), (row * kept.columns + column) * width)
        }
      }
      const result = new Float32Array((each + shrunk.rows * shrunk.columns) * width)
      result.set(data.subarray(0, each * width))
      result.set(shrunk.rows === kept.rows && shrunk.columns === kept.columns ? map : shrink(map, kept, shrunk, width), each * width)
      return result
    },
  }
}

interface Rectangle {
  readonly rows: number
  readonly columns: number
}

/** LLaVA's `unpad_image`: the rows or columns that lie wholly in the padding, and sometimes one more, are cut off on both sides. */
function withoutPadding({ rows, columns }: Rectangle, picture: PictureSize): Rectangle & { readonly top: number; readonly left: number } {
  const rounded = (value: number): number => Math.trunc(Math.round(value * 1e7) / 1e7)
  if (picture.width / picture.height > columns / rows) {
    const top = Math.floor((rows - rounded(picture.height * (columns / picture.width))) / 2)
    return { rows: rows - 2 * top, columns, top, left: 0 }
  }
  const left = Math.floor((columns - rounded(picture.width * (rows / picture.height))) / 2)
  return { rows, columns: columns - 2 * left, top: 0, left }
}

/** LLaVA-OneVision's limit: a map of well more than so many tiles loses rows and columns alike. */
function shrunkSize({ rows, columns }: Rectangle, maxTiles: number | undefined, tileRows: number): Rectangle {
  if (maxTiles === undefined) return { rows, columns }
  const ratio = Math.sqrt((rows * columns) / (maxTiles * tileRows ** 2))
  return ratio > 1.1 ? { rows: Math.trunc(Math.floor(rows / ratio)), columns: Math.trunc(Math.floor(columns / ratio)) } : { rows, columns }
}

/** PyTorch's bilinear interpolation without antialiasing, align_corners=False. */
function shrink(map: Float32Array, from: Rectangle, to: Rectangle, width: number): Float32Array {
  const result = new Float32Array(to.rows * to.columns * width)
  const places = (count: number, newCount: number) =>
    Array.from({ length: newCount }, (_, index) => {
      const at = Math.max(0, ((index + 0.5) * count) / newCount - 0.5)
      const low = Math.min(count - 1, Math.floor(at))
      return { low, high: Math.min(count - 1, low + 1), share: at - low }
    })
  const across = places(from.columns, to.columns)
  for (const [row, y] of places(from.rows, to.rows).entries()) {
    for (const [column, x] of across.entries()) {
      for (let channel = 0; channel < width; channel++) {
        const value = (r: number, c: number): number => map[(r * from.columns + c) * width + channel] ?? 0
        const upper = value(y.low, x.low) * (1 - x.share) + value(y.low, x.high) * x.share
        const lower = value(y.high, x.low) * (1 - x.share) + value(y.high, x.high) * x.share
        result[(row * to.columns + column) * width + channel] = upper * (1 - y.share) + lower * y.share
      }
    }
  }
  return result
}

/** The tiles of a transformed picture, which lie below one another. */
function cut(strip: DecodedImage, { width, height }: PictureSize): readonly DecodedImage[] {
  return Array.from({ length: strip.height / height }, (_, index) => cropImage(strip, { left: 0, top: index * height, width, height }))
}

function sizeIn(named: NamedTensors): PictureSize {
  const size = named.image_size
  if (size?.dtype === 'int32' && size.data.length === 2) return { height: size.data[0] ?? 0, width: size.data[1] ?? 0 }
  throw new ModalignError({ code: 'ENCODER_INPUT', field: 'image_size', got: 'no int32[2]', expected: 'what preprocess gives' })
}

function viewIn(named: NamedTensors, view: number): NamedTensors {
  const prefix = `${view}.`
  return Object.fromEntries(
    Object.entries(named).flatMap(([name, value]) => (name.startsWith(prefix) ? [[name.slice(prefix.length), value]] : [])),
  )
}
