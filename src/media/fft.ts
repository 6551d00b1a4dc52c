/** The discrete Fourier transform of real samples, for any even length: spectrograms use 400, 512, 1024. */
import { ModalignError } from '../errors.ts'

/** |X[k]|^2 for k = 0 .. length/2 of `length` real samples, written into `power`. Made once for a length, used for every frame. */
export interface PowerSpectrum {
  readonly length: number
  readonly bins: number
  /** `frame` has `length` samples and is left as it is. */
  of(frame: Float64Array, power: Float64Array): void
}

/**
 * A transform of half the length over complex numbers whose real and imaginary parts are the even and odd samples (Press et al., Numerical
 * Recipes, section 12.3), by Stockham's method with factors 4, 2, 3, 5 and whatever primes are left.
 *
 * @throws {ModalignError} `AUDIO_OPTIONS`: an odd length, or none in 2..65,536
 *
 * @example
 * const spectrum = powerSpectrum(400)
 * const power = new Float64Array(spectrum.bins) // 201
 * spectrum.of(new Float64Array(400).fill(1), power) // power[0] = 160000
 */
export function powerSpectrum(length: number): PowerSpectrum {
  if (!(Number.isInteger(length) && length >= 2 && length <= 65_536 && length % 2 === 0))
    throw new ModalignError({ code: 'AUDIO_OPTIONS', field: '/fftLength', got: `${length}`, expected: 'an even number, 2 to 65,536' })
  const half = length / 2
  const transform = complexTransform(half)
  const cosines = Float64Array.from({ length: half + 1 }, (_, k) => Math.cos((2 * Math.PI * k) / length))
  const sines = Float64Array.from({ length: half + 1 }, (_, k) => Math.sin((2 * Math.PI * k) / length))
  const packed = new Float64Array(length)
  return {
    length,
    bins: half + 1,
    of(frame, power) {
      packed.set(frame)
      const z = transform(packed)
      // `?? 0` below is for the type checker only: the reads are in bounds.
      for (let k = 0; k <= half; k++) {
        const here = 2 * (k === half ? 0 : k)
        const there = 2 * (k === 0 ? 0 : half - k)
        const re = z[here] ?? 0
        const im = z[here + 1] ?? 0
        const mirrorRe = z[there] ?? 0
        const mirrorIm = -(z[there + 1] ?? 0)
        const oddRe = im - mirrorIm
        const oddIm = mirrorRe - re
        const c = cosines[k] ?? 0
        const s = sines[k] ?? 0
        const x = re + mirrorRe + c * oddRe + s * oddIm
        const y = im + mirrorIm + c * oddIm - s * oddRe
        power[k] = (x * x + y * y) / 4
      }
    },
  }
}

interface Stage {
  readonly radix: number
  readonly done: number
  /** exp(-2 pi i q k / (done radix)) at [q * done + k], interleaved. */
  readonly twiddles: Float64Array
  /** exp(-2 pi i j / radix) at [j], interleaved. */
  readonly roots: Float64Array
}

/** Interleaved complex numbers in and out; the result lies in a buffer that the next call overwrites. */
function complexTransform(length: number): (values: Float64Array) => Float64Array {
  const stages: Stage[] = []
  let done = 1
  for (const radix of factorsOf(length)) {
    stages.push({
      radix,
      done,
      twiddles: unitRoots(done * radix, radix * done, (at) => Math.floor(at / done) * (at % done)),
      roots: unitRoots(radix, radix, (at) => at),
    })
    done *= radix
  }
  const buffers = [new Float64Array(2 * length), new Float64Array(2 * length)] as const
  return (values) => {
    let from = values
    for (const [index, stage] of stages.entries()) {
      const to = buffers[index % 2 === 0 ? 0 : 1]
      if (stage.radix === 4) butterfly4(from, to, stage, length)
      else butterfly(from, to, stage, length)
      from = to
    }
    return from
  }
}

function unitRoots(of: number, count: number, power: (at: number) => number): Float64Array {
  const roots = new Float64Array(2 * count)
  for (let at = 0; at < count; at++) {
    const angle = (-2 * Math.PI * (power(at) % of)) / of
    roots[2 * at] = Math.cos(angle)
    roots[2 * at + 1] = Math.sin(angle)
  }
  return roots
}

