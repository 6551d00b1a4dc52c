/** What every sound encoder shares: windows in, the kept tokens of all windows out, whatever computes them. */
import { ModalignError } from '../src/errors.ts'
import type { WeightLookup } from '../src/llm/decoder.ts'
import { type AudioPreprocessing, preprocessAudio, sampleRateOf, windowsOf } from '../src/media/waveform-preprocess.ts'
import { samplesIn } from '../src/media/waveform-windows.ts'
import type { DecodedAudio, Encoder, EncoderGraph, EncoderRecipe, Features, MediaSize, TokenGrid } from '../src/model/contracts.ts'
import type { Session } from '../src/runtime/session.ts'
import type { NamedTensors, TensorValue } from '../src/tensors.ts'
import type { SoundTower } from './blocks/sound-graph.ts'
import { digest } from './onnx-file.ts'
import type { SoundFeatures } from './sound-layout.ts'
import { planSound, type SoundTokens, soundGrid } from './sound-tokens.ts'

/** An encoder of sounds whose preprocessing is plain data, so that decoding processes can do it. */
export interface SoundEncoder extends Encoder<'audio'> {
  readonly preprocessing: AudioPreprocessing
  /** The rate that it hears at; other rates are resampled. */
  readonly sampleRateHz: number
  /** The device that runs it. */
  readonly device: Session['device']
}

/** What computes the features of windows of one size. */
export interface SoundModel {
  readonly device: Session['device']
  /** `windows [count, ...]`; `longer`: for each, whether the sound was longer than it shows (CLAP). */
  run(windows: TensorValue, longer: readonly boolean[], signal: AbortSignal | undefined): Promise<SoundFeatures>
  dispose(): Promise<void>
}

export interface SoundEncoderParts {
  readonly label: string
  readonly recipe?: EncoderRecipe | undefined
  /** What the features depend on besides preprocessing and tokens: kind, weights, layer. */
  readonly identity: unknown
  readonly preprocessing: AudioPreprocessing
  readonly tokens: SoundTokens
  readonly width: number
  /** Windows in one run at most. */
  readonly batch: number
  readonly model: SoundModel
  /** Where the encoder was built as a graph: its layers and weights. */
  readonly tower?: { readonly tower: SoundTower; readonly weights: WeightLookup }
}

/** Samples that stand for a sound of unknown length where windows have none of their own. */
const usualSeconds = 10

/** Window by window. Nothing of it knows whether the sound goes on behind a window (CLAP), so that is not trained. */
function graphOf({ tower: built, tokens }: SoundEncoderParts): EncoderGraph | undefined {
  if (built === undefined) return undefined
  const { tower, weights } = built
  return {
    inputs: tower.inputs,
    units: (named) =>
      stepsOf(named).map((steps, index) => ({
        value: required(named[`window.${index}`], `window.${index}`),
        tokens: steps * tokens.columns,
      })),
    feeds: (units) => tower.feeds(stacked(units.map(({ value }) => value))),
    build: (inputs, change = (same) => same) => tower.forward(inputs, change(weights)),
  }
}

/** Whether sounds of several lengths give several numbers of tokens. */
function gridVaries({ dropPadding }: SoundTokens, preprocessing: AudioPreprocessing): boolean {
  const windows = windowsOf(preprocessing)
  if (windows === undefined) return preprocessing.kind !== 'fused-mel'
  if (windows.kind === 'spread') return false
  const oneSize = windows.fill !== 'none' || (preprocessing.kind === 'log-mel' && preprocessing.mel.length !== undefined)
  return dropPadding || windows.most > 1 || !oneSize
}

/** @throws {ModalignError} from `encode`: `ENCODER_INPUT`, `ENCODER_OUTPUT_SIZE`, `ENCODER_NOT_FINITE`; from `grid` and `preprocess`: `AUDIO_...` */
export function soundEncoder(parts: SoundEncoderParts): SoundEncoder {
  const { preprocessing, tokens, width, model } = parts
  const sampleRateHz = sampleRateOf(preprocessing)
  const graph = graphOf(parts)
  const windows = windowsOf(preprocessing)
  const planOf = (total: number) => planSound(total, windows, tokens)
  const usual = preprocessing.kind === 'fused-mel' ? preprocessing.samples : (windows?.samples ?? usualSeconds * sampleRateHz)
  const grid = ({ seconds }: MediaSize): TokenGrid => {
    // A window may look a little past where the next begins: its own length is the step.
    const one = windows?.kind === 'consecutive' ? Math.min(windows.samples, windows.step) : usual
    return soundGrid(planOf(seconds === undefined ? one : samplesIn(seconds, sampleRateHz)), tokens, sampleRateHz)
  }
  return {
    modality: 'audio',
    label: parts.label,
    ...(parts.recipe !== undefined && { recipe: parts.recipe }),
    fingerprint: digest({
      kind: 'sound 1',
      identity: parts.identity,
      preprocessing,
      tokens: [tokens.stepSamples, tokens.columns, tokens.leastSamples, tokens.dropPadding],
    }),
    width,
    preprocessing,
    sampleRateHz,
    device: model.device,
    gridVaries: gridVaries(tokens, preprocessing),
    ...(graph !== undefined && { graph }),
    grid,
    async preprocess(audio: DecodedAudio): Promise<NamedTensors> {
      const { values, windows: shown, longer } = preprocessAudio(audio, preprocessing)
      const plan = planOf(totalOf(shown))
      return {
        ...Object.fromEntries(plan.map((_, index) => [`window.${index}`, required(values[index], `window.${index}`)])),
        steps: { dtype: 'int32', dims: [plan.length], data: Int32Array.from(plan, ({ steps }) => steps) },
        longer: { dtype: 'bool', dims: [], data: Uint8Array.of(longer ? 1 : 0) },
      }
    },
    encode: (inputs, { signal } = {}) => encode(parts, inputs, signal),
    dispose: () => model.dispose(),
  }
}

