/** What a decoding process and its owner say to each other. */
import { z } from 'zod'
import type { ErrorData } from '../errors.ts'
import type { MediaSource } from '../model/contracts.ts'
import type { DecodedImageFile, DecodeImageOptions } from './image.ts'
import type { ImagePreprocessing } from './preprocess.ts'
import type { ImageFormat } from './sniff.ts'

/** The settings that cross: everything but functions and signals. */
export type ChildDecodeOptions = Omit<DecodeImageOptions, 'signal' | 'beforeDecode' | 'inThisThread'>

export type ToChild =
  /** `roomBytes`: how many the shared room takes; 0 without one. */
  | {
      readonly type: 'configure'
      readonly formats: readonly ImageFormat[]
      readonly roomBytes: number
      readonly options: ChildDecodeOptions
    }
  /** Several pictures cost one message each way: to send one and to wake for it takes as long as a twentieth of an ordinary picture. */
  | {
      readonly type: 'decode'
      readonly sources: readonly MediaSource[]
      readonly preprocessing?: ImagePreprocessing | undefined
      /** So many pixels may be decoded without asking. */
      readonly admittedPixels: number
    }
  /** The pixels asked for may be decoded now. */
  | { readonly type: 'admitted' }

/** Which of the child's descriptors is the shared room. */
export const roomDescriptor = 4

/** `original`: the size before {@link ImagePreprocessing}. */
export interface ChildResult extends DecodedImageFile {
  readonly original: { readonly width: number; readonly height: number }
}
/** Without `data` where the pixels lie in the shared room, behind those of the pictures before it. */
export type SentImage = Omit<ChildResult, 'data'> & { readonly data?: Uint8Array | undefined }
/** What became of one picture. */
export type SentResult = { readonly image: SentImage } | { readonly error: ErrorData }

export type FromChild =
  | { readonly type: 'ready' }
  /** The header is read; decoding waits for `admitted`. */
  | { readonly type: 'asks'; readonly pixels: number }
  /** Of the next pictures of those asked for, in order: of all of them, or of some where the others take their time. */
  | { readonly type: 'decoded'; readonly results: readonly SentResult[] }

const text = z.string()
const size = z.int().min(1)
const image: z.ZodType<SentImage> = z
  .object({
    width: size,
    height: size,
    data: z.instanceof(Uint8Array).optional(),
    format: z.custom<ImageFormat>((value) => typeof value === 'string'),
    notes: z.array(z.enum(['extension-mismatch', 'truncated', 'decoder-warning', 'first-frame'])),
    original: z.object({ width: size, height: size }),
  })
  .refine(({ width, height, data }) => data === undefined || data.length === 3 * width * height, 'pixels and size disagree')
const error: z.ZodType<ErrorData> = z.object({
  code: text,
  file: text.optional(),
  record: z.number().optional(),
  line: z.number().optional(),
  field: text.optional(),
  got: text.optional(),
  expected: text.optional(),
  hint: text.optional(),
})
/** A process that read hostile bytes is not believed: what it sends is checked like any input. */
export const fromChildSchema: z.ZodType<FromChild> = z.discriminatedUnion('type', [
  z.object({ type: z.literal('ready') }),
  z.object({ type: z.literal('asks'), pixels: z.number().positive() }),
  z.object({ type: z.literal('decoded'), results: z.array(z.union([z.object({ image }), z.object({ error })])).min(1) }),
])
