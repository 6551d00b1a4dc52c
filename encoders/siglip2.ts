/** SigLIP 2's NaFlex models (Tschannen et al. 2025), as Transformers' Siglip2VisionModel has them: pictures keep their proportions, and have as many tokens as that gives. */
import path from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import { size } from '../src/graph/dim.ts'
import { add } from '../src/graph/operators/add.ts'
import { input, type Tensor } from '../src/graph/tensor.ts'
import { activationName } from '../src/llm/activations.ts'
import { checkpointWeights } from '../src/llm/checkpoint-weights.ts'
import { type FamilyWeights, familyWeights } from '../src/llm/family-weights.ts'
import { resizedSize } from '../src/media/picture-size.ts'
import { type ImagePreprocessing, preprocessImage } from '../src/media/preprocess.ts'
import { readPreprocessorConfig } from '../src/media/preprocessor-config.ts'
import { kernels, taps } from '../src/media/resize-kernels.ts'
import type { MediaSize, TokenGrid } from '../src/model/contracts.ts'
import { lower } from '../src/onnx/lower.ts'
import type { DeviceRequest } from '../src/runtime/session.ts'
import { createSessionPool } from '../src/runtime/session-pool.ts'
import { float32Tensor, type NamedTensors } from '../src/tensors.ts'
import { openCheckpoint } from '../src/weights/checkpoint.ts'
import { toFloat32 } from '../src/weights/float16.ts'
import { colours, count, epsilonField, evenHeads } from './blocks/config-fields.ts'
import { checkpointHashes, type ImageEncoder } from './blocks/graph-image.ts'
import { imageFamilyOptionsSchema, parseVisionConfig, readModelConfig } from './blocks/image-family.ts'
import { transformerLayer } from './blocks/transformer.ts'
import { type LayerChoice, layerIndex } from './blocks/vision-tower.ts'
import { clipModules } from './clip.ts'
import { atPath, type ModelDownload } from './model-place.ts'
import { digest } from './onnx-file.ts'

const siglip2Config = z
  .object({
    model_type: z.enum(['siglip2_vision_model', 'siglip2']),
    hidden_size: count.default(768),
    intermediate_size: count.default(3072),
    num_hidden_layers: count.default(12),
    num_attention_heads: count.default(12),
    num_channels: colours,
    num_patches: count.refine((patches) => Number.isInteger(Math.sqrt(patches)), 'a square number').default(256),
    patch_size: count.default(16),
    hidden_act: activationName.default('gelu_pytorch_tanh'),
    layer_norm_eps: epsilonField.default(1e-6),
  })
  .superRefine(evenHeads)
type Siglip2Config = z.infer<typeof siglip2Config>

export interface Siglip2Options extends ModelDownload {
  /** A model's folder: config.json, safetensors, preprocessor_config.json; or its name on the Hugging Face Hub. */
  readonly model: string
  /** As `ImageFamilyOptions.layer`. Default `last`, after the final norm. */
  readonly layer?: LayerChoice | undefined
  /** Default: the folder's. More or fewer tokens: `resize: { size: { patchSize: 16, maxPatches } }`. */
  readonly preprocessing?: ImagePreprocessing | string | undefined
  readonly device?: DeviceRequest | undefined
  readonly threads?: number | undefined
  /** As `ImageFamilyOptions.sessions`. */
  readonly sessions?: number | undefined
  /** Pictures in one run at most. Default 16. */
  readonly batch?: number | undefined
  readonly label?: string | undefined
}

const optionsSchema = imageFamilyOptionsSchema.omit({ weights: true, prefixTokens: true })
const names = { prefix: '', others: ['vision_model.'], probe: 'embeddings.patch_embedding.weight' }

/**
 * SigLIP 2 with NaFlex. No prefix tokens. Rows and columns hang on the picture: `grid({ width, height })`; pictures of one call must have one grid. Position embeddings are
 * interpolated for each grid as the reference does (bilinear, antialiased). Checkpoints of fixed size (`model_type` siglip) are opened by `siglip`.
 *
 * @throws {ModalignError} `ENCODER_OPTIONS`, `ENCODER_CONFIG`, `ENCODER_LAYER`, `ENCODER_PREPROCESSING` (patches of another size, or no limit on their number), `CHECKPOINT_...`, `TENSOR_...`, `WEIGHT_...`
 *
 * @example
 * const encoder = await siglip2('models/siglip2-base-patch16-naflex')
 * encoder.grid({ width: 640, height: 480 }).segments // [{ frames: 1, rows: 13, columns: 18 }]
 */
