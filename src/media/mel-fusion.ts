/** CLAP's feature fusion: what its models take of sounds longer than they hear at once.   Wu et al. 2023, section 3.3. */
import { float32Tensor, type TensorValue } from '../tensors.ts'
import { type LogMel, logMel, type MelFrames } from './log-mel.ts'
import { windowSamples } from './waveform-windows.ts'

export interface Fusion {
  readonly mel: LogMel
  /** Samples that one picture shows. */
  readonly samples: number
  readonly fill: 'zeros' | 'repeat' | 'repeat-zeros'
}

/**
 * float32 `[1, 4, frames, bands]`. A sound of at most `samples` is filled up and stands there four times. Of a longer one the first picture is the
 * whole, shrunk in time by linear interpolation, and the others are pieces of its first, second and last third. Transformers draws their places at
 * random; here each is the middle of the range that it is drawn from, so that a sound has one set of features.
 */
export function fusedMels(sound: Float32Array, { mel, samples, fill }: Fusion): { readonly value: TensorValue; readonly longer: boolean } {
  const whole =
    sound.length > samples
      ? sound
      : windowSamples(sound, { start: 0, length: sound.length }, { kind: 'consecutive', samples, step: samples, fill, most: 1 })
  const picture = logMel(whole, mel)
  const { frames: total, bins } = picture
  const frames = Math.floor(samples / mel.hop) + 1
  const longer = total > frames
  const pieces = longer
    ? [shrunk(picture, frames), ...places(total - frames + 1).map((at) => picture.values.subarray(at * bins, (at + frames) * bins))]
    : [picture.values, picture.values, picture.values, picture.values]
  const values = new Float32Array(4 * frames * bins)
  for (const [index, piece] of pieces.entries()) values.set(piece, index * frames * bins)
  return { value: float32Tensor(values, [1, 4, frames, bins]), longer }
}

/** The middles of three equal ranges of `0 .. count - 1`; the first ranges take what is left over, and an empty one means 0. */
function places(count: number): readonly number[] {
  let start = 0
  return [0, 1, 2].map((part) => {
    const size = Math.floor(count / 3) + (part < count % 3 ? 1 : 0)
    const place = size === 0 ? 0 : start + Math.floor(size / 2)
    start += size
    return place
  })
}

/** Linear interpolation over time with half-pixel centres, as PyTorch's bilinear `interpolate` without `align_corners`. */
function shrunk({ frames: total, bins, values }: MelFrames, frames: number): Float32Array {
  const result = new Float32Array(frames * bins)
  for (let frame = 0; frame < frames; frame++) {
    const at = Math.max(0, ((frame + 0.5) * total) / frames - 0.5)
    const before = Math.floor(at)
    const after = Math.min(total - 1, before + 1)
    for (let band = 0; band < bins; band++) {
      const [a, b] = [values[before * bins + band] ?? 0, values[after * bins + band] ?? 0]
      result[frame * bins + band] = a + (at - before) * (b - a)
    }
  }
  return result
}