function totalOf(shown: readonly { readonly start: number; readonly length: number }[]): number {
  return shown.reduce((end, { start, length }) => Math.max(end, start + length), 0)
}

interface Piece {
  readonly value: TensorValue
  readonly steps: number
  readonly longer: boolean
  /** Where its features begin in the result, in numbers. */
  readonly offset: number
}

async function encode(parts: SoundEncoderParts, inputs: readonly NamedTensors[], signal: AbortSignal | undefined): Promise<Features> {
  const { width, model, batch } = parts
  const counts = inputs.map((named) => stepsOf(named).reduce((sum, steps) => sum + steps, 0) * parts.tokens.columns)
  const tokens = counts[0] ?? 0
  if (counts.some((count) => count !== tokens)) {
    throw new ModalignError({
      code: 'ENCODER_INPUT',
      got: `sounds of ${[...new Set(counts)].join(', ')} tokens`,
      expected: 'sounds of one number of tokens in one call',
      hint: 'group them by grid({ seconds })',
    })
  }
  const pieces = inputs.flatMap((named, index) => piecesOf(named, parts, index * tokens * width))
  const data = new Float32Array(inputs.length * tokens * width)
  for (const alike of grouped(pieces)) {
    for (let start = 0; start < alike.length; start += batch) {
      const some = alike.slice(start, start + batch)
      const features = await model.run(
        stacked(some.map(({ value }) => value)),
        some.map(({ longer }) => longer),
        signal,
      )
      place(data, some, features, parts)
    }
  }
  return { count: inputs.length, tokens, width, data }
}

function place(data: Float32Array, pieces: readonly Piece[], features: SoundFeatures, { width, tokens, label }: SoundEncoderParts): void {
  const { steps, columns } = features
  const most = Math.max(...pieces.map((piece) => piece.steps))
  if (features.windows !== pieces.length || features.width !== width || columns !== tokens.columns || steps < most) {
    throw new ModalignError({
      code: 'ENCODER_OUTPUT_SIZE',
      field: label,
      got: `${features.windows} windows of ${steps} x ${columns} tokens of width ${features.width}`,
      expected: `${pieces.length} of ${most} x ${tokens.columns} of width ${width}`,
    })
  }
  const each = steps * columns * width
  for (const [index, piece] of pieces.entries()) {
    const kept = features.data.subarray(index * each, index * each + piece.steps * columns * width)
    const bad = kept.findIndex((value) => !Number.isFinite(value))
    if (bad >= 0) {
      throw new ModalignError({
        code: 'ENCODER_NOT_FINITE',
        field: label,
        got: `${kept[bad]} in token ${Math.floor(bad / width)} of a window`,
        expected: 'finite features',
        hint: 'the weights may be damaged, or overflow in half precision: try another device or a float32 file',
      })
    }
    data.set(kept, piece.offset)
  }
}

function piecesOf(named: NamedTensors, { width, tokens }: SoundEncoderParts, offset: number): readonly Piece[] {
  const longer = named.longer?.data[0] === 1
  let at = offset
  return stepsOf(named).map((steps, index) => {
    const piece = { value: required(named[`window.${index}`], `window.${index}`), steps, longer, offset: at }
    at += steps * tokens.columns * width
    return piece
  })
}

function stepsOf(named: NamedTensors): readonly number[] {
  const { data } = required(named.steps, 'steps')
  return Array.from(data, Number)
}

function required(value: TensorValue | undefined, field: string): TensorValue {
  if (value !== undefined) return value
  throw new ModalignError({ code: 'ENCODER_INPUT', field, got: 'nothing', expected: 'tensors as preprocess gives them' })
}

/** Windows of one size go through the model together. */
function grouped(pieces: readonly Piece[]): readonly (readonly Piece[])[] {
  const groups = new Map<string, Piece[]>()
  for (const piece of pieces) {
    const key = piece.value.dims.join()
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [piece])
    else group.push(piece)
  }
  return [...groups.values()]
}

/** One tensor `[count, ...]` of several `[1, ...]`. */
function stacked(values: readonly TensorValue[]): TensorValue {
  const [first] = values
  if (first === undefined || first.dtype !== 'float32')
    throw new ModalignError({ code: 'ENCODER_INPUT', got: first?.dtype ?? 'nothing', expected: 'float32 windows' })
  const dims = [values.length, ...first.dims.slice(1)]
  const data = new Float32Array(values.length * first.data.length)
  for (const [index, value] of values.entries()) if (value.dtype === 'float32') data.set(value.data, index * first.data.length)
  return { dtype: 'float32', dims, data }
}
