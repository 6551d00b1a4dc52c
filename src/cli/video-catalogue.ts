/** Video encoders made from plain data: an image encoder over frames. */
import { z } from 'zod'
import { frames } from '../../encoders/index.ts'
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

export const videoSettings = {
  frames: z.strictObject({
    encoder: part,
    sampling: samplingSchema.optional(),
    pooling: z.strictObject({ rows: z.int().min(1).max(1024), columns: z.int().min(1).max(1024) }).optional(),
    neighbours: z.int().min(1).max(4096).optional(),
  }),
} as const

type Make = (options: unknown) => Promise<Encoder>

/** @param images what an encoder of frames may be, by family name */
export function videoCatalogue(
  images: Readonly<Record<string, (options: unknown) => Promise<Encoder<'image'>>>>,
): Readonly<Record<'frames', Make>> {
  return {
    async frames(options) {
      const { encoder, ...rest } = checked('frames', videoSettings.frames, options)
      const make = Object.hasOwn(images, encoder.family) ? images[encoder.family] : undefined
      if (make === undefined) {
        throw new ModalignError({
          code: 'ENCODER_OPTIONS',
          file: 'frames',
          field: '/encoder/family',
          got: encoder.family,
          expected: `one of ${Object.keys(images).join(', ')}`,
        })
      }
      const inner = await make({ ...encoder.options, ...(encoder.model !== undefined && { model: encoder.model }) })
      try {
        return frames(inner, rest)
      } catch (error) {
        await inner.dispose()
        throw error
      }
    },
  }
}
