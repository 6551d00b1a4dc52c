/** An image encoder from any ONNX file: given its preprocessing and the name of the tensor to take, out come features. */
import path from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import {
  type ImagePreprocessing,
  imageBatch,
  imagePreprocessingSchema,
  pixelTensor,
  preprocessedSize,
  preprocessImage,
} from '../src/media/preprocess.ts'
import { readPreprocessorConfig } from '../src/media/preprocessor-config.ts'
import type { DecodedImage, Encoder, Features, JsonObject } from '../src/model/contracts.ts'
import { valueDescription } from '../src/onnx/build.ts'
import { encodeModel } from '../src/onnx/codec.ts'
import { toFloat16Bits } from '../src/onnx/float16.ts'
import type { ModelProto } from '../src/onnx/onnx_pb.ts'
import { exposeTensors } from '../src/onnx/surgery.ts'
import type { PixelTensor } from '../src/pixel-planes.ts'
import type { DeviceRequest, Session, TensorDescription } from '../src/runtime/session.ts'
import { createSessionPool, type SessionPool } from '../src/runtime/session-pool.ts'
import type { NamedTensors, TensorValue } from '../src/tensors.ts'
import {
  channelsLastName,
  type FeatureLayout,
  gridOf,
  type LaidOut,
  type LayoutRequest,
  layOut,
  withChannelsLast,
} from './feature-layout.ts'
import { atPath, type ModelDownload } from './model-place.ts'
import { digest, inputsOf, openModel, shown } from './onnx-file.ts'

export interface OnnxImageOptions extends ModelDownload {
  /** A path, a name on the Hugging Face Hub (`org/name/FILE.onnx`), or the file's bytes (then without external data). */
  readonly model: string | Uint8Array
  /** The tensor to take, an output or any value inside the graph; or how to find it. `modalign inspect FILE` lists the names. */
  readonly output: string | ((model: ModelProto) => string)
  /** How pictures are prepared; a path names a Hugging Face `preprocessor_config.json`, or the folder that holds it. */
  readonly preprocessing: ImagePreprocessing | string
  /** Default: by the rank of the tensor, 4 or 3. */
  readonly layout?: FeatureLayout | undefined
  /** Tokens before the picture's own (class token, registers): declared here, dropped from the features. Default 0. */
  readonly prefixTokens?: number | undefined
  /** How a sequence of tokens lies on the picture. Default: rows and columns in the proportion of the input, or one row where none fits. */
  readonly grid?: { readonly rows: number; readonly columns: number } | undefined
  /** Default `auto`. */
  readonly device?: DeviceRequest | undefined
  readonly threads?: number | undefined
  /** Sessions on the CPU that work on several calls of `encode` at once, each with its own copy of the weights and with `threads` threads. Default 1. */
  readonly sessions?: number | undefined
  /** Pictures in one run at most. Default 16, or 1 where the file fixes the batch at 1. */
  readonly batch?: number | undefined
  /** Default: the file's name, or `onnx`. */
  readonly label?: string | undefined
}

/** An {@link Encoder} whose preprocessing is plain data, so that decoding processes can do it. */
export interface OnnxImageEncoder extends Encoder<'image'> {
  readonly preprocessing: ImagePreprocessing
  /** The device that runs it. */
  readonly device: Session['device']
}

const settingsSchema = z.object({
  prefixTokens: z.int().min(0).default(0),
  batch: z.int().min(1).max(4096).optional(),
  layout: z.enum(['nchw-map', 'tokens']).optional(),
  grid: z.strictObject({ rows: z.int().min(1), columns: z.int().min(1) }).optional(),
})

/**
 * Opens an encoder. The graph is cut at the named tensor, so that nothing behind it is computed, and run once: what comes out settles the
 * number and width of the tokens, and a model that gives NaN is refused here rather than in the middle of a training run.
 *
 * @throws {ModalignError} `ENCODER_CONTRACT` (not one float input `[images, 3, height, width]`; lists what the file has), `ENCODER_PREPROCESSING`
 * (pictures of another size than the file takes), `ENCODER_OUTPUT_RANK`, `ENCODER_OUTPUT_SIZE`, `ENCODER_NOT_FINITE`, `ENCODER_OPTIONS`;
 * `ONNX_...` for a file that is none or has no such tensor, `PREPROCESSING_...`, `RUNTIME_...`.
 *
 * @example
 * const encoder = await onnxImage({ model: 'dinov2/model.onnx', output: 'last_hidden_state', prefixTokens: 1, preprocessing: 'dinov2/preprocessor_config.json' })
 * const { tokens, width } = await encoder.encode([await encoder.preprocess(await decodeImage('cat.jpg'))])
 */
