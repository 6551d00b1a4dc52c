/** How a sound encoder's tensor becomes features `[windows, steps, columns, width]`. */
import { ModalignError } from '../src/errors.ts'
import { fromFloat16Bits } from '../src/onnx/float16.ts'
import type { TensorValue } from '../src/tensors.ts'

export type SoundLayout =
  /** `[windows, tokens, channels]`. */
  | 'tokens'
  /** `[windows, channels, tokens]`. */
  | 'channels-first'
  /** `[windows, channels, frequencies, times]`. */
  | 'frequency-map'
  /** `[windows, channels]`, with axes of size 1 anywhere behind the first: one token for a window. */
  | 'pooled'

export interface SoundLayoutRequest {
  readonly layout: SoundLayout
  /** Tokens before the sound's own. */
  readonly prefixTokens: number
  /** Tokens of one time, in `tokens` and `channels-first`. */
  readonly columns: number
  /** Whether they come time by time, or frequency by frequency. */
  readonly order: 'time' | 'frequency'
  /** The tensor's name and its file, for errors. */
  readonly output: string
  readonly file: string | undefined
}

export interface SoundFeatures {
  readonly windows: number
  readonly steps: number
  readonly columns: number
  readonly width: number
  /** `data[((window * steps + step) * columns + column) * width + channel]`. */
  readonly data: Float32Array
}

/** @throws {ModalignError} `ENCODER_OUTPUT_RANK`, `ENCODER_OUTPUT_SIZE`, `ENCODER_CONTRACT` (not floating point) */
export function layOutSound(tensor: TensorValue, request: SoundLayoutRequest): SoundFeatures {
  const { layout, prefixTokens, order, output, file } = request
  const [windows = 0, ...rest] = tensor.dims
  const values = floats(tensor, output, file)
  const rank = { tokens: 2, 'channels-first': 2, 'frequency-map': 3, pooled: 1 }[layout]
  const dims = layout === 'pooled' ? [rest.reduce((product, size) => product * size, 1)] : rest
  const shown = `[${tensor.dims.join(', ')}]`
  if (dims.length !== rank || (layout === 'pooled' && rest.filter((size) => size !== 1).length > 1)) {
    throw new ModalignError({ code: 'ENCODER_OUTPUT_RANK', file, field: output, got: shown, expected: `features laid out as ${layout}` })
  }
  const [first = 0, second = 0, third = 0] = dims
  if (layout === 'pooled') return { windows, steps: 1, columns: 1, width: first, data: values }
  if (layout === 'frequency-map') {
    const size = { steps: third, columns: second, width: first }
    const data = permuted(values, windows, size, (step, column, channel) => (channel * second + column) * third + step)
    return { windows, ...size, data }
  }
  const { columns } = request
  const [tokens, width] = layout === 'tokens' ? [first, second] : [second, first]
  const steps = (tokens - prefixTokens) / columns
  if (!Number.isInteger(steps) || steps < 1) {
    throw new ModalignError({
      code: 'ENCODER_OUTPUT_SIZE',
      file,
      field: output,
      got: `${shown} with ${prefixTokens} prefix tokens`,
      expected: columns === 1 ? 'at least one token' : `a multiple of ${columns} tokens`,
    })
  }
  const size = { steps, columns, width }
  const inOrder = order === 'time' || columns === 1
  if (layout === 'tokens' && prefixTokens === 0 && inOrder) return { windows, ...size, data: values }
  const token = (step: number, column: number): number => prefixTokens + (inOrder ? step * columns + column : column * steps + step)
  const place =
    layout === 'tokens'
      ? (step: number, column: number, channel: number) => token(step, column) * width + channel
      : (step: number, column: number, channel: number) => channel * tokens + token(step, column)
  return { windows, ...size, data: permuted(values, windows, size, place, tokens * width) }
}

function permuted(
  values: Float32Array,
  windows: number,
  { steps, columns, width }: { readonly steps: number; readonly columns: number; readonly width: number },
  place: (step: number, column: number, channel: number) => number,
  stride = steps * columns * width,
): Float32Array {
  const result = new Float32Array(windows * steps * columns * width)
  let at = 0
  for (let window = 0; window < windows; window++)
    for (let step = 0; step < steps; step++)
      for (let column = 0; column < columns; column++)
        for (let channel = 0; channel < width; channel++) result[at++] = values[window * stride + place(step, column, channel)] ?? 0
  return result
}

function floats(tensor: TensorValue, output: string, file: string | undefined): Float32Array {
  if (tensor.dtype === 'float32') return tensor.data
  if (tensor.dtype === 'float16') return Float32Array.from(tensor.data, fromFloat16Bits)
  throw new ModalignError({ code: 'ENCODER_CONTRACT', file, field: output, got: tensor.dtype, expected: 'features in float32 or float16' })
}