export async function siglip2(given: string | Siglip2Options): Promise<ImageEncoder> {
  const parsed = optionsSchema.safeParse(await atPath(typeof given === 'string' ? { model: given } : given))
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    throw new ModalignError({
      code: 'ENCODER_OPTIONS',
      field: `/${(issue?.path ?? []).join('/')}`,
      got: issue?.message,
      expected: 'options of siglip2',
    })
  }
  const options = parsed.data
  const folder = path.resolve(options.model)
  const file = path.join(folder, 'config.json')
  const config = parseVisionConfig(siglip2Config, 'SigLIP 2 (NaFlex)', await readModelConfig(file, 'SigLIP 2 (NaFlex)'), file)
  const preprocessing =
    typeof options.preprocessing === 'object' ? options.preprocessing : await readPreprocessorConfig(options.preprocessing ?? folder)
  const rule = preprocessing.resize?.size
  if (rule === undefined || !('maxPatches' in rule) || rule.patchSize !== config.patch_size || preprocessing.centreCrop !== undefined) {
    throw new ModalignError({
      code: 'ENCODER_PREPROCESSING',
      file: folder,
      field: '/resize/size',
      got: JSON.stringify(rule ?? null),
      expected: `{"patchSize": ${config.patch_size}, "maxPatches": n}, and no crop`,
    })
  }
  const layer = layerIndex(options.layer ?? 'last', config.num_hidden_layers)
  const checkpoint = await openCheckpoint(folder)
  const weights = familyWeights(checkpointWeights(checkpoint), names)
  const table = toFloat32Values(await checkpoint.read(weights.stored('embeddings.position_embedding.weight')))
  const [tokens, patch, width] = [size('tokens'), 3 * config.patch_size ** 2, config.hidden_size]
  const pixels = input('pixel_values', 'float32', [size('images'), tokens, patch])
  const positions = input('positions', 'float32', [tokens, width])
  const features = forward(pixels, positions, weights, config, layer)
  const { bytes, externalRoot } = lower({ outputs: { features }, inputs: [pixels, positions] })
  const session = await createSessionPool(
    { bytes, ...(externalRoot !== undefined && { externalRoot }) },
    { device: options.device ?? 'auto', ...(options.threads !== undefined && { threads: options.threads }) },
    options.sessions,
  )
  const gridOf = ({ width: across = 1, height = 1 }: MediaSize): { readonly rows: number; readonly columns: number } => {
    const resized = resizedSize({ width: across, height }, rule)
    return { rows: resized.height / rule.patchSize, columns: resized.width / rule.patchSize }
  }
  const batch = options.batch ?? 16
  return {
    modality: 'image',
    label: options.label ?? `SigLIP 2 (${path.basename(folder)})`,
    recipe: {
      family: 'siglip2',
      model: folder,
      options: z.record(z.string(), z.json()).parse({ layer: options.layer ?? 'last', preprocessing }),
    },
    fingerprint: digest({ kind: 'siglip2 1', config, layer, weights: await checkpointHashes(checkpoint), preprocessing }),
    width,
    gridVaries: true,
    preprocessing,
    device: session.device,
    grid: (picture): TokenGrid => ({ segments: [{ frames: 1, ...gridOf(picture) }] }),
    async preprocess(image) {
      const { rows, columns } = gridOf(image)
      const planes = preprocessImage(image, preprocessing)
      if (planes.dtype !== 'float32') throw new Error('internal: pixels are float32')
      return {
        pixel_values: float32Tensor(patches(planes.data, rows, columns, config.patch_size), [1, rows * columns, patch]),
        spatial_shape: { dtype: 'int32', dims: [2], data: Int32Array.of(rows, columns) },
      }
    },
    async encode(inputs, { signal } = {}) {
      const [rows, columns] = shapeOf(inputs)
      const each = rows * columns
      const data = new Float32Array(inputs.length * each * width)
      const places = float32Tensor(interpolated(table, Math.sqrt(config.num_patches), rows, columns, width), [each, width])
      for (let start = 0; start < inputs.length; start += batch) {
        const part = inputs.slice(start, start + batch)
        const values = new Float32Array(part.length * each * patch)
        for (const [index, { pixel_values: value }] of part.entries())
          if (value?.dtype === 'float32') values.set(value.data, index * each * patch)
        const feeds = { pixel_values: float32Tensor(values, [part.length, each, patch]), positions: places }
        const { features: found } = await session.run(feeds, signal === undefined ? {} : { signal })
        if (found?.dtype !== 'float32') throw new Error('internal: features are float32')
        data.set(found.data, start * each * width)
      }
      return { count: inputs.length, tokens: each, width, data }
    },
    dispose: session.dispose,
  }
}

