/** Changing the sample rate by windowed sinc interpolation, as torchaudio defines it. */
import { ModalignError } from '../errors.ts'

export interface ResampleOptions {
  /** Zero crossings of the sinc on each side. Default 6. */
  readonly lowpassFilterWidth?: number | undefined
  /** Where the low pass begins, as a share of the smaller Nyquist frequency. Default 0.99. */
  readonly rolloff?: number | undefined
  /** The sinc's window. Default `hann`. */
  readonly window?: 'hann' | 'kaiser' | undefined
  /** Shape of the Kaiser window. Default 14.769656459379492. */
  readonly beta?: number | undefined
  /**
   * In what the filter is computed. `float32` (default) gives the values of `torchaudio.functional.resample` on float32 samples, rounding
   * included; `float64` is the formula itself. The two differ by up to 4e-5 of full scale where the rates' smallest ratio is long.
   */
  readonly precision?: 'float32' | 'float64' | undefined
}

const highestRateHz = 4_000_000
const mostSamples = 2 ** 30

/**
 * Samples at `toHz` from samples at `fromHz`; `ceil(length * toHz / fromHz)` of them. Equal rates give the samples themselves.
 *
 * With the rates reduced to their smallest ratio `from : to` and `base = rolloff * min(from, to)`, output `j` is the sum over inputs `i` of
 * `x[i] * base/from * sinc(t) * window(t)`, `t = base * (i/from - j/to)`, over `|t| <= lowpassFilterWidth`; the Hann window is
 * `cos(t * pi / (2 * width))^2`, the Kaiser window `I0(beta * sqrt(1 - (t/width)^2)) / I0(beta)`. Silence lies before and after the sound.
 * Source: torchaudio 2.11, `torchaudio.functional.resample`.
 *
 * @param samples one channel
 * @throws {ModalignError} `AUDIO_SAMPLE_RATE` (not a whole number of Hz in 1..4,000,000), `AUDIO_TOO_LONG` (more than 2^30 samples would come out),
 * `AUDIO_OPTIONS`.
 *
 * @example
 * const second = resample(new Float32Array(44_100), 44_100, 16_000) // 16,000 samples
 */
export function resample(samples: Float32Array, fromHz: number, toHz: number, options: ResampleOptions = {}): Float32Array {
  checkRate(fromHz, 'from')
  checkRate(toHz, 'to')
  const filter = checkedFilter(options)
  if (fromHz === toHz) return samples
  const divisor = greatestCommonDivisor(fromHz, toHz)
  const from = fromHz / divisor
  const to = toHz / divisor
  const length = Math.ceil((samples.length * to) / from)
  if (length > mostSamples) {
    throw new ModalignError({ code: 'AUDIO_TOO_LONG', got: `${length} samples at ${toHz} Hz`, expected: `at most ${mostSamples}` })
  }
  const result = new Float32Array(length)
  for (let phase = 0; phase < Math.min(to, length); phase++) {
    const { first, weights } = phaseFilter(phase, from, to, filter)
    applyPhase(samples, result, { phase, from, to, first, weights })
  }
  return result
}

interface Filter {
  readonly width: number
  readonly rolloff: number
  readonly window: 'hann' | 'kaiser'
  readonly beta: number
  readonly precision: 'float32' | 'float64'
}

/** The weights of every `to`-th output, and the input (relative to the period's start) that the first of them belongs to. */
function phaseFilter(
  phase: number,
  from: number,
  to: number,
  { width, rolloff, window, beta, precision }: Filter,
): { readonly first: number; readonly weights: Float64Array } {
  // One rounding after each operation, in torchaudio's order, gives its float32 values.
  const round = precision === 'float32' ? Math.fround : (value: number): number => value
  const base = Math.min(from, to) * rolloff
  const centre = (phase * from) / to
  const reach = (width * from) / base
  const first = Math.ceil(centre - reach)
  const count = Math.floor(centre + reach) - first + 1
  const pi = round(Math.PI)
  const at = round(-phase / to)
  const scale = round(base / from)
  const baseRounded = round(base)
  const kaiserScale = window === 'kaiser' ? round(besselI0(round(beta))) : 1
  const weights = new Float64Array(count)
  for (let tap = 0; tap < count; tap++) {
    const unclamped = round(round(at + round((first + tap) / from)) * baseRounded)
    const t = Math.min(width, Math.max(-width, unclamped))
    let shape: number
    if (window === 'hann') {
      const cosine = round(Math.cos(round(round(round(t * pi) / width) / 2)))
      shape = round(cosine * cosine)
    } else {
      const share = round(t / width)
      shape = round(round(besselI0(round(round(beta) * round(Math.sqrt(round(1 - round(share * share))))))) / kaiserScale)
    }
    const angle = round(t * pi)
    const sinc = angle === 0 ? 1 : round(round(Math.sin(angle)) / angle)
    weights[tap] = round(sinc * round(shape * scale))
  }
  return { first, weights }
}

function applyPhase(
  samples: Float32Array,
  result: Float32Array,
  {
    phase,
    from,
    to,
    first,
    weights,
  }: { readonly phase: number; readonly from: number; readonly to: number; readonly first: number; readonly weights: Float64Array },
): void {
  const count = weights.length
  for (let out = phase, start = first; out < result.length; out += to, start += from) {
    const end = Math.min(count, samples.length - start)
    let sum = 0
    // `?? 0` is for the type checker only: the reads are in bounds.
    for (let tap = Math.max(0, -start); tap < end; tap++) sum += (samples[start + tap] ?? 0) * (weights[tap] ?? 0)
    result[out] = sum
  }
}

/** Modified Bessel function of the first kind, order 0, by its power series (Abramowitz & Stegun 9.6.12). */
function besselI0(x: number): number {
  const quarter = (x * x) / 4
  let term = 1
  let sum = 1
  for (let k = 1; term > sum * 1e-17; k++) {
    term *= quarter / (k * k)
    sum += term
  }
  return sum
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b)
}

function checkRate(rate: number, which: string): void {
  if (Number.isInteger(rate) && rate >= 1 && rate <= highestRateHz) return
  throw new ModalignError({
    code: 'AUDIO_SAMPLE_RATE',
    got: `${rate} Hz to resample ${which}`,
    expected: `a whole number of Hz, 1 to ${highestRateHz}`,
  })
}

function checkedFilter({
  lowpassFilterWidth: width = 6,
  rolloff = 0.99,
  window = 'hann',
  beta = 14.769656459379492,
  precision = 'float32',
}: ResampleOptions): Filter {
  const refuse = (field: string, got: number, expected: string): ModalignError =>
    new ModalignError({ code: 'AUDIO_OPTIONS', field, got: `${got}`, expected })
  if (!(Number.isInteger(width) && width >= 1 && width <= 1024)) throw refuse('/lowpassFilterWidth', width, 'an integer, 1 to 1024')
  if (!(rolloff > 0 && rolloff <= 1)) throw refuse('/rolloff', rolloff, 'above 0, at most 1')
  if (!(beta >= 0 && beta <= 500)) throw refuse('/beta', beta, '0 to 500')
  return { width, rolloff, window, beta, precision }
}