export async function onnxImage(given: OnnxImageOptions): Promise<OnnxImageEncoder> {
  const options = await atPath(given)
  const settings = parseSettings(options)
  const file = typeof options.model === 'string' ? options.model : undefined
  const preprocessing = await readPreprocessing(options.preprocessing)
  const opened = await openModel(options.model)
  const output = typeof options.output === 'string' ? options.output : options.output(opened.model)
  const cut = exposeTensors(opened.model, [output])
  const contract = checkContract(cut, opened.model, preprocessing, file)
  const channelsLast = settings.layout === 'tokens' ? undefined : withChannelsLast(cut)
  const session = await createSessionPool(
    { bytes: encodeModel(channelsLast ?? cut), ...(opened.externalFolder !== undefined && { externalRoot: opened.externalFolder }) },
    { device: options.device ?? 'auto', ...(options.threads !== undefined && { threads: options.threads }) },
    options.sessions,
  )
  try {
    const batch = contract.fixedBatch ? 1 : (settings.batch ?? 16)
    const runner: Runner = {
      session,
      output,
      input: contract.input,
      batch,
      layout: settings.layout,
      channelsLast: channelsLast !== undefined,
      prefixTokens: settings.prefixTokens,
      file,
    }
    const preprocess = async (image: DecodedImage): Promise<NamedTensors> => ({
      [contract.input.name]: asInput(preprocessImage(image, preprocessing), contract.input),
    })
    const { input } = contract
    const trial = await runBatch(runner, batchOf(runner, [await preprocess(gradient(contract.size))]))
    const place = trial.data.findIndex((value) => !Number.isFinite(value))
    if (place >= 0) {
      throw new ModalignError({
        code: 'ENCODER_NOT_FINITE',
        file,
        field: output,
        got: `${trial.data[place]} at element ${place} of the features of a plain picture`,
        expected: 'finite features',
        hint: 'the file may be damaged, or overflow in half precision: try another device or a float32 file',
      })
    }
    const grid = gridOf(trial, contract.size, settings.grid, file)
    const { dispose } = session
    return {
      modality: 'image',
      fingerprint: digest({
        kind: 'onnx-image 1',
        model: opened.hash,
        output,
        layout: trial.layout,
        prefixTokens: settings.prefixTokens,
        grid,
        preprocessing,
      }),
      label: options.label ?? (file === undefined ? 'onnx' : path.basename(file)),
      ...(file !== undefined && {
        recipe: { family: 'onnxImage', model: path.resolve(file), options: recipeOptions(settings, output, preprocessing, options.label) },
      }),
      width: trial.width,
      preprocessing,
      device: session.device,
      grid: () => grid,
      preprocess,
      preparation: {
        preprocessing,
        inputs: (tensor) => ({ [input.name]: asInput(tensor, input) }),
        // Tiles are several pictures each, which this encoder refuses when it sees their tensors.
        ...(preprocessing.tiling === undefined && {
          encodePictures: (pictures: readonly DecodedImage[], { signal }: { readonly signal?: AbortSignal } = {}) =>
            encode(
              runner,
              trial,
              pictures,
              (some) => {
                const pixels = input.dtype === 'float32' ? pixelTensor(some, preprocessing) : undefined
                if (pixels !== undefined) return { count: some.length, pixels }
                return { count: some.length, tensor: asInput(imageBatch(some, preprocessing), input), isOurs: true }
              },
              signal,
            ),
        }),
      },
      encode: (inputs, { signal } = {}) => encode(runner, trial, inputs, (some) => batchOf(runner, some), signal),
      dispose,
    }
  } catch (error) {
    await session.dispose()
    throw error
  }
}

