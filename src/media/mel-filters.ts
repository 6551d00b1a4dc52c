/** Triangular filters that gather a spectrum's bins into mel bands, as Hugging Face's `mel_filter_bank` computes them. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'

export const melBankSchema = z
  .strictObject({
    /** Number of bands. */
    bins: z.int().min(1).max(1024),
    lowHz: z.number().min(0),
    highHz: z.number().positive(),
    /**
     * `htk`: 2595 log10(1 + f/700). `kaldi`: 1127 ln(1 + f/700). `slaney`: linear up to 1 kHz, then logarithmic (Auditory Toolbox, 1998).
     */
    scale: z.enum(['htk', 'kaldi', 'slaney']),
    /** `slaney`: each triangle has the same area over Hz. `none`: each has height 1. */
    norm: z.enum(['slaney', 'none']),
    /** Whether the triangles' sides are straight over Hz, or over mel as Kaldi has them. Default `hertz`. */
    straightOver: z.enum(['hertz', 'mel']).default('hertz'),
  })
  .readonly()
export type MelBank = z.infer<typeof melBankSchema>

/** One band: its weights, and the spectrum bin that the first belongs to. */
export interface MelFilter {
  readonly first: number
  readonly weights: Float64Array
}

const slaneyBreakHz = 1_000
const slaneyBreakMel = 15
const slaneyStep = Math.log(6.4) / 27

function toMel(hertz: number, scale: MelBank['scale']): number {
  if (scale === 'htk') return 2595 * Math.log10(1 + hertz / 700)
  if (scale === 'kaldi') return 1127 * Math.log(1 + hertz / 700)
  return hertz < slaneyBreakHz ? (3 * hertz) / 200 : slaneyBreakMel + Math.log(hertz / slaneyBreakHz) / slaneyStep
}

function toHertz(mel: number, scale: MelBank['scale']): number {
  if (scale === 'htk') return 700 * (10 ** (mel / 2595) - 1)
  if (scale === 'kaldi') return 700 * (Math.exp(mel / 1127) - 1)
  return mel < slaneyBreakMel ? (200 * mel) / 3 : slaneyBreakHz * Math.exp(slaneyStep * (mel - slaneyBreakMel))
}

/**
 * The bands of a spectrum with `fftLength / 2 + 1` bins, equally far apart in mel.
 *
 * @throws {ModalignError} `AUDIO_OPTIONS` where the highest frequency is not above the lowest
 *
 * @example
 * const bands = melFilters({ bins: 80, lowHz: 0, highHz: 8_000, scale: 'slaney', norm: 'slaney', straightOver: 'hertz' }, 400, 16_000)
 */
export function melFilters(
  { bins, lowHz, highHz, scale, norm, straightOver }: MelBank,
  fftLength: number,
  sampleRateHz: number,
): readonly MelFilter[] {
  if (highHz <= lowHz)
    throw new ModalignError({ code: 'AUDIO_OPTIONS', field: '/mel/highHz', got: `${highHz}`, expected: `above lowHz, ${lowHz}` })
  const [low, high] = [toMel(lowHz, scale), toMel(highHz, scale)]
  const spectrumBins = fftLength / 2 + 1
  // Kaldi gives the bin at half the rate to no band.
  const usable = straightOver === 'mel' ? spectrumBins - 1 : spectrumBins
  const place = straightOver === 'mel' ? (hertz: number) => toMel(hertz, scale) : (hertz: number) => hertz
  const edges = Array.from({ length: bins + 2 }, (_, at) => {
    const mel = low + (at * (high - low)) / (bins + 1)
    return straightOver === 'mel' ? mel : toHertz(mel, scale)
  })
  const places = Array.from({ length: usable }, (_, bin) => place((bin * sampleRateHz) / fftLength))
  return Array.from({ length: bins }, (_, band) => {
    const [left, centre, right] = [edges[band] ?? 0, edges[band + 1] ?? 0, edges[band + 2] ?? 0]
    const area = norm === 'slaney' ? 2 / (right - left) : 1
    const heights = places.map((at) => Math.max(0, Math.min((at - left) / (centre - left), (right - at) / (right - centre))) * area)
    const first = heights.findIndex((height) => height > 0)
    if (first < 0) return { first: 0, weights: new Float64Array() }
    return { first, weights: Float64Array.from(heights.slice(first, heights.findLastIndex((height) => height > 0) + 1)) }
  })
}