function factorsOf(length: number): readonly number[] {
  const factors: number[] = []
  let rest = length
  for (const factor of [4, 2, 3, 5]) {
    while (rest % factor === 0) {
      factors.push(factor)
      rest /= factor
    }
  }
  for (let factor = 7; rest > 1; factor += 2) {
    while (rest % factor === 0) {
      factors.push(factor)
      rest /= factor
    }
  }
  return factors
}

/** y[r radix done + p done + k] = sum over q of w^(q k) u^(q p) x[(q rest + r) done + k], with w = exp(-2 pi i/(radix done)), u = exp(-2 pi i/radix). */
function butterfly(x: Float64Array, y: Float64Array, { radix, done, twiddles, roots }: Stage, length: number): void {
  const rest = length / (radix * done)
  const turned = new Float64Array(2 * radix)
  for (let r = 0; r < rest; r++) {
    for (let k = 0; k < done; k++) {
      for (let q = 0; q < radix; q++) {
        const source = 2 * ((q * rest + r) * done + k)
        const re = x[source] ?? 0
        const im = x[source + 1] ?? 0
        const twiddle = 2 * (q * done + k)
        const c = twiddles[twiddle] ?? 0
        const s = twiddles[twiddle + 1] ?? 0
        turned[2 * q] = re * c - im * s
        turned[2 * q + 1] = re * s + im * c
      }
      for (let p = 0; p < radix; p++) {
        let re = 0
        let im = 0
        for (let q = 0; q < radix; q++) {
          const root = 2 * ((p * q) % radix)
          const a = turned[2 * q] ?? 0
          const b = turned[2 * q + 1] ?? 0
          const c = roots[root] ?? 0
          const s = roots[root + 1] ?? 0
          re += a * c - b * s
          im += a * s + b * c
        }
        const target = 2 * ((r * radix + p) * done + k)
        y[target] = re
        y[target + 1] = im
      }
    }
  }
}

/** The same for radix 4, whose roots of unity are 1, -i, -1, i. */
function butterfly4(x: Float64Array, y: Float64Array, { done, twiddles }: Stage, length: number): void {
  const rest = length / (4 * done)
  const apart = 2 * rest * done
  for (let r = 0; r < rest; r++) {
    for (let k = 0; k < done; k++) {
      const source = 2 * (r * done + k)
      const twiddle = 2 * k
      const at1 = source + apart
      const at2 = at1 + apart
      const at3 = at2 + apart
      const w1 = twiddle + 2 * done
      const w2 = w1 + 2 * done
      const w3 = w2 + 2 * done
      const re0 = x[source] ?? 0
      const im0 = x[source + 1] ?? 0
      const re1 = (x[at1] ?? 0) * (twiddles[w1] ?? 0) - (x[at1 + 1] ?? 0) * (twiddles[w1 + 1] ?? 0)
      const im1 = (x[at1] ?? 0) * (twiddles[w1 + 1] ?? 0) + (x[at1 + 1] ?? 0) * (twiddles[w1] ?? 0)
      const re2 = (x[at2] ?? 0) * (twiddles[w2] ?? 0) - (x[at2 + 1] ?? 0) * (twiddles[w2 + 1] ?? 0)
      const im2 = (x[at2] ?? 0) * (twiddles[w2 + 1] ?? 0) + (x[at2 + 1] ?? 0) * (twiddles[w2] ?? 0)
      const re3 = (x[at3] ?? 0) * (twiddles[w3] ?? 0) - (x[at3 + 1] ?? 0) * (twiddles[w3 + 1] ?? 0)
      const im3 = (x[at3] ?? 0) * (twiddles[w3 + 1] ?? 0) + (x[at3 + 1] ?? 0) * (twiddles[w3] ?? 0)
      const target = 2 * (4 * r * done + k)
      y[target] = re0 + re1 + re2 + re3
      y[target + 1] = im0 + im1 + im2 + im3
      y[target + 2 * done] = re0 + im1 - re2 - im3
      y[target + 2 * done + 1] = im0 - re1 - im2 + re3
      y[target + 4 * done] = re0 - re1 + re2 - re3
      y[target + 4 * done + 1] = im0 - im1 + im2 - im3
      y[target + 6 * done] = re0 - im1 - re2 + im3
      y[target + 6 * done + 1] = im0 + re1 - im2 - re3
    }
  }
}
