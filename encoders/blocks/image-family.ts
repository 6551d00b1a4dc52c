/** What makes a family of image encoders of a config and a tower: from a Hugging Face folder with safetensors, or from the ONNX files that are published. */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../../src/errors.ts'
import { fileError } from '../../src/io/file-error.ts'
import { checkpointWeights } from '../../src/llm/checkpoint-weights.ts'
import { familyWeights } from '../../src/llm/family-weights.ts'
import { type ImagePreprocessing, imagePreprocessingSchema } from '../../src/media/preprocess.ts'
import { readPreprocessorConfig } from '../../src/media/preprocessor-config.ts'
import type { EncoderRecipe } from '../../src/model/contracts.ts'
import type { ModelProto } from '../../src/onnx/onnx_pb.ts'
import type { DeviceRequest } from '../../src/runtime/session.ts'
import { openCheckpoint } from '../../src/weights/checkpoint.ts'
import { atPath, type ModelDownload } from '../model-place.ts'
import { onnxImage } from '../onnx-image.ts'
import { fixedSize, graphImage, type ImageEncoder } from './graph-image.ts'
import { findOnnxFile, foundPrecisions, isFile, isFolder, modelFolderOf, noSuchPrecision, type OnnxPrecision } from './onnx-layouts.ts'
import { hiddenStates } from './residual-stream.ts'
import { type LayerChoice, layerIndex, tokenGridOf, type VisionTower, withoutPrefix } from './vision-tower.ts'

export interface ImageFamilyOptions extends ModelDownload {
  /** A model's folder (config.json and safetensors, or ONNX files as Optimum, Xenova and onnx-community publish them), or one ONNX file; or its name on the Hugging Face Hub. */
  readonly model: string
  /** Which hidden state: Transformers' index among `hidden_states` (negative ones from the end), or `last` for `last_hidden_state`. Default: the family's. */
  readonly layer?: LayerChoice | undefined
  /** Default: the folder's preprocessor_config.json or processor_config.json. Where it gives pictures of another size, positions are interpolated (safetensors). */
  readonly preprocessing?: ImagePreprocessing | string | undefined
  /** `safetensors` (built as a graph, which can be trained), or an ONNX file's precision. Default: `safetensors` where the folder has them, otherwise `fp32`. */
  readonly weights?: 'safetensors' | OnnxPrecision | undefined
  /** For an ONNX file without a config.json beside it: tokens before the picture's own. */
  readonly prefixTokens?: number | undefined
  /** Default `auto`. */
  readonly device?: DeviceRequest | undefined
  readonly threads?: number | undefined
  /** Sessions on the CPU that work on several calls of `encode` at once, each with `threads` threads. Default 1. */
  readonly sessions?: number | undefined
  /** Pictures in one run at most. Default 16. */
  readonly batch?: number | undefined
  /** Default: the family and the folder's name. */
  readonly label?: string | undefined
}

export interface ImageFamily<C> {
  /** In the catalogue. */
  readonly name: string
  /** For people. */
  readonly label: string
  /** What is read of config.json, or of its `vision_config`. */
  readonly config: z.ZodType<C>
  tower(config: C): VisionTower
  /** The layer that the family's models of language and vision take. */
  readonly layer: LayerChoice
  /** Of every model of the family; absent where config.json must say it. */
  readonly prefixTokens?: number
  /** ONNX files' names without their precision. */
  readonly onnxNames: readonly string[]
  /** Where its files are not those of Transformers. */
  readonly files?: { readonly config: string; readonly weights: string; readonly preprocessing: (config: C) => ImagePreprocessing }
  /** Where it is no transformer: the tensor to take from an ONNX file. */
  readonly onnxOutput?: (model: ModelProto, layer: LayerChoice, file: string) => string
}

export const imageFamilyOptionsSchema = z.strictObject({
  model: z.string().min(1),
  layer: z.union([z.literal('last'), z.int()]).optional(),
  preprocessing: z.union([z.string().min(1), imagePreprocessingSchema]).optional(),
  weights: z.enum(['safetensors', 'fp32', 'fp16', 'int8', 'uint8', 'q8', 'q4', 'q4f16', 'bnb4']).optional(),
  prefixTokens: z.int().min(0).optional(),
  device: z.enum(['auto', 'cpu', 'cuda', 'directml', 'coreml', 'webgpu', 'wasm']).optional(),
  threads: z.int().min(1).optional(),
  sessions: z.int().min(1).optional(),
  batch: z.int().min(1).max(4096).optional(),
  label: z.string().min(1).optional(),
})

/** Opens an encoder of one family: a model's folder or ONNX file, or options. */
export interface OpenImageFamily {
  (options: string | ImageFamilyOptions): Promise<ImageEncoder>
  /** The tower of a config.json's contents, for who builds graphs. @throws {ModalignError} `ENCODER_CONFIG` */
  readonly towerOf: (config: unknown) => VisionTower
}

