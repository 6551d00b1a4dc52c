/** A sound encoder from any ONNX file: given its preprocessing and the name of the tensor to take, out come features. */
import path from 'node:path'
import { z } from 'zod'
import { ModalignError } from '../src/errors.ts'
import { leastMelSamples } from '../src/media/log-mel.ts'
import { readAudioPreprocessorConfig } from '../src/media/waveform-config-file.ts'
import {
  type AudioPreprocessing,
  audioPreprocessingSchema,
  preprocessAudio,
  sampleRateOf,
  windowsOf,
} from '../src/media/waveform-preprocess.ts'
import { encodeModel } from '../src/onnx/codec.ts'
import { toFloat16Bits } from '../src/onnx/float16.ts'
import type { ModelProto } from '../src/onnx/onnx_pb.ts'
import { exposeTensors } from '../src/onnx/surgery.ts'
import { createSession } from '../src/runtime/node.ts'
import type { DeviceRequest, Session } from '../src/runtime/session.ts'
import type { NamedTensors, TensorValue } from '../src/tensors.ts'
import { atPath, type ModelDownload } from './model-place.ts'
import { inputsOf, openModel, shown } from './onnx-file.ts'
import { type SoundEncoder, type SoundModel, soundEncoder } from './sound-encoder.ts'
import { layOutSound, type SoundFeatures, type SoundLayout, type SoundLayoutRequest } from './sound-layout.ts'
import { convolvedSteps, fixedSteps, type SoundTokens } from './sound-tokens.ts'

export interface OnnxAudioOptions extends ModelDownload {
  /** A path, or the file's bytes (then without external data). */
  readonly model: string | Uint8Array
  /** The tensor to take, an output or any value inside the graph; or how to find it. `modalign inspect FILE` lists the names. */
  readonly output: string | ((model: ModelProto) => string)
  /** How sounds are prepared; a path names a Hugging Face `preprocessor_config.json`. */
  readonly preprocessing: AudioPreprocessing | string
  /** Default: by the rank of the tensor: `pooled`, `tokens`, `frequency-map`. */
  readonly layout?: SoundLayout | undefined
  /** Tokens before the sound's own (class token, distillation token): declared here, dropped from the features. Default 0. */
  readonly prefixTokens?: number | undefined
  /** Tokens of one time, where they are a sequence: the frequencies of a spectrogram's patches. Default 1. */
  readonly columns?: number | undefined
  /** Whether such tokens come time by time or frequency by frequency. Default `time`. */
  readonly order?: 'time' | 'frequency' | undefined
  /**
   * For files that take samples of any number: one token for `receptiveSamples`, another for every `strideSamples` more. Absent: every window gives as many
   * tokens as the first.
   */
  readonly convolution?: { readonly strideSamples: number; readonly receptiveSamples: number } | undefined
  /** Drop the tokens that lie behind the sound's end, computed from what the window was filled with. Default false. */
  readonly dropPadding?: boolean | undefined
  /** Default `auto`. */
  readonly device?: DeviceRequest | undefined
  readonly threads?: number | undefined
  /** Windows in one run at most. Default 8, or 1 where the file fixes the batch at 1. */
  readonly batch?: number | undefined
  /** Default: the file's name, or `onnx`. */
  readonly label?: string | undefined
}

const settingsSchema = z.object({
  layout: z.enum(['tokens', 'channels-first', 'frequency-map', 'pooled']).optional(),
  prefixTokens: z.int().min(0).max(4096).default(0),
  columns: z.int().min(1).max(4096).default(1),
  order: z.enum(['time', 'frequency']).default('time'),
  convolution: z.strictObject({ strideSamples: z.int().min(1), receptiveSamples: z.int().min(1) }).optional(),
  dropPadding: z.boolean().default(false),
  batch: z.int().min(1).max(4096).optional(),
})
type Settings = z.infer<typeof settingsSchema>

