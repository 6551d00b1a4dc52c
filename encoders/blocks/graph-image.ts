/** Image encoders built as graphs over a checkpoint's weights: a session for frozen ones, the graph itself for training steps. */
import { ModalignError } from '../../src/errors.ts'
import { size } from '../../src/graph/dim.ts'
import { input, type Tensor } from '../../src/graph/tensor.ts'
import { fileSource } from '../../src/io/byte-source.ts'
import { fingerprint } from '../../src/io/fingerprint.ts'
import type { WeightLookup } from '../../src/llm/decoder.ts'
import { type ImagePreprocessing, preprocessedSize, preprocessImage } from '../../src/media/preprocess.ts'
import type { Encoder, EncoderGraph, EncoderRecipe, Features, TokenGrid } from '../../src/model/contracts.ts'
import { lower } from '../../src/onnx/lower.ts'
import type { DeviceRequest, Session } from '../../src/runtime/session.ts'
import { createSessionPool, type SessionPool } from '../../src/runtime/session-pool.ts'
import { elementCount, float32Tensor, type NamedTensors, type TensorValue } from '../../src/tensors.ts'
import type { Checkpoint } from '../../src/weights/checkpoint.ts'
import { digest } from '../onnx-file.ts'

/** An {@link Encoder} whose preprocessing is plain data, so that decoding processes can do it. */
export interface ImageEncoder extends Encoder<'image'> {
  readonly preprocessing: ImagePreprocessing
  /** The device that runs it. */
  readonly device: Session['device']
}

export interface GraphImageParts {
  readonly label: string
  readonly recipe: EncoderRecipe
  /** What the features depend on besides weights and preprocessing: family, config, layer. */
  readonly identity: unknown
  readonly checkpoint: Checkpoint
  readonly weights: WeightLookup
  readonly preprocessing: ImagePreprocessing
  readonly grid: { readonly rows: number; readonly columns: number }
  readonly width: number
  /** pixels [images, 3, height, width] -> [images, rows * columns, width]. */
  readonly forward: (pixels: Tensor, weights: WeightLookup) => Tensor
  readonly device: DeviceRequest | undefined
  readonly threads: number | undefined
  readonly sessions: number | undefined
  /** Pictures in one run at most. */
  readonly batch: number
}

const inputName = 'pixel_values'

/** Opens the session and runs it once: a checkpoint that gives NaN is refused here rather than in the middle of a training run. @throws `ENCODER_NOT_FINITE` */
export async function graphImage(parts: GraphImageParts): Promise<ImageEncoder> {
  const { preprocessing, width, weights, checkpoint } = parts
  const inputShape = [3, ...fixedSize(preprocessing)]
  const { rows, columns } = parts.grid
  const tokens = rows * columns
  const pixels = input(inputName, 'float32', [size('images'), ...inputShape])
  const graph: EncoderGraph = {
    inputs: [pixels],
    units: (named) => [{ value: float32Tensor(pixelsOf(named, inputShape), [1, ...inputShape]), tokens }],
    feeds: (units) => ({
      [inputName]: stackedPixels(
        units.map(({ value }) => pixelsOf({ [inputName]: value }, inputShape)),
        inputShape,
      ),
    }),
    build: ([given = pixels], change = (same) => same) => parts.forward(given, change(weights)),
  }
  const { bytes, externalRoot, externalData } = lower({ outputs: { features: graph.build([pixels]) }, inputs: [pixels] })
  const session = await createSessionPool(
    { bytes, ...(externalRoot !== undefined && { externalRoot }), ...(externalData !== undefined && { externalData }) },
    { device: parts.device ?? 'auto', ...(parts.threads !== undefined && { threads: parts.threads }) },
    parts.sessions,
  )
  try {
    const grid: TokenGrid = { segments: [{ frames: 1, rows, columns }] }
    const trial = await run(session, [rampTensor(inputShape)], { inputShape, tokens, width })
    refuseNonFinite(trial, checkpoint.folder)
    return {
      modality: 'image',
      label: parts.label,
      recipe: parts.recipe,
      fingerprint: digest({ kind: 'graph-image 1', identity: parts.identity, weights: await checkpointHashes(checkpoint), preprocessing }),
      width,
      preprocessing,
      device: session.device,
      grid: () => grid,
      preprocess: async (image) => ({ [inputName]: preprocessImage(image, preprocessing) }),
      preparation: { preprocessing, inputs: (tensor) => ({ [inputName]: tensor }) },
      async encode(inputs, { signal } = {}) {
        const data = new Float32Array(inputs.length * tokens * width)
        for (let start = 0; start < inputs.length; start += parts.batch) {
          const values = inputs.slice(start, start + parts.batch).map((named) => pixelsOf(named, inputShape))
          data.set(await run(session, values, { inputShape, tokens, width }, signal), start * tokens * width)
        }
        return { count: inputs.length, tokens, width, data } satisfies Features
      },
      graph,
      dispose: session.dispose,
    }
  } catch (error) {
    await session.dispose()
    throw error
  }
}