/** pixels [images, tokens, 3 * patch * patch], positions [tokens, width] -> [images, tokens, width]. */
function forward(pixels: Tensor, positions: Tensor, weights: FamilyWeights, config: Siglip2Config, layer: number | 'last'): Tensor {
  const { hidden_size: width, num_hidden_layers: layers } = config
  const shape = {
    heads: config.num_attention_heads,
    inner: config.intermediate_size,
    epsilon: config.layer_norm_eps,
    activation: config.hidden_act,
  }
  let x = add(weights.linear(pixels, 'embeddings.patch_embedding', width, { bias: true }), positions)
  for (let index = 0; index < (layer === 'last' ? layers : layer); index++) x = transformerLayer(x, weights, clipModules(index), shape)
  return layer === 'last' ? weights.layerNorm(x, 'post_layernorm', { epsilon: config.layer_norm_eps }) : x
}

/** Planes [3, height, width] to patches [rows * columns, patch * patch * 3]: the channels of a pixel lie together. */
function patches(planes: Float32Array, rows: number, columns: number, patch: number): Float32Array {
  const [height, width] = [rows * patch, columns * patch]
  const result = new Float32Array(planes.length)
  let out = 0
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      for (let y = 0; y < patch; y++) {
        for (let x = 0; x < patch; x++) {
          const at = (row * patch + y) * width + column * patch + x
          for (let channel = 0; channel < 3; channel++) result[out++] = planes[channel * height * width + at] ?? 0
        }
      }
    }
  }
  return result
}

/** The square table [side * side, width] at rows x columns: bilinear, antialiased. */
function interpolated(table: Float32Array, side: number, rows: number, columns: number, width: number): Float32Array {
  const axis = (data: Float32Array, outer: number, length: number, newLength: number, inner: number): Float32Array => {
    const { stride, starts, counts, weights } = taps(length, newLength, kernels.bilinear, 0, newLength)
    const result = new Float32Array(outer * newLength * inner)
    for (let block = 0; block < outer; block++) {
      for (let place = 0; place < newLength; place++) {
        for (let i = 0; i < inner; i++) {
          let sum = 0
          for (let tap = 0; tap < (counts[place] ?? 0); tap++)
            sum += (weights[place * stride + tap] ?? 0) * (data[(block * length + (starts[place] ?? 0) + tap) * inner + i] ?? 0)
          result[(block * newLength + place) * inner + i] = sum
        }
      }
    }
    return result
  }
  return axis(axis(table, side, side, columns, width), 1, side, rows, columns * width)
}

/** @throws {ModalignError} `ENCODER_INPUT` */
function shapeOf(inputs: readonly NamedTensors[]): readonly [rows: number, columns: number] {
  const shapes = inputs.map(({ spatial_shape: shape }) => (shape?.dtype === 'int32' ? [shape.data[0] ?? 0, shape.data[1] ?? 0] : [0, 0]))
  const [[rows = 0, columns = 0] = []] = shapes
  if (shapes.every(([r, c]) => r === rows && c === columns) && (inputs.length === 0 || rows * columns > 0)) return [rows, columns]
  throw new ModalignError({
    code: 'ENCODER_INPUT',
    field: 'spatial_shape',
    got: shapes.map((shape) => shape.join(' x ')).join(', '),
    expected: 'pictures of one grid in one call, as preprocess gives them',
    hint: 'group pictures by encoder.grid({ width, height })',
  })
}

function toFloat32Values(value: NamedTensors[string]): Float32Array {
  if (value.dtype === 'float32' || value.dtype === 'float16' || value.dtype === 'bfloat16') return toFloat32(value)
  throw new ModalignError({
    code: 'WEIGHT_DTYPE',
    field: 'embeddings.position_embedding.weight',
    got: value.dtype,
    expected: 'float32, float16 or bfloat16',
  })
}