/**
 * Opens an encoder. The graph is cut at the named tensor, so that nothing behind it is computed, and run once on a plain tone: what comes out settles the number
 * and width of the tokens, and a model that gives NaN is refused here rather than in the middle of a training run.
 *
 * @throws {ModalignError} `ENCODER_CONTRACT` (not one float input, apart from CLAP's `is_longer`; lists what the file has), `ENCODER_OUTPUT_RANK`,
 * `ENCODER_OUTPUT_SIZE`, `ENCODER_NOT_FINITE`, `ENCODER_OPTIONS`; `ONNX_...` for a file that is none or has no such tensor, `PREPROCESSING_...`, `RUNTIME_...`.
 *
 * @example
 * const encoder = await onnxAudio({ model: 'ast/onnx/model.onnx', output: 'last_hidden_state', prefixTokens: 2, columns: 12, order: 'frequency',
 *   preprocessing: 'ast/preprocessor_config.json' })
 */
export async function onnxAudio(given: OnnxAudioOptions): Promise<SoundEncoder> {
  const options = await atPath(given)
  const settings = parseSettings(options)
  const file = typeof options.model === 'string' ? options.model : undefined
  const preprocessing = await readPreprocessing(options.preprocessing)
  const opened = await openModel(options.model)
  const output = typeof options.output === 'string' ? options.output : options.output(opened.model)
  const cut = exposeTensors(opened.model, [output])
  const contract = checkContract(cut, opened.model, file)
  const session = await createSession(
    { bytes: encodeModel(cut), ...(opened.externalFolder !== undefined && { externalRoot: opened.externalFolder }) },
    { device: options.device ?? 'auto', ...(options.threads !== undefined && { threads: options.threads }) },
  )
  try {
    const model = onnxModel(session, contract, { ...settings, output, file })
    const sound = { sampleRateHz: sampleRateOf(preprocessing), samples: tone(preprocessing) }
    const { values, longer } = preprocessAudio(sound, preprocessing)
    const trial = await model.run(values[0] ?? contractError(contract), [longer], undefined)
    checkFinite(trial, output, file)
    return soundEncoder({
      label: options.label ?? (file === undefined ? 'onnx' : path.basename(file)),
      ...(file !== undefined && {
        recipe: {
          family: 'onnxAudio',
          model: path.resolve(file),
          options: z
            .record(z.string(), z.json())
            .parse(defined({ ...settings, batch: undefined, output, preprocessing, label: options.label })),
        },
      }),
      identity: { model: opened.hash, output, ...defined({ ...settings, batch: undefined }) },
      preprocessing,
      tokens: tokensOf(trial, preprocessing, sound.samples.length, settings, file),
      width: trial.width,
      batch: contract.fixedBatch ? 1 : (settings.batch ?? 8),
      model,
    })
  } catch (error) {
    await session.dispose()
    throw error
  }
}

function defined(value: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(value).filter(([, entry]) => entry !== undefined))
}

function parseSettings(options: OnnxAudioOptions): Settings {
  const parsed = settingsSchema.safeParse(options)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  const field = `/${(issue?.path ?? []).join('/')}`
  throw new ModalignError({ code: 'ENCODER_OPTIONS', field, got: issue?.message, expected: 'options of onnxAudio' })
}

/** As given, or from a file. @throws {ModalignError} `PREPROCESSING_...` */
export async function readPreprocessing(given: AudioPreprocessing | string): Promise<AudioPreprocessing> {
  if (typeof given === 'string') return readAudioPreprocessorConfig(given)
  const parsed = audioPreprocessingSchema.safeParse(given)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  const field = `/${(issue?.path ?? []).join('/')}`
  throw new ModalignError({ code: 'PREPROCESSING_INVALID', field, got: issue?.message, expected: 'an AudioPreprocessing' })
}

interface Contract {
  readonly input: { readonly name: string; readonly dtype: 'float32' | 'float16' }
  /** CLAP's question whether the sound is longer than the picture. */
  readonly longer: string | undefined
  /** The file was exported for one window at a time. */
  readonly fixedBatch: boolean
}

/** Checks what the cut graph takes. Done on the file, before a session reads gigabytes. */
function checkContract(cut: ModelProto, whole: ModelProto, file: string | undefined): Contract {
  const inputs = inputsOf(cut)
  const floating = inputs.filter(({ dtype }) => dtype === 'float32' || dtype === 'float16')
  const longer = inputs.filter(({ dtype }) => dtype === 'bool')
  const [input] = floating
  if (
    input === undefined ||
    (input.dtype !== 'float32' && input.dtype !== 'float16') ||
    floating.length > 1 ||
    floating.length + longer.length < inputs.length ||
    longer.length > 1
  ) {
    throw new ModalignError({
      code: 'ENCODER_CONTRACT',
      file,
      got: inputs.map(shown).join('; ') || 'no inputs',
      expected: 'one float input: a window of samples or of mel frames',
      hint: `inputs of the whole file: ${inputsOf(whole).map(shown).join('; ')}`,
    })
  }
  return { input: { name: input.name, dtype: input.dtype }, longer: longer[0]?.name, fixedBatch: input.dims?.[0] === 1 }
}