/** @throws {ModalignError} `ENCODER_PREPROCESSING` */
export function fixedSize(preprocessing: ImagePreprocessing): readonly [height: number, width: number] {
  const found = preprocessedSize(preprocessing)
  if (found !== undefined && preprocessing.tiling === undefined) return [found.height, found.width]
  throw new ModalignError({
    code: 'ENCODER_PREPROCESSING',
    got: found === undefined ? 'preprocessing that leaves the size to the picture' : 'preprocessing that cuts pictures into tiles',
    expected: 'one picture of one size',
    hint: found === undefined ? 'resize to a height and a width, or crop' : 'tile with the encoder `tiled`',
  })
}

interface RunShape {
  readonly inputShape: readonly number[]
  readonly tokens: number
  readonly width: number
}

async function run(
  session: SessionPool,
  values: readonly Float32Array[],
  { inputShape, tokens, width }: RunShape,
  signal?: AbortSignal,
): Promise<Float32Array> {
  const { features } = await session.run({ [inputName]: stackedPixels(values, inputShape) }, signal === undefined ? {} : { signal })
  if (features?.dtype !== 'float32' || String(features.dims) !== String([values.length, tokens, width]))
    throw new Error('internal: features are float32 [images, tokens, width]')
  return features.data
}

function stackedPixels(values: readonly Float32Array[], inputShape: readonly number[]): TensorValue {
  const each = elementCount(inputShape)
  const data = new Float32Array(values.length * each)
  for (const [index, value] of values.entries()) data.set(value, index * each)
  return float32Tensor(data, [values.length, ...inputShape])
}

function pixelsOf(named: NamedTensors, inputShape: readonly number[]): Float32Array {
  const value: TensorValue | undefined = named[inputName]
  if (value?.dtype === 'float32' && String(value.dims) === String([1, ...inputShape])) return value.data
  throw new ModalignError({
    code: 'ENCODER_INPUT',
    field: inputName,
    got: value === undefined ? 'nothing' : `${value.dtype}[${value.dims.join(', ')}]`,
    expected: `float32[1, ${inputShape.join(', ')}], as preprocess gives it`,
  })
}

function refuseNonFinite(features: Float32Array, folder: string): void {
  const place = features.findIndex((value) => !Number.isFinite(value))
  if (place < 0) return
  throw new ModalignError({
    code: 'ENCODER_NOT_FINITE',
    file: folder,
    got: `${features[place]} at element ${place} of the features of a plain picture`,
    expected: 'finite features',
    hint: 'the checkpoint may be damaged',
  })
}

/** Neither black nor flat, for the first run. */
function rampTensor(shape: readonly number[]): Float32Array {
  return Float32Array.from({ length: elementCount(shape) }, (_, at) => ((at * 7) % 255) / 127.5 - 1)
}

/** Of the files that hold weights, in their order. */
export async function checkpointHashes({ files }: Checkpoint): Promise<readonly string[]> {
  const hashes: string[] = []
  for (const { file } of files) if (file !== undefined) hashes.push(await fingerprint(await fileSource(file)))
  return hashes
}
