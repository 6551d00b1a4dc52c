/** An image encoder with fewer tokens: means of windows of its map. Before a feature store, it saves disk and time; behind a store, a projector's own pooling says the same. */
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import type { Encoder, EncoderRecipe, Features } from '../src/model/contracts.ts'
import { gridFeatures } from '../src/model/token-grid.ts'
import { averaged } from './feature-pooling.ts'
import { digest } from './onnx-file.ts'

export interface PooledOptions {
  /** Rows and columns that are left; no more than the encoder has. */
  readonly grid: { readonly rows: number; readonly columns: number }
}

const optionsSchema = z.strictObject({ grid: z.strictObject({ rows: z.int().min(1), columns: z.int().min(1) }) })

/**
 * The encoder, each of its maps averaged to a smaller grid (adaptive average pooling, as PyTorch defines it). Features are another encoder's: the fingerprint is another, so a store never
 * mistakes one for the other. Of several tiles each is averaged alone. Disposing of the result disposes of the encoder.
 *
 * @throws {ModalignError} `ENCODER_OPTIONS` for an encoder whose number of tokens varies, or one of fewer rows or columns
 * @example
 * const encoder = pooled(await siglip('models/siglip-base-patch16-224'), { grid: { rows: 7, columns: 7 } })
 * encoder.grid({}).segments // [{ frames: 1, rows: 7, columns: 7 }]
 */
export function pooled(encoder: Encoder<'image'>, options: PooledOptions): Encoder<'image'> {
  const parsed = optionsSchema.safeParse(options)
  const refuse = (field: string, got: string | undefined, expected: string): ModalignError =>
    new ModalignError({ code: 'ENCODER_OPTIONS', field, got, expected })
  if (!parsed.success) {
    const [issue] = parsed.error.issues
    throw refuse(`/${issue?.path.join('/')}`, issue?.message, 'options of pooled')
  }
  const { grid } = parsed.data
  if (encoder.gridVaries === true)
    throw refuse('/encoder', `${encoder.label}, whose tokens hang on the picture`, 'one grid for every picture')
  const own = encoder.grid({})
  const small = own.segments.find(({ rows, columns }) => rows < grid.rows || columns < grid.columns)
  if (small !== undefined)
    throw refuse('/grid', `${grid.rows} x ${grid.columns}`, `at most ${small.rows} x ${small.columns}, as ${encoder.label} gives`)
  const segments = own.segments.map((segment) => ({ ...segment, ...grid }))
  const tokens = gridFeatures({ segments })
  const before = gridFeatures(own)

  const average = (features: Features): Features => {
    const { count, width } = features
    const data = new Float32Array(count * tokens * width)
    for (let picture = 0; picture < count; picture++) {
      let [from, to] = [picture * before * width, picture * tokens * width]
      for (const { frames, rows, columns } of own.segments) {
        const size = frames * rows * columns * width
        const maps = { count: frames, tokens: rows * columns, width, data: features.data.subarray(from, from + size) }
        const means = averaged(maps, { rows, columns }, grid)
        data.set(means.data, to)
        from += size
        to += means.data.length
      }
    }
    return { count, tokens, width, data }
  }
  const recipe = recipeOf(encoder, parsed.data)
  const { preparation } = encoder
  const encodePictures = preparation?.encodePictures
  return {
    modality: 'image',
    label: `${encoder.label} at ${grid.rows} x ${grid.columns}`,
    fingerprint: digest({ kind: 'pooled 1', encoder: encoder.fingerprint, grid }),
    ...(recipe !== undefined && { recipe }),
    width: encoder.width,
    ...(encoder.device !== undefined && { device: encoder.device }),
    grid: () => ({ segments }),
    preprocess: (image) => encoder.preprocess(image),
    ...(preparation !== undefined && {
      preparation: {
        ...preparation,
        ...(encodePictures !== undefined && { encodePictures: async (pictures, rest) => average(await encodePictures(pictures, rest)) }),
      },
    }),
    encode: async (inputs, rest) => average(await encoder.encode(inputs, rest)),
    dispose: () => encoder.dispose(),
  }
}

function recipeOf({ recipe }: Encoder<'image'>, options: PooledOptions): EncoderRecipe | undefined {
  if (recipe === undefined) return undefined
  const { family, model, options: own } = recipe
  return {
    family: 'pooled',
    options: { encoder: { family, options: own, ...(model !== undefined && { model }) }, grid: { ...options.grid } },
  }
}
