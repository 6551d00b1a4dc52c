/** What every family of sound encoders does around its own layers: finding files and settings, windows, layers, recipes. */
import { readdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../../src/errors.ts'
import { fileError } from '../../src/io/file-error.ts'
import { type AudioPreprocessing, sampleRateOf } from '../../src/media/waveform-preprocess.ts'
import type { ModelProto } from '../../src/onnx/onnx_pb.ts'
import type { DeviceRequest } from '../../src/runtime/session.ts'
import { atPath, type ModelDownload } from '../model-place.ts'
import { type OnnxAudioOptions, onnxAudio, readPreprocessing } from '../onnx-audio.ts'
import { type SoundEncoder, soundEncoder } from '../sound-encoder.ts'
import type { SoundTokens } from '../sound-tokens.ts'
import { openEncoderFolder, openSoundTower, type SoundTower } from './sound-graph.ts'
import type { LayerChoice } from './vision-tower.ts'

export interface SoundFamilyOptions extends ModelDownload {
  /** A Hugging Face folder with safetensors, a folder with ONNX files as Optimum lays them out, or an ONNX file; or its name on the Hugging Face Hub. */
  readonly model: string
  /**
   * Of a folder with safetensors: Transformers' index among `hidden_states`, or `last` (default), `last_hidden_state`. An ONNX file has the layers that its
   * graph has: name the tensor in `output`.
   */
  readonly layer?: LayerChoice | undefined
  /** ONNX: the tensor to take. Default: what the family's exports call their features. */
  readonly output?: string | undefined
  /** Default: the folder's `preprocessor_config.json`, or else what the family was published with. */
  readonly preprocessing?: AudioPreprocessing | string | undefined
  /** Seconds that the encoder hears at once; longer sounds become several windows. Default: the family's. */
  readonly windowSeconds?: number | undefined
  /** Sounds that need more windows are refused. Default 1000. */
  readonly maxWindows?: number | undefined
  /** Drop the tokens behind the sound's end, which come from what fills the window. Default: the family's. */
  readonly dropPadding?: boolean | undefined
  /** Default `auto`. */
  readonly device?: DeviceRequest | undefined
  readonly threads?: number | undefined
  /** Windows in one run at most. Default 8. */
  readonly batch?: number | undefined
  /** Default: the family's name and the folder's. */
  readonly label?: string | undefined
}

/** What a family says of its published ONNX files. */
export interface PublishedSound extends Pick<OnnxAudioOptions, 'layout' | 'prefixTokens' | 'columns' | 'order' | 'convolution'> {
  /** Places within a folder, in order of preference. */
  readonly files: readonly string[]
  readonly output: (model: ModelProto) => string
}

export interface SoundFamily<C> {
  /** By which `encoders` knows it. */
  readonly name: string
  readonly label: string
  /** What the family was published with, where a folder does not say. */
  readonly preprocessing: AudioPreprocessing
  readonly dropPadding: boolean
  readonly onnx: PublishedSound
  /** Absent: ONNX files alone. */
  readonly folder?: {
    readonly config: z.ZodType<C>
    /** @throws {ModalignError} `ENCODER_LAYER`, `ENCODER_PREPROCESSING` (windows that the weights cannot hear) */
    readonly tower: (config: C, layer: LayerChoice, preprocessing: AudioPreprocessing) => SoundTower
    readonly tokens: (config: C, preprocessing: AudioPreprocessing, dropPadding: boolean) => SoundTokens
  }
}

const settingsSchema = z.object({
  layer: z.union([z.int(), z.literal('last')]).optional(),
  output: z.string().min(1).optional(),
  windowSeconds: z.number().positive().max(3600).optional(),
  maxWindows: z.int().min(1).max(100_000).optional(),
  dropPadding: z.boolean().optional(),
  batch: z.int().min(1).max(4096).optional(),
})

/** The function that opens encoders of a family. */
export function defineSoundFamily<C>(family: SoundFamily<C>): (options: string | SoundFamilyOptions) => Promise<SoundEncoder> {
  return async (given) => {
    const options = await atPath(typeof given === 'string' ? { model: given } : given)
    const checked = settingsSchema.safeParse(options)
    if (!checked.success) {
      const [issue] = checked.error.issues
      throw optionError(`/${(issue?.path ?? []).join('/')}`, issue?.message, `options of ${family.name}`)
    }
    const place = await locate(options.model, family)
    const published = await preprocessingOf(options, family, place)
    const preprocessing = withWindows(published, options)
    const label = options.label ?? `${family.label} ${path.basename(place.folder)}`
    const encoder =
      place.onnx === undefined
        ? await fromFolder(family, options, preprocessing, label)
        : await fromOnnx(family, options, place.onnx, preprocessing, label)
    const { layer, output, dropPadding } = options
    const settings = { layer, output, dropPadding, preprocessing, label: options.label }
    return {
      ...encoder,
      recipe: {
        family: family.name,
        model: path.resolve(options.model),
        options: z
          .record(z.string(), z.json())
          .parse(Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined))),
      },
    }
  }
}

interface Place {
  /** The ONNX file; absent: a folder with safetensors. */
  readonly onnx?: string
  /** Where the settings lie. */
  readonly folder: string
}

