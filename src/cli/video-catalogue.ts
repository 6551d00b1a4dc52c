/** What is made of any image encoder, from plain data: one over the frames of films, and one of fewer tokens. */
import { z } from 'zod'
import { frames, pooled } from '../../encoders/index.ts'
import { ModalignError } from '../errors.ts'
import type { Encoder } from '../model/contracts.ts'
import { checked } from './encoder-options.ts'
import { part } from './image-catalogue.ts'

const count = z.int().min(1).max(4096)
const maxFrames = count.optional()
const samplingSchema = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('uniform'),
    frames: count,
    rule: z.enum(['linspace', 'linspace-rounded', 'segment-starts', 'segment-centres']).optional(),
  }),
  z.strictObject({ type: z.literal('fps'), fps: z.number().positive().max(1_000), maxFrames }),
  z.strictObject({ type: z.literal('times'), seconds: z.array(z.number().min(0)).min(1).max(4096) }),
  z.strictObject({ type: z.literal('keyframes'), maxFrames }),
  z.strictObject({ type: z.literal('scenes'), threshold: z.number().positive().max(1).optional(), maxFrames }),
])

const grid = z.strictObject({ rows: z.int().min(1).max(1024), columns: z.int().min(1).max(1024) })

export const videoSettings = {
  pooled: z.strictObject({ encoder: part, grid }),
  frames: z.strictObject({
    encoder: part,
    sampling: samplingSchema.optional(),
    pooling: grid.optional(),
    neighbours: z.int().min(1).max(4096).optional(),
    timestamps: z.enum(['each', 'list']).optional(),
  }),
} as const

type Make = (options: unknown) => Promise<Encoder>

/** @param images what an encoder of frames may be, by family name */
export function videoCatalogue(
  images: Readonly<Record<string, (options: unknown) => Promise<Encoder<'image'>>>>,
): Readonly<Record<'frames' | 'pooled', Make>> {
  return {
    async frames(options) {
      const { encoder, ...rest } = checked('frames', videoSettings.frames, options)
      return over('frames', encoder, (inner) => frames(inner, rest))
    },
    async pooled(options) {
      const { encoder, grid: smaller } = checked('pooled', videoSettings.pooled, options)
      return over('pooled', encoder, (inner) => pooled(inner, { grid: smaller }))
    },
  }

  async function over(file: string, encoder: z.output<typeof part>, wrap: (inner: Encoder<'image'>) => Encoder): Promise<Encoder> {
    const make = Object.hasOwn(images, encoder.family) ? images[encoder.family] : undefined
    if (make === undefined) {
      throw new ModalignError({
        code: 'ENCODER_OPTIONS',
        file,
        field: '/encoder/family',
        got: encoder.family,
        expected: `one of ${Object.keys(images).join(', ')}`,
      })
    }
    const inner = await make({ ...encoder.options, ...(encoder.model !== undefined && { model: encoder.model }) })
    try {
      return wrap(inner)
    } catch (error) {
      await inner.dispose()
      throw error
    }
  }
}
