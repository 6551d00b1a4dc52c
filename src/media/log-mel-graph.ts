/** Log-mel features as a graph, so that a page and a server compute them alike, and a session may take samples instead of frames. */
import { ModalignError } from '../errors.ts'
import { size } from '../graph/dim.ts'
import { add } from '../graph/operators/add.ts'
import { concat } from '../graph/operators/concat.ts'
import { conv } from '../graph/operators/conv.ts'
import { gather } from '../graph/operators/gather.ts'
import { log } from '../graph/operators/log.ts'
import { matmul } from '../graph/operators/matmul.ts'
import { maximum } from '../graph/operators/maximum.ts'
import { mul } from '../graph/operators/mul.ts'
import { pad } from '../graph/operators/pad.ts'
import { reduceMax } from '../graph/operators/reduce-max.ts'
import { reduceMean } from '../graph/operators/reduce-mean.ts'
import { slice } from '../graph/operators/slice.ts'
import { split } from '../graph/operators/split.ts'
import { sub } from '../graph/operators/sub.ts'
import { unsqueeze } from '../graph/operators/unsqueeze.ts'
import { constant, fixedDim, input, integers, type Tensor } from '../graph/tensor.ts'
import { type LoweredModel, lower } from '../onnx/lower.ts'
import { analysisWindow, type LogMel, melFrameCount } from './log-mel.ts'
import { melFilters } from './mel-filters.ts'

/**
 * samples float32 [windows, length] at the spec's rate -> [windows, bands, frames]: what {@link logMel} gives, in single precision. The Fourier transform of all frames is
 * one convolution: offset, preemphasis and window are linear, so they are part of its kernel.
 *
 * @throws {ModalignError} `AUDIO_TOO_SHORT` where `length` gives no frame, `AUDIO_OPTIONS`
 *
 * @example
 * const samples = input('samples', 'float32', [size('windows'), 480_000])
 * logMelGraph(samples, whisperLogMel()).shape // windows, 80, 3000
 */
export function logMelGraph(samples: Tensor, spec: LogMel): Tensor {
  const length = fixedDim(samples.shape, 1, 'samples')
  const { mel, hop, frameLength, fftLength, sampleRateHz } = spec
  const margin = spec.frames === 'centred' ? Math.floor(frameLength / 2) : 0
  const count = melFrameCount(length, { ...spec, length: undefined })
  if (count < 1 || length <= margin)
    throw new ModalignError({ code: 'AUDIO_TOO_SHORT', got: `${length} samples`, expected: `more than a frame of ${frameLength}` })

  const scaled = mul(spec.subtractMean ? sub(samples, reduceMean(samples, [1], { keepdims: true })) : samples, spec.gain)
  const bins = fftLength / 2 + 1
  const spectrum = conv(unsqueeze(mirrored(scaled, length, margin), [1]), kernel(spec), undefined, { strides: [hop] })
  const [re, im] = split(slice(spectrum, [{ axis: 2, end: count }]), [bins, bins], 1)
  if (re === undefined || im === undefined) throw new Error('internal: two halves')
  const bands = matmul(filterMatrix(melFilters(mel, fftLength, sampleRateHz), bins), add(mul(re, re), mul(im, im)))
  const logs = mul(log(maximum(bands, spec.floor)), spec.log === 'ln' ? 1 : spec.log === 'log10' ? Math.LOG10E : 10 * Math.LOG10E)
  const { mean, std } = spec.normalize ?? { mean: 0, std: 1 }
  return mul(sub(fitted(clamped(logs, spec), count, spec), mean), 1 / std)
}

/**
 * The same as a model: input `samples` [windows, length], output `features` [windows, bands, frames].
 *
 * @example
 * const { bytes, externalData } = lowerLogMel(whisperLogMel(), 480_000)
 * const session = await createSession({ bytes, externalData })
 */
export function lowerLogMel(spec: LogMel, length: number): LoweredModel {
  const samples = input('samples', 'float32', [size('windows'), length])
  return lower({ outputs: { features: logMelGraph(samples, spec) }, inputs: [samples] })
}

/** The sound's ends, mirrored without the last sample itself. */
function mirrored(x: Tensor, length: number, margin: number): Tensor {
  if (margin === 0) return x
  const places = (first: number): Tensor => integers(Array.from({ length: margin }, (_, at) => first - at))
  return concat([gather(x, places(margin), 1), x, gather(x, places(length - 2), 1)], 1)
}

/** float32 [2 * bins, 1, frameLength]: real parts, then imaginary ones. */
function kernel({ frameLength, fftLength, window, removeOffset, preemphasis }: LogMel): Tensor {
  const bins = fftLength / 2 + 1
  const factors = analysisWindow(window, frameLength)
  const data = new Float32Array(2 * bins * frameLength)
  const row = new Float64Array(frameLength)
  for (let part = 0; part < 2 * bins; part++) {
    const bin = part % bins
    for (let at = 0; at < frameLength; at++) {
      const angle = (-2 * Math.PI * ((bin * at) % fftLength)) / fftLength
      row[at] = (part < bins ? Math.cos(angle) : Math.sin(angle)) * (factors[at] ?? 0)
    }
    // What the transpose of preemphasis, and then of taking the mean away, make of a row.
    const emphasised = row.map((value, at) => value - preemphasis * ((row[at + 1] ?? 0) + (at === 0 ? value : 0)))
    const mean = removeOffset ? emphasised.reduce((sum, value) => sum + value, 0) / frameLength : 0
    for (let at = 0; at < frameLength; at++) data[part * frameLength + at] = (emphasised[at] ?? 0) - mean
  }
  return constant({ dtype: 'float32', dims: [2 * bins, 1, frameLength], data })
}

/** float32 [bands, bins]. */
function filterMatrix(filters: ReturnType<typeof melFilters>, bins: number): Tensor {
  const data = new Float32Array(filters.length * bins)
  for (const [band, { first, weights }] of filters.entries()) data.set(weights, band * bins + first)
  return constant({ dtype: 'float32', dims: [filters.length, bins], data })
}

/** Nothing lies further below a window's highest value than the range. */
function clamped(x: Tensor, { range }: LogMel): Tensor {
  return range === undefined ? x : maximum(x, sub(reduceMax(x, [1, 2], { keepdims: true }), range))
}

function fitted(x: Tensor, count: number, { length }: LogMel): Tensor {
  if (length === undefined || length === count) return x
  return length < count ? slice(x, [{ axis: 2, end: length }]) : pad(x, [0, 0, 0], [0, 0, length - count])
}