/** @throws {ModalignError} `FILE_...`, `ENCODER_MISSING` */
async function locate<C>(model: string, { name, onnx, folder }: SoundFamily<C>): Promise<Place> {
  const found = await stat(model).catch((error: unknown) => {
    throw fileError(error, model, 'a model folder or an ONNX file')
  })
  if (!found.isDirectory()) {
    const parent = path.dirname(path.resolve(model))
    return { onnx: model, folder: path.basename(parent) === 'onnx' ? path.dirname(parent) : parent }
  }
  const names = await readdir(model)
  if (folder !== undefined && names.some((entry) => entry.endsWith('.safetensors'))) return { folder: model }
  const inner = names.includes('onnx') ? (await readdir(path.join(model, 'onnx'))).map((entry) => `onnx/${entry}`) : []
  const file = onnx.files.find((candidate) => names.includes(candidate) || inner.includes(candidate))
  if (file !== undefined) return { onnx: path.join(model, file), folder: model }
  throw new ModalignError({
    code: 'ENCODER_MISSING',
    file: model,
    got: 'a folder without them',
    expected: [...(folder === undefined ? [] : ['*.safetensors']), ...onnx.files].join(', or '),
    hint: `${name} takes the ONNX file itself, too`,
  })
}

async function preprocessingOf<C>(
  { preprocessing }: SoundFamilyOptions,
  family: SoundFamily<C>,
  { folder }: Place,
): Promise<AudioPreprocessing> {
  if (preprocessing !== undefined) return readPreprocessing(preprocessing)
  const file = (await readdir(folder)).find((name) => name === 'preprocessor_config.json')
  if (file === undefined) return family.preprocessing
  const read = await readPreprocessing(path.join(folder, file))
  // The published settings of raw samples say nothing of windows.
  return read.kind === 'waveform' && family.preprocessing.kind === 'waveform' ? { ...read, windows: family.preprocessing.windows } : read
}

/** @throws {ModalignError} `ENCODER_OPTIONS` where the family's windows have one length */
function withWindows(preprocessing: AudioPreprocessing, { windowSeconds, maxWindows }: SoundFamilyOptions): AudioPreprocessing {
  const fixed = preprocessing.kind === 'fused-mel' || preprocessing.windows?.kind === 'spread'
  if (windowSeconds !== undefined && (fixed || (preprocessing.kind === 'log-mel' && preprocessing.mel.length !== undefined)))
    throw optionError('/windowSeconds', String(windowSeconds), 'nothing: the windows of this encoder have one length')
  if (preprocessing.kind === 'fused-mel' || preprocessing.windows?.kind === 'spread') return preprocessing
  const before = preprocessing.windows
  if (before === undefined && windowSeconds === undefined) return preprocessing
  const samples = windowSeconds === undefined ? undefined : Math.round(windowSeconds * sampleRateOf(preprocessing))
  const size = samples === undefined ? { samples: before?.samples ?? 1, step: before?.step ?? 1 } : { samples, step: samples }
  return {
    ...preprocessing,
    windows: { kind: 'consecutive', ...size, fill: before?.fill ?? 'none', most: maxWindows ?? before?.most ?? 1_000 },
  }
}

async function fromFolder<C>(
  family: SoundFamily<C>,
  { model, layer = 'last', output, dropPadding = family.dropPadding, device, threads, batch = 8 }: SoundFamilyOptions,
  preprocessing: AudioPreprocessing,
  label: string,
): Promise<SoundEncoder> {
  const { folder } = family
  if (folder === undefined) throw new Error(`internal: ${family.name} has no layers of its own`)
  if (output !== undefined) throw optionError('/output', output, 'nothing: a folder with safetensors takes "layer"')
  const { config, weights, hash } = await openEncoderFolder(model, folder.config)
  const tower = folder.tower(config, layer, preprocessing)
  return soundEncoder({
    label,
    identity: { family: family.name, model: hash, layer },
    preprocessing,
    tokens: folder.tokens(config, preprocessing, dropPadding),
    width: tower.width,
    batch,
    model: await openSoundTower(tower, weights, { device, threads }),
    tower: { tower, weights },
  })
}

async function fromOnnx<C>(
  family: SoundFamily<C>,
  { layer, output, dropPadding = family.dropPadding, device, threads, batch }: SoundFamilyOptions,
  file: string,
  preprocessing: AudioPreprocessing,
  label: string,
): Promise<SoundEncoder> {
  if (layer !== undefined) throw optionError('/layer', String(layer), 'nothing: an ONNX file takes "output", the name of a tensor')
  const { files: _, output: usual, layout, ...published } = family.onnx
  // Another tensor may lie otherwise: its rank tells.
  return onnxAudio({
    ...published,
    layout: output === undefined ? layout : undefined,
    model: file,
    output: output ?? usual,
    preprocessing,
    dropPadding,
    device,
    threads,
    batch,
    label,
  })
}

function optionError(field: string, got: string | undefined, expected: string): ModalignError {
  return new ModalignError({ code: 'ENCODER_OPTIONS', field, got, expected })
}

/** For models whose one output is their features. */
export function firstOutput({ graph }: ModelProto): string {
  return graph?.output[0]?.name ?? ''
}

/** The first of the names that the graph has, as an output or inside. @throws {ModalignError} `ENCODER_CONTRACT` listing the outputs */
export function namedTensor(...names: readonly string[]): (model: ModelProto) => string {
  return ({ graph }) => {
    const outputs = (graph?.output ?? []).map(({ name }) => name)
    const inside = new Set((graph?.node ?? []).flatMap(({ output }) => output))
    const found = names.find((name) => outputs.includes(name) || inside.has(name))
    if (found !== undefined) return found
    throw new ModalignError({
      code: 'ENCODER_CONTRACT',
      got: `outputs ${outputs.join(', ')}`,
      expected: names.join(' or '),
      hint: 'name the tensor: { output: ... }',
    })
  }
}