/** What makes the same encoder again; where it runs and in what batches is the machine's business. */
function recipeOptions(
  { layout, prefixTokens, grid }: Settings,
  output: string,
  preprocessing: ImagePreprocessing,
  label: string | undefined,
): JsonObject {
  return z.record(z.string(), z.json()).parse({
    output,
    preprocessing,
    prefixTokens,
    ...(layout !== undefined && { layout }),
    ...(grid !== undefined && { grid }),
    ...(label !== undefined && { label }),
  })
}

type Settings = z.infer<typeof settingsSchema>

function parseSettings(options: OnnxImageOptions): Settings {
  const parsed = settingsSchema.safeParse(options)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw new ModalignError({
    code: 'ENCODER_OPTIONS',
    field: `/${(issue?.path ?? []).join('/')}`,
    got: issue?.message,
    expected: 'options of onnxImage',
  })
}

async function readPreprocessing(given: ImagePreprocessing | string): Promise<ImagePreprocessing> {
  if (typeof given !== 'string') {
    const parsed = imagePreprocessingSchema.safeParse(given)
    if (parsed.success) return parsed.data
    const issue = parsed.error.issues[0]
    throw new ModalignError({
      code: 'PREPROCESSING_INVALID',
      field: `/${(issue?.path ?? []).join('/')}`,
      got: issue?.message,
      expected: 'an ImagePreprocessing',
    })
  }
  return readPreprocessorConfig(given)
}

interface Contract {
  readonly input: TensorDescription
  readonly size: { readonly height: number; readonly width: number }
  /** The file was exported for one picture at a time. */
  readonly fixedBatch: boolean
}

/** Checks what the cut graph takes. Done on the file, before a session reads gigabytes. */
function checkContract(cut: ModelProto, whole: ModelProto, preprocessing: ImagePreprocessing, file: string | undefined): Contract {
  const all = `inputs: ${inputsOf(whole).map(shown).join('; ')}. outputs: ${(whole.graph?.output ?? []).map((info) => shown(valueDescription(info))).join('; ')}`
  const refuse = (got: string): ModalignError =>
    new ModalignError({ code: 'ENCODER_CONTRACT', file, got, expected: 'one float input [images, 3, height, width]', hint: all })
  const inputs = inputsOf(cut)
  const [found] = inputs
  if (found === undefined || inputs.length > 1) throw refuse(`${inputs.length} inputs`)
  const { name, dtype, dims } = found
  if (dtype === undefined || dims === undefined) throw refuse(shown(found))
  const input: TensorDescription = { name, dtype, dims }
  const [images, channels, height, width] = input.dims
  const floating = input.dtype === 'float32' || input.dtype === 'float16'
  if (!floating || input.dims.length !== 4 || (typeof channels === 'number' && channels !== 3)) throw refuse(shown(input))
  if (typeof images === 'number' && images !== 1) throw refuse(`${shown(input)}, a batch fixed at ${images}`)

  const size = preprocessedSize(preprocessing)
  if (size === undefined) {
    throw new ModalignError({
      code: 'ENCODER_PREPROCESSING',
      file,
      got: 'preprocessing that leaves the size to the picture',
      expected: 'one size for all pictures',
      hint: 'resize to a height and a width, or crop',
    })
  }
  if ((typeof height === 'number' && height !== size.height) || (typeof width === 'number' && width !== size.width)) {
    throw new ModalignError({
      code: 'ENCODER_PREPROCESSING',
      file,
      got: `pictures of ${size.height} x ${size.width} (height x width)`,
      expected: `${height} x ${width}, as the input ${shown(input)} says`,
    })
  }
  return { input, size, fixedBatch: images === 1 }
}

interface Runner extends LayoutRequest {
  readonly session: SessionPool
  readonly input: TensorDescription
  readonly batch: number
}

/** The tensor of one run, or what the session makes it of. */
type Batch = { readonly count: number } & (
  | { readonly pixels: PixelTensor }
  | {
      readonly tensor: TensorValue
      /** It was made for this run alone. */
      readonly isOurs: boolean
    }
)

function batchOf({ input }: Runner, inputs: readonly NamedTensors[]): Batch {
  const tensor = stacked(
    inputs.map((named) => named[input.name]),
    input,
  )
  return { count: inputs.length, tensor, isOurs: inputs.length > 1 }
}

