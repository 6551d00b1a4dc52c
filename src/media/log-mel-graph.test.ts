import { expect, test } from 'vitest'
import { createSession } from '../runtime/node.ts'
import { float32Tensor } from '../tensors.ts'
import { clapLogMel, kaldiFbank, type LogMel, logMel, whisperLogMel } from './log-mel.ts'
import { lowerLogMel } from './log-mel-graph.ts'

const sound = (length: number, seed: number): Float32Array =>
  Float32Array.from(
    { length },
    (_, at) => 0.4 * Math.sin(at * 0.05 + at * at * 1e-5) + 0.05 * (((at * 7919 + seed) % 1009) / 504.5 - 1) + 0.01,
  )

/** Label, what is computed, samples, tolerance: decibels are tens of times larger numbers than the normalised kinds. */
const specs: readonly (readonly [string, LogMel, number, number])[] = [
  ['Whisper', whisperLogMel(), 16_000, 1e-4],
  ['AST, filled up', kaldiFbank({ window: 'hann', length: 64, normalize: { mean: -4.2677393, std: 2 * 4.5689974 } }), 8_100, 1e-4],
  [
    'ImageBind, cut off',
    kaldiFbank({ window: 'hann', subtractMean: true, length: 20, normalize: { mean: -4.268, std: 9.138 } }),
    8_000,
    1e-4,
  ],
  ['BEATs', kaldiFbank({ gain: 2 ** 15, normalize: { mean: 15.41663, std: 2 * 6.55582 } }), 8_000, 1e-4],
  ['CLAP', clapLogMel('rand_trunc'), 12_000, 2e-3],
]

// The same bytes in ONNX Runtime's build for servers and in its build for browsers.
const all = specs.flatMap((spec) => (['cpu', 'wasm'] as const).map((device) => [...spec, device] as const))
const few = all.filter(([label, , , , device]) => label === 'Whisper' || (label.startsWith('AST') && device === 'cpu'))
test.each(process.env.MODALIGN_LONG === '1' ? all : few)(
  '%s as a graph gives the frames of the plain computation',
  async (_, spec, length, tolerance, device) => {
    const { bytes, externalData } = lowerLogMel(spec, length)
    const session = await createSession({ bytes, ...(externalData !== undefined && { externalData }) }, { device, threads: 1 })
    try {
      const sounds = [sound(length, 0), sound(length, 500)]
      const samples = float32Tensor(Float32Array.from(sounds.flatMap((one) => [...one])), [2, length])
      const { features } = await session.run({ samples })
      for (const [window, one] of sounds.entries()) {
        const { frames, bins, values } = logMel(one, spec)
        expect(features?.dims).toEqual([2, bins, frames])
        let largest = 0
        for (let frame = 0; frame < frames; frame++) {
          for (let band = 0; band < bins; band++) {
            const mine = Number(features?.data[(window * bins + band) * frames + frame])
            largest = Math.max(largest, Math.abs(mine - (values[frame * bins + band] ?? Number.NaN)))
          }
        }
        expect(largest).toBeLessThan(tolerance)
      }
    } finally {
      await session.dispose()
    }
  },
)
