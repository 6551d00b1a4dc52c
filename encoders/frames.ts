/** Films by their frames: an image encoder looks at each. */
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import { defaultMaxFrames, type FrameSampling } from '../src/media/frame-sampling.ts'
import type { Encoder, EncoderRecipe, Features, JsonObject, TokenGrid } from '../src/model/contracts.ts'
import type { NamedTensors } from '../src/tensors.ts'
import { requireFrozen } from './blocks/frozen-parts.ts'
import { averaged } from './feature-pooling.ts'
import { digest } from './onnx-file.ts'

export interface FramesOptions {
  /** Which frames. Default: 8, spread evenly. */
  readonly sampling?: FrameSampling | undefined
  /** To how many rows and columns each frame's features are averaged (adaptive average pooling). Default: they stay as they are. */
  readonly pooling?: { readonly rows: number; readonly columns: number } | undefined
  /** The features of so many frames, one after another, are averaged; the last of what is left. Default 1. */
  readonly neighbours?: number | undefined
  /**
   * What the language model reads about time, as text among the tokens. `each`: `<1.5 seconds>` before every frame, or mean of neighbours, as Qwen3-VL has it. `list`: behind them all, as LLaVA-Video
   * instructs, how long the film lasts, how many frames were taken, and when. Default: nothing.
   */
  readonly timestamps?: 'each' | 'list' | undefined
}

/**
 * A video encoder of an image encoder: the features of all frames, one frame after another. The number of tokens is that of a frame times the frames taken,
 * or means of neighbours of them; each lies at the second that the sampling says, where it says one. Disposing of the
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
  { sampling = { type: 'uniform', frames: 8 }, pooling, neighbours = 1, timestamps }: FramesOptions = {},
): Encoder<'video'> {
  if (!(Number.isInteger(neighbours) && neighbours >= 1))
    throw new ModalignError({
      code: 'ENCODER_OPTIONS',
      field: '/neighbours',
      got: String(neighbours),
      expected: 'a whole number of at least 1',
    })
  requireFrozen(encoder)
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
  const more = { ...(neighbours > 1 && { neighbours }), ...(timestamps !== undefined && { timestamps }) }
  const recipe = recipeOf(encoder, { sampling, pooling, ...more })
  return {
    modality: 'video',
    label: `frames of ${encoder.label}`,
    fingerprint: digest({ kind: 'frames 1', encoder: encoder.fingerprint, sampling, pooling, ...more }),
    ...(recipe !== undefined && { recipe }),
    width: encoder.width,
    sampling,
    gridVaries: timestamps !== undefined || (sampling.type !== 'uniform' && sampling.type !== 'times'),
    grid({ frames: count = expected(sampling), timesSeconds, seconds }): TokenGrid {
      const steps = Math.ceil(count / neighbours)
      const times = timesSeconds ?? secondsOf(sampling, count)
      const time = times && Array.from({ length: steps }, (_, step) => times[step * neighbours] ?? 0)
      const labels = times && timestamps && labelsOf(timestamps, times, { steps, neighbours, seconds })
      return { segments: [{ frames: steps, ...out, ...(time !== undefined && { time }), ...(labels !== undefined && { labels }) }] }
    },
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
      const data = neighbours === 1 ? pooled.data : joined(pooled, { frames: each, neighbours })
      return { count: inputs.length, tokens: Math.ceil(each / neighbours) * pooled.tokens, width: pooled.width, data }
    },
    dispose: () => encoder.dispose(),
  }
}

/** How many frames a film of unknown length gives. */
function expected(sampling: FrameSampling): number {
  if (sampling.type === 'uniform') return sampling.frames
  return sampling.type === 'times' ? sampling.seconds.length : (sampling.maxFrames ?? defaultMaxFrames)
}

/** At which second each frame lies: given ones, and even steps that the film's length did not thin out. */
function secondsOf(sampling: FrameSampling, count: number): readonly number[] | undefined {
  if (sampling.type === 'times') return sampling.seconds
  if (sampling.type !== 'fps' || count >= (sampling.maxFrames ?? defaultMaxFrames)) return undefined
  return Array.from({ length: count }, (_, at) => at / sampling.fps)
}

/** Texts before every step, and with `list` behind the last. A step of several frames lies at the middle of their times. */
function labelsOf(
  timestamps: 'each' | 'list',
  times: readonly number[],
  { steps, neighbours, seconds }: { readonly steps: number; readonly neighbours: number; readonly seconds: number | undefined },
): readonly string[] {
  if (timestamps === 'each') {
    return Array.from({ length: steps }, (_, step) => {
      const own = times.slice(step * neighbours, (step + 1) * neighbours)
      return `<${(((own[0] ?? 0) + (own.at(-1) ?? 0)) / 2).toFixed(1)} seconds>`
    })
  }
  const lasts = (seconds ?? times.at(-1) ?? 0).toFixed(2)
  const at = times.map((time) => `${time.toFixed(2)}s`).join(',')
  // Character by character what LLaVA-Video reads (LLaVA-NeXT's docs/LLaVA_Video_1003.md): no space after the times.
  const text = `\nThe video lasts for ${lasts} seconds, and ${times.length} frames are uniformly sampled from it. These frames are located at ${at}.Please answer the following questions related to this video.`
  return [...new Array<string>(steps).fill(''), text]
}

/** Means of neighbouring frames of films that have `frames` each. */
function joined(
  { count, tokens, width, data }: Features,
  { frames: each, neighbours }: { readonly frames: number; readonly neighbours: number },
): Float32Array {
  const size = tokens * width
  const steps = Math.ceil(each / neighbours)
  const result = new Float32Array((count / each) * steps * size)
  for (let frame = 0; frame < count; frame++) {
    const step = Math.floor((frame % each) / neighbours)
    const share = 1 / Math.min(neighbours, each - step * neighbours)
    const to = (Math.floor(frame / each) * steps + step) * size
    for (let at = 0; at < size; at++) result[to + at] = (result[to + at] ?? 0) + share * (data[frame * size + at] ?? 0)
  }
  return result
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

const plain: z.ZodType<JsonObject> = z.record(z.string(), z.json())

function recipeOf({ recipe }: Encoder<'image'>, { sampling, pooling, neighbours, timestamps }: FramesOptions): EncoderRecipe | undefined {
  if (recipe === undefined) return undefined
  const { family, model, options } = recipe
  const encoder = { family, options, ...(model !== undefined && { model }) }
  const rest = {
    sampling,
    ...(pooling !== undefined && { pooling }),
    ...(neighbours !== undefined && { neighbours }),
    ...(timestamps !== undefined && { timestamps }),
  }
  return { family: 'frames', options: plain.parse({ encoder, ...rest }) }
}