/**
 * A family of image encoders. What it makes throws {@link ModalignError}s: `ENCODER_OPTIONS`, `ENCODER_CONFIG` (config.json is of another family, or says what the
 * family has not), `ENCODER_MISSING` (no weights, or none of that precision), `ENCODER_LAYER`, `ENCODER_PREPROCESSING`, `ENCODER_NOT_FINITE`; `PREPROCESSING_...`,
 * `CHECKPOINT_...`, `TENSOR_...`, `WEIGHT_...`, `SAFETENSORS_...`, and with ONNX files as `onnxImage`.
 */
export function defineImageFamily<C>(family: ImageFamily<C>): OpenImageFamily {
  const open = async (given: string | ImageFamilyOptions): Promise<ImageEncoder> => {
    const options = parseOptions(family.name, await atPath(typeof given === 'string' ? { model: given } : given, family.files))
    const folder = (await isFolder(options.model)) ? path.resolve(options.model) : modelFolderOf(options.model)
    const source = await sourceOf(family, options, folder)
    const config = await readConfig(family, folder, source.kind === 'safetensors')
    const tower = config === undefined ? undefined : family.tower(config)
    const label = options.label ?? `${family.label} (${path.basename(folder)})`
    const preprocessing = await preprocessingOf(family, config, options, folder)
    const layer = options.layer ?? family.layer
    const recipe: EncoderRecipe = {
      family: family.name,
      model: path.resolve(options.model),
      options: z.record(z.string(), z.json()).parse({
        layer,
        preprocessing,
        ...(options.weights !== undefined && { weights: options.weights }),
        ...(options.prefixTokens !== undefined && { prefixTokens: options.prefixTokens }),
        ...(options.label !== undefined && { label: options.label }),
      }),
    }
    const opening: Opening = { ...options, label, preprocessing, layer, recipe }
    if (source.kind === 'onnx') return openOnnx(family, tower, source.file, opening)
    if (tower === undefined) throw new Error('internal: safetensors without a config')
    return openGraph(family, config, tower, folder, opening)
  }
  return Object.assign(open, {
    towerOf: (config: unknown) => family.tower(parseVisionConfig(family.config, family.label, config, undefined)),
  })
}

interface Opening extends Parsed {
  readonly label: string
  readonly preprocessing: ImagePreprocessing
  readonly layer: LayerChoice
  readonly recipe: EncoderRecipe
}
type Parsed = z.infer<typeof imageFamilyOptionsSchema>

function parseOptions(name: string, options: ImageFamilyOptions): Parsed {
  const parsed = imageFamilyOptionsSchema.safeParse(options)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw new ModalignError({
    code: 'ENCODER_OPTIONS',
    field: `/${(issue?.path ?? []).join('/')}`,
    got: issue?.message,
    expected: `options of ${name}`,
  })
}

async function openGraph<C>(
  family: ImageFamily<C>,
  config: C | undefined,
  tower: VisionTower,
  folder: string,
  opening: Opening,
): Promise<ImageEncoder> {
  const layer = layerIndex(opening.layer, tower.layers)
  const [height, width] = fixedSize(opening.preprocessing)
  const checkpoint = await openCheckpoint(family.files === undefined ? folder : path.join(folder, family.files.weights))
  return graphImage({
    label: opening.label,
    recipe: opening.recipe,
    identity: { family: family.name, config, layer },
    checkpoint,
    weights: checkpointWeights(checkpoint),
    preprocessing: opening.preprocessing,
    grid: tokenGridOf({ height, width }, tower.patchAt(layer)),
    width: tower.widthAt(layer),
    forward: (pixels, lookup) => withoutPrefix(tower.forward(pixels, familyWeights(lookup, tower.names), layer), tower.prefixTokens),
    device: opening.device,
    threads: opening.threads,
    sessions: opening.sessions,
    batch: opening.batch ?? 16,
  })
}

/** A config is not needed to run an ONNX file, but it tells prefix tokens, layers and the size of patches. */
async function openOnnx<C>(family: ImageFamily<C>, tower: VisionTower | undefined, file: string, opening: Opening): Promise<ImageEncoder> {
  const prefixTokens = opening.prefixTokens ?? tower?.prefixTokens ?? family.prefixTokens
  if (prefixTokens === undefined) {
    throw new ModalignError({
      code: 'ENCODER_CONFIG',
      file,
      got: 'no config.json beside it',
      expected: 'the number of prefix tokens (class token and registers), which is never guessed',
      hint: 'download config.json, or give prefixTokens',
    })
  }
  const layer = tower === undefined || opening.layer === 'last' ? opening.layer : layerIndex(opening.layer, tower.layers)
  const [height, width] = fixedSize(opening.preprocessing)
  const encoder = await onnxImage({
    model: file,
    output: (model) => (family.onnxOutput ?? transformerOutput)(model, layer, file),
    preprocessing: opening.preprocessing,
    ...(family.onnxOutput === undefined && { layout: 'tokens', prefixTokens }),
    ...(tower !== undefined && { grid: tokenGridOf({ height, width }, tower.patchAt(layerIndex(opening.layer, tower.layers))) }),
    device: opening.device,
    threads: opening.threads,
    sessions: opening.sessions,
    batch: opening.batch,
    label: opening.label,
  })
  return { ...encoder, recipe: opening.recipe }
}

