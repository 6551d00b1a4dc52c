/** How the tokens of a sound encoder lie in time: known from the sound's length alone, before anything is computed. */
import { ModalignError } from '../src/errors.ts'
import { type SoundWindow, type SoundWindows, soundWindows } from '../src/media/waveform-windows.ts'
import type { TokenGrid } from '../src/model/contracts.ts'

/** What an encoder makes of one window. */
export interface SoundTokens {
  /** Steps in time of a window that shows so many samples. */
  steps(samples: number): number
  /** Samples from one step to the next. */
  readonly stepSamples: number
  /** Tokens at each step: frequencies. */
  readonly columns: number
  /** A sound needs so many samples; a rest behind whole windows that has fewer is left out. */
  readonly leastSamples: number
  /** Steps behind the sound's end are dropped: they were computed from what the window was filled with. */
  readonly dropPadding: boolean
}

/** The same number of steps whatever the window shows. */
export function fixedSteps(steps: number, windowSamples: number, { columns = 1, leastSamples = 1, dropPadding = false } = {}): SoundTokens {
  return { steps: () => steps, stepSamples: windowSamples / steps, columns, leastSamples, dropPadding }
}

/** As strided convolutions without padding make them: one step for `receptive` samples, another for every `stride` more. */
export function convolvedSteps(stride: number, receptive: number): SoundTokens {
  const steps = (samples: number): number => (samples < receptive ? 0 : Math.floor((samples - receptive) / stride) + 1)
  return { steps, stepSamples: stride, columns: 1, leastSamples: receptive, dropPadding: false }
}

export interface PlannedWindow extends SoundWindow {
  /** Steps that are kept. */
  readonly steps: number
}

/**
 * @param total samples at the encoder's rate
 * @throws {ModalignError} `AUDIO_EMPTY`, `AUDIO_TOO_SHORT`, `AUDIO_TOO_LONG`
 */
export function planSound(total: number, windows: SoundWindows | undefined, tokens: SoundTokens): readonly PlannedWindow[] {
  const usable = soundWindows(total, windows).filter(({ length }) => length >= tokens.leastSamples)
  if (usable.length === 0)
    throw new ModalignError({ code: 'AUDIO_TOO_SHORT', got: `${total} samples`, expected: `at least ${tokens.leastSamples}` })
  return usable.map((window) => {
    const steps = tokens.steps(window.length)
    return { ...window, steps: tokens.dropPadding ? Math.min(steps, Math.ceil(window.length / tokens.stepSamples)) : steps }
  })
}

/** One segment: the steps of all windows as frames, each with its beginning in seconds; the tokens of a step are its columns. */
export function soundGrid(plan: readonly PlannedWindow[], { stepSamples, columns }: SoundTokens, sampleRateHz: number): TokenGrid {
  const time = plan.flatMap(({ start, steps }) => Array.from({ length: steps }, (_, step) => (start + step * stepSamples) / sampleRateHz))
  return { segments: [{ frames: time.length, rows: 1, columns, time }] }
}
