/** How an encoder's tensor becomes features `[images, tokens, width]`, and how the tokens lie on the picture. */
import { ModalignError } from '../src/errors.ts'
import type { Features, TokenGrid } from '../src/model/contracts.ts'
import { makeNode, makeValueInfo, valueDescription } from '../src/onnx/build.ts'
import { withFields } from '../src/onnx/codec.ts'
import { fromFloat16Bits } from '../src/onnx/float16.ts'
import type { ModelProto } from '../src/onnx/onnx_pb.ts'
import type { TensorValue } from '../src/tensors.ts'

export type FeatureLayout =
  /** `[images, channels, rows, columns]`: each place of the map is a token. */
  | 'nchw-map'
  /** `[images, tokens, channels]`. */
  | 'tokens'

/** Features, and how the tensor gave them. */
export type LaidOut = Features & {
  readonly layout: FeatureLayout
  /** Rows and columns, where the tensor says them. */
  readonly map?: { readonly rows: number; readonly columns: number }
}

export interface LayoutRequest {
  /** The tensor's name and its file, for errors. */
  readonly output: string
  readonly file: string | undefined
  readonly layout: FeatureLayout | undefined
  readonly prefixTokens: number
  /** A map comes as {@link withChannelsLast} gives it. */
  readonly channelsLast: boolean
}

/** What {@link withChannelsLast} calls its output. */
export const channelsLastName = 'modalign/channels_last'

/**
 * The model with its output, if the file says that it is a map `[images, channels, rows, columns]`, as `[images, rows, columns, channels]`, which is how features lie: on the
 * CPU, where convolutions keep channels in blocks, that costs nothing.
 */
export function withChannelsLast(model: ModelProto): ModelProto | undefined {
  const { graph } = model
  const [output, ...others] = graph?.output ?? []
  const standard = model.opsetImport.some(({ domain }) => domain === '' || domain === 'ai.onnx')
  if (graph === undefined || output === undefined || others.length > 0 || !standard) return undefined
  const { name, dtype, dims } = valueDescription(output)
  if (dtype === undefined || dims?.length !== 4) return undefined
  const turn = makeNode({
    opType: 'Transpose',
    inputs: [name],
    outputs: [channelsLastName],
    attributes: { perm: { ints: [0, 2, 3, 1] } },
  })
  const [images = '', channels = '', rows = '', columns = ''] = dims
  const turned = makeValueInfo(channelsLastName, dtype, [images, rows, columns, channels])
  return withFields(model, { graph: withFields(graph, { node: [...graph.node, turn], output: [turned] }) })
}

/**
 * The tensor as features, prefix tokens dropped.
 *
 * @throws {ModalignError} `ENCODER_OUTPUT_RANK`, `ENCODER_OUTPUT_SIZE`, `ENCODER_OPTIONS`, `ENCODER_CONTRACT` (not floating point).
 */
export function layOut(tensor: TensorValue, { output, file, layout: asked, prefixTokens, channelsLast }: LayoutRequest): LaidOut {
  const layout = asked ?? (tensor.dims.length === 4 ? 'nchw-map' : 'tokens')
  const rank = layout === 'nchw-map' ? 4 : 3
  const dims = `[${tensor.dims.join(', ')}]`
  if (tensor.dims.length !== rank) {
    throw new ModalignError({
      code: 'ENCODER_OUTPUT_RANK',
      file,
      field: output,
      got: dims,
      expected:
        asked === undefined ? '[images, channels, rows, columns] or [images, tokens, channels]' : `rank ${rank} for the layout ${asked}`,
      hint: 'take a tensor before the pooling',
    })
  }
  const values = floats(tensor, output, file)
  const [count = 0, second = 0, third = 0, fourth = 0] = tensor.dims
  if (layout === 'nchw-map') {
    if (prefixTokens > 0)
      throw new ModalignError({
        code: 'ENCODER_OPTIONS',
        field: '/prefixTokens',
        got: `${prefixTokens}`,
        expected: '0: a map has no prefix',
      })
    if (channelsLast) return { count, tokens: second * third, width: fourth, data: values, layout, map: { rows: second, columns: third } }
    return {
      count,
      tokens: third * fourth,
      width: second,
      data: turned(values, count, second, third * fourth),
      layout,
      map: { rows: third, columns: fourth },
    }
  }
  const tokens = second - prefixTokens
  if (tokens < 1 || third < 1) {
    throw new ModalignError({
      code: 'ENCODER_OUTPUT_SIZE',
      file,
      field: output,
      got: `${dims} with ${prefixTokens} prefix tokens`,
      expected: 'at least one token',
    })
  }
  if (prefixTokens === 0) return { count, tokens, width: third, data: values, layout }
  const data = new Float32Array(count * tokens * third)
  for (let image = 0; image < count; image++) {
    data.set(values.subarray((image * second + prefixTokens) * third, (image + 1) * second * third), image * tokens * third)
  }
  return { count, tokens, width: third, data, layout }
}

function floats(tensor: TensorValue, output: string, file: string | undefined): Float32Array {
  if (tensor.dtype === 'float32') return tensor.data
  if (tensor.dtype === 'float16') return Float32Array.from(tensor.data, fromFloat16Bits)
  throw new ModalignError({ code: 'ENCODER_CONTRACT', file, field: output, got: tensor.dtype, expected: 'features in float32 or float16' })
}

/** `[count, channels, places]` to `[count, places, channels]`: written in order, because places that lie a power of two apart push each other out of the cache. */
function turned(values: Float32Array, count: number, channels: number, places: number): Float32Array {
  const result = new Float32Array(values.length)
  const each = channels * places
  let to = 0
  for (let image = 0; image < count * each; image += each) {
    for (let place = image; place < image + places; place++) {
      for (let from = place; from < image + each; from += places) result[to++] = values[from] ?? 0
    }
  }
  return result
}

/** Rows and columns of the tokens: as asked, as the map says, or by the proportion of the input. */
export function gridOf(
  { tokens, map }: LaidOut,
  size: { readonly height: number; readonly width: number },
  asked: { readonly rows: number; readonly columns: number } | undefined,
  file: string | undefined,
): TokenGrid {
  const { rows, columns } = asked ?? map ?? proportionalGrid(tokens, size)
  if (rows * columns !== tokens) {
    throw new ModalignError({
      code: 'ENCODER_OUTPUT_SIZE',
      file,
      field: '/grid',
      got: `${rows} x ${columns}`,
      expected: `rows and columns for ${tokens} tokens`,
    })
  }
  return { segments: [{ frames: 1, rows, columns }] }
}

/** Square patches give as many rows to columns as height to width; anything else (a resampler's queries) lies in one row. */
function proportionalGrid(
  tokens: number,
  { height, width }: { readonly height: number; readonly width: number },
): { readonly rows: number; readonly columns: number } {
  const rows = Math.round(Math.sqrt((tokens * height) / width))
  const fits = rows > 0 && tokens % rows === 0 && rows * width === (tokens / rows) * height
  return fits ? { rows, columns: tokens / rows } : { rows: 1, columns: tokens }
}