/** `last_hidden_state` by its name; a hidden state by the residual sums before it. */
function transformerOutput(model: ModelProto, layer: LayerChoice, file: string): string {
  const outputs = (model.graph?.output ?? []).map(({ name }) => name)
  const last = outputs.find((name) => name === 'last_hidden_state')
  if (layer === 'last' && last !== undefined) return last
  const [behind] = last === undefined ? outputs : [last]
  if (behind === undefined || layer === 'last') {
    throw new ModalignError({
      code: 'ENCODER_LAYER',
      file,
      field: '/layer',
      got: `outputs ${outputs.join(', ')}`,
      expected: 'an output last_hidden_state',
      hint: 'take a layer by number, or name the tensor with onnxImage',
    })
  }
  const states = hiddenStates(model, behind, file)
  const state = states.at(layer)
  if (state !== undefined) return state
  const fused = layer >= -states.length && layer < states.length
  throw new ModalignError({
    code: 'ENCODER_LAYER',
    file,
    field: '/layer',
    got: String(layer),
    expected: fused
      ? 'a hidden state that the file holds: this one was fused with the norm behind it'
      : `"last", or ${-states.length} to ${states.length - 1}: the file has ${states.length - 1} layers`,
  })
}

type Source = { readonly kind: 'safetensors' } | { readonly kind: 'onnx'; readonly file: string }

async function sourceOf<C>({ onnxNames, files }: ImageFamily<C>, { model, weights }: Parsed, folder: string): Promise<Source> {
  if (!(await isFolder(model))) {
    if (!model.endsWith('.safetensors')) return { kind: 'onnx', file: path.resolve(model) }
    throw new ModalignError({
      code: 'ENCODER_MISSING',
      file: model,
      got: 'a file of weights',
      expected: "the model's folder, which has its config.json, too",
    })
  }
  const asked = weights ?? ((await hasSafetensors(folder, files?.weights)) ? 'safetensors' : 'fp32')
  if (asked === 'safetensors') return { kind: 'safetensors' }
  const file = await findOnnxFile(folder, onnxNames, asked)
  if (file === undefined) throw noSuchPrecision(folder, asked, await foundPrecisions(folder, onnxNames))
  return { kind: 'onnx', file }
}

async function hasSafetensors(folder: string, name = 'model.safetensors'): Promise<boolean> {
  return (await isFile(path.join(folder, name))) || (await isFile(path.join(folder, `${name}.index.json`)))
}

async function preprocessingOf<C>(
  { files }: ImageFamily<C>,
  config: C | undefined,
  { preprocessing }: Parsed,
  folder: string,
): Promise<ImagePreprocessing> {
  if (typeof preprocessing === 'object') return preprocessing
  if (preprocessing === undefined && files !== undefined && config !== undefined) return files.preprocessing(config)
  return readPreprocessorConfig(preprocessing ?? folder)
}

const largestConfigBytes = 1_048_576

/** undefined if there is none and it is not needed. */
async function readConfig<C>(family: ImageFamily<C>, folder: string, needed: boolean): Promise<C | undefined> {
  const file = path.join(folder, family.files?.config ?? 'config.json')
  if (!needed && !(await isFile(file))) return undefined
  return parseVisionConfig(family.config, family.label, await readModelConfig(file, family.label), file)
}

/** The contents of a config.json. @throws {ModalignError} `ENCODER_CONFIG`, `FILE_...` */
export async function readModelConfig(file: string, label: string): Promise<unknown> {
  const refuse = (got: string, cause?: unknown): ModalignError =>
    new ModalignError({ code: 'ENCODER_CONFIG', file, got, expected: `${path.basename(file)} of a ${label} model`, cause })
  if (!(await isFile(file))) throw refuse('no such file')
  const bytes = await readFile(file).catch((error: unknown) => {
    throw fileError(error, file, 'a config.json')
  })
  if (bytes.length > largestConfigBytes) throw refuse(`${bytes.length} bytes`)
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch (cause) {
    throw refuse(cause instanceof Error ? cause.message : String(cause), cause)
  }
}

/** Models of several towers keep the vision tower's settings in `vision_config`. @throws {ModalignError} `ENCODER_CONFIG` */
export function parseVisionConfig<C>(schema: z.ZodType<C>, label: string, json: unknown, file: string | undefined): C {
  const nested = z.looseObject({ model_type: z.string().optional(), vision_config: z.looseObject({}) }).safeParse(json)
  const own = nested.success ? { model_type: nested.data.model_type, ...nested.data.vision_config } : json
  const parsed = schema.safeParse(own)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw new ModalignError({
    code: 'ENCODER_CONFIG',
    file,
    field: `${nested.success ? '/vision_config' : ''}/${(issue?.path ?? []).join('/')}`,
    got: issue?.message,
    expected: `the config of a ${label} model`,
  })
}