function contractError({ input }: Contract): never {
  throw new Error(`internal: preprocessing gave no window for ${input.name}`)
}

function onnxModel(
  session: Session,
  { input, longer: longerInput }: Contract,
  request: Settings & Pick<SoundLayoutRequest, 'output' | 'file'>,
): SoundModel {
  const { output, file } = request
  return {
    device: session.device,
    async run(windows, longer, signal) {
      const feeds: NamedTensors = {
        [input.name]: asDtype(windows, input.dtype),
        ...(longerInput !== undefined && {
          [longerInput]: { dtype: 'bool', dims: [longer.length, 1], data: Uint8Array.from(longer, Number) },
        }),
      }
      const result = await session.run(feeds, { fetch: [output], ...(signal !== undefined && { signal }) })
      const features = result[output]
      if (features === undefined)
        throw new ModalignError({ code: 'ENCODER_CONTRACT', file, field: output, got: 'no such output', expected: 'features' })
      return layOutSound(features, { ...request, layout: request.layout ?? layoutOf(features) })
    },
    dispose: () => session.dispose(),
  }
}

function layoutOf({ dims }: TensorValue): SoundLayout {
  return dims.length === 4 ? 'frequency-map' : dims.length === 3 ? 'tokens' : 'pooled'
}

function asDtype(windows: TensorValue, dtype: 'float32' | 'float16'): TensorValue {
  if (dtype === 'float32' || windows.dtype !== 'float32') return windows
  return { dtype: 'float16', dims: windows.dims, data: Uint16Array.from(windows.data, toFloat16Bits) }
}

/** One whole window of a tone that is neither silent nor flat. */
function tone(preprocessing: AudioPreprocessing): Float32Array {
  const length =
    preprocessing.kind === 'fused-mel' ? preprocessing.samples : (windowsOf(preprocessing)?.samples ?? sampleRateOf(preprocessing))
  return Float32Array.from({ length }, (_, at) => 0.3 * Math.sin(at * 0.17) + 0.1 * Math.sin(at * 0.0213))
}

function tokensOf(
  trial: SoundFeatures,
  preprocessing: AudioPreprocessing,
  trialSamples: number,
  { convolution, dropPadding }: Settings,
  file: string | undefined,
): SoundTokens {
  if (convolution !== undefined) {
    const { strideSamples, receptiveSamples } = convolution
    const tokens = { ...convolvedSteps(strideSamples, receptiveSamples), columns: trial.columns, dropPadding }
    if (tokens.steps(trialSamples) === trial.steps) return tokens
    throw new ModalignError({
      code: 'ENCODER_OUTPUT_SIZE',
      file,
      field: '/convolution',
      got: `${trial.steps} steps of ${trialSamples} samples`,
      expected: `${tokens.steps(trialSamples)}, by strideSamples and receptiveSamples`,
    })
  }
  const windows = windowsOf(preprocessing)
  const mel = preprocessing.kind === 'log-mel' ? preprocessing.mel : undefined
  const isCut = windows?.kind === 'consecutive' && windows.fill === 'none'
  const leastSamples = Math.max(mel?.frames === 'whole' ? mel.frameLength : 1, mel !== undefined && isCut ? leastMelSamples(mel) : 1)
  const shownSamples = windows?.kind === 'consecutive' ? windows.step : trialSamples
  return fixedSteps(trial.steps, shownSamples, { columns: trial.columns, leastSamples, dropPadding })
}

function checkFinite({ data }: SoundFeatures, field: string, file: string | undefined): void {
  const place = data.findIndex((value) => !Number.isFinite(value))
  if (place < 0) return
  throw new ModalignError({
    code: 'ENCODER_NOT_FINITE',
    file,
    field,
    got: `${data[place]} at element ${place} of the features of a plain tone`,
    expected: 'finite features',
    hint: 'the file may be damaged, or overflow in half precision: try another device or a float32 file',
  })
}