async function runBatch(runner: Runner, batch: Batch, signal?: AbortSignal): Promise<LaidOut> {
  const { session, input, output, channelsLast, file } = runner
  const { count } = batch
  const options = { fetch: [channelsLast ? channelsLastName : output], ...(signal !== undefined && { signal }) }
  const result =
    'pixels' in batch
      ? await session.run({}, { ...options, pixels: { [input.name]: batch.pixels } })
      : await session.run({ [input.name]: batch.tensor }, { ...options, giveFeeds: batch.isOurs })
  const features = result[channelsLast ? channelsLastName : output]
  if (features === undefined)
    throw new ModalignError({ code: 'ENCODER_CONTRACT', file, field: output, got: 'no such output', expected: 'features' })
  if (features.dims[0] !== count) {
    throw new ModalignError({
      code: 'ENCODER_OUTPUT_SIZE',
      file,
      field: output,
      got: `[${features.dims.join(', ')}] for ${count} pictures`,
      expected: 'the pictures first',
      hint: 'give batch: 1 if the file was exported for one picture at a time',
    })
  }
  return layOut(features, runner)
}

/** One tensor `[images, 3, height, width]` of several `[1, 3, height, width]`. */
function stacked(values: readonly (TensorValue | undefined)[], input: TensorDescription): TensorValue {
  const [first] = values
  const alike = (value: TensorValue | undefined): value is TensorValue =>
    value !== undefined &&
    value.dtype === input.dtype &&
    value.dims.length === 4 &&
    value.dims.every((size, axis) => size === (axis === 0 ? 1 : first?.dims[axis]))
  if (first === undefined || !values.every(alike)) {
    throw new ModalignError({
      code: 'ENCODER_INPUT',
      field: input.name,
      got: values.map((value) => (value === undefined ? 'nothing' : `${value.dtype}[${value.dims.join(', ')}]`)).join(', '),
      expected: `${shown(input)} for one picture each, as preprocess gives them`,
    })
  }
  if (values.length === 1) return first
  const length = first.data.length
  const dims = [values.length, ...first.dims.slice(1)]
  if (input.dtype === 'float16') {
    const data = new Uint16Array(values.length * length)
    for (const [index, value] of values.entries()) if (value.dtype === 'float16') data.set(value.data, index * length)
    return { dtype: 'float16', dims, data }
  }
  const data = new Float32Array(values.length * length)
  for (const [index, value] of values.entries()) if (value.dtype === 'float32') data.set(value.data, index * length)
  return { dtype: 'float32', dims, data }
}

function asInput(pixels: TensorValue, input: TensorDescription): TensorValue {
  if (input.dtype !== 'float16' || pixels.dtype !== 'float32') return pixels
  return { dtype: 'float16', dims: pixels.dims, data: Uint16Array.from(pixels.data, toFloat16Bits) }
}

async function encode<T>(
  runner: Runner,
  { tokens, width }: LaidOut,
  pictures: readonly T[],
  batch: (some: readonly T[]) => Batch,
  signal: AbortSignal | undefined,
): Promise<Features> {
  const count = pictures.length
  const parts: LaidOut[] = []
  for (let start = 0; start < count; start += runner.batch) {
    const features = await runBatch(runner, batch(pictures.slice(start, start + runner.batch)), signal)
    if (features.tokens !== tokens || features.width !== width) {
      throw new ModalignError({
        code: 'ENCODER_OUTPUT_SIZE',
        file: runner.file,
        field: runner.output,
        got: `${features.tokens} tokens of width ${features.width}`,
        expected: `${tokens} of width ${width}, as at first`,
      })
    }
    parts.push(features)
  }
  const [only] = parts
  if (only !== undefined && parts.length === 1) return { count, tokens, width, data: only.data }
  const data = new Float32Array(count * tokens * width)
  for (const [index, part] of parts.entries()) data.set(part.data, index * runner.batch * tokens * width)
  return { count, tokens, width, data }
}

/** A picture that is neither black nor flat, for the first run. */
function gradient({ height, width }: { readonly height: number; readonly width: number }): DecodedImage {
  const data = Uint8Array.from({ length: height * width * 3 }, (_, at) => {
    const pixel = Math.floor(at / 3)
    const along = [pixel % width, Math.floor(pixel / width), pixel][at % 3] ?? 0
    return (along * 7) & 255
  })
  return { width, height, data }
}
