/** Films by their frames: an image encoder looks at each. */
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import type { FrameSampling } from '../src/media/frame-sampling.ts'
import type { Encoder, EncoderRecipe, Features, JsonObject, TokenGrid } from '../src/model/contracts.ts'
import type { NamedTensors } from '../src/tensors.ts'
import { digest } from './onnx-file.ts'

export interface FramesOptions {
  /** Which frames. Default: 8, spread evenly. */
  readonly sampling?: FrameSampling | undefined
  /** To how many rows and columns each frame's features are averaged (adaptive average pooling). Default: they stay as they are. */
  readonly pooling?: { readonly rows: number; readonly columns: number } | undefined
}

/**
 * A video encoder of an image encoder: the features of all frames, one frame after another. The number of tokens is that of a frame times the frames taken. Disposing of the
 * result disposes of the image encoder.
 *
 * @throws {ModalignError} `ENCODER_OPTIONS` for an image encoder whose number of tokens varies, or one whose grid has several segments
 *
 * @example
 * const encoder = frames(await mobilenetV2(), { sampling: { type: 'uniform', frames: 8 }, pooling: { rows: 2, columns: 2 } })
 * encoder.grid({ frames: 8 }).segments // [{ frames: 8, rows: 2, columns: 2 }]
 */
export function frames(
  encoder: Encoder<'image'>,
  { sampling = { type: 'uniform', frames: 8 }, pooling }: FramesOptions = {},
): Encoder<'video'> {
  const [segment, ...others] = encoder.grid({}).segments
  if (encoder.gridVaries === true || segment === undefined || others.length > 0 || segment.frames !== 1) {
    throw new ModalignError({
      code: 'ENCODER_OPTIONS',
      field: encoder.label,
      got: 'an image encoder of several grids or tiles',
      expected: 'one grid for every picture',
    })
  }
  const shape = { rows: segment.rows, columns: segment.columns }
  const out = pooling ?? shape
  const recipe = recipeOf(encoder, sampling, pooling)
  return {
    modality: 'video',
    label: `frames of ${encoder.label}`,
    fingerprint: digest({ kind: 'frames 1', encoder: encoder.fingerprint, sampling, pooling }),
    ...(recipe !== undefined && { recipe }),
    width: encoder.width,
    sampling,
    grid: ({ frames: count = expected(sampling) }): TokenGrid => ({ segments: [{ frames: count, ...out }] }),
    async preprocess(video) {
      const parts: Record<string, NamedTensors[string]> = {}
      for (const [index, frame] of video.frames.entries())
        for (const [name, value] of Object.entries(await encoder.preprocess(frame))) parts[`${index}.${name}`] = value
      return parts
    },
    async encode(inputs, options) {
      const films = inputs.map(framesOf)
      const [first] = films
      const each = first?.length ?? 0
      if (films.some((film) => film.length !== each))
        throw new ModalignError({
          code: 'ENCODER_INPUT',
          got: 'films of different numbers of frames',
          expected: 'one number of frames in one call',
        })
      const features = await encoder.encode(films.flat(), options)
      const pooled = pooling === undefined ? features : averaged(features, shape, pooling)
      return { count: inputs.length, tokens: each * pooled.tokens, width: pooled.width, data: pooled.data }
    },
    dispose: () => encoder.dispose(),
  }
}

/** How many frames a film of unknown length gives. */
function expected(sampling: FrameSampling): number {
  if (sampling.type === 'uniform') return sampling.frames
  return sampling.type === 'times' ? sampling.seconds.length : (sampling.maxFrames ?? 32)
}

/** Tensors named `0.pixels`, `1.pixels`, ... as one set for each frame, in order. */
function framesOf(named: NamedTensors): readonly NamedTensors[] {
  const found: Record<string, NamedTensors[string]>[] = []
  for (const [name, value] of Object.entries(named)) {
    const dot = name.indexOf('.')
    const index = Number(name.slice(0, dot))
    found[index] ??= {}
    Object.assign(found[index], { [name.slice(dot + 1)]: value })
  }
  return found
}

/** Adaptive average pooling of each frame's map, as torch.nn.functional.adaptive_avg_pool2d defines its windows. */
function averaged(
  { count, width, data }: Features,
  from: { readonly rows: number; readonly columns: number },
  to: { readonly rows: number; readonly columns: number },
): Features {
  const tokens = to.rows * to.columns
  const result = new Float32Array(count * tokens * width)
  const size = from.rows * from.columns * width
  for (let frame = 0; frame < count; frame++) {
    for (let row = 0; row < to.rows; row++) {
      const [top, bottom] = span(row, from.rows, to.rows)
      for (let column = 0; column < to.columns; column++) {
        const [left, right] = span(column, from.columns, to.columns)
        const place = (frame * tokens + row * to.columns + column) * width
        const share = 1 / ((bottom - top) * (right - left))
        for (let y = top; y < bottom; y++) {
          for (let x = left; x < right; x++) {
            const start = frame * size + (y * from.columns + x) * width
            for (let channel = 0; channel < width; channel++)
              result[place + channel] = (result[place + channel] ?? 0) + share * (data[start + channel] ?? 0)
          }
        }
      }
    }
  }
  return { count, tokens, width, data: result }
}

function span(index: number, length: number, wanted: number): readonly [number, number] {
  return [Math.floor((index * length) / wanted), Math.ceil(((index + 1) * length) / wanted)]
}

const plain: z.ZodType<JsonObject> = z.record(z.string(), z.json())

function recipeOf({ recipe }: Encoder<'image'>, sampling: FrameSampling, pooling: FramesOptions['pooling']): EncoderRecipe | undefined {
  if (recipe === undefined) return undefined
  const { family, model, options } = recipe
  const encoder = { family, options, ...(model !== undefined && { model }) }
  return { family: 'frames', options: plain.parse({ encoder, sampling, ...(pooling !== undefined && { pooling }) }) }
}
