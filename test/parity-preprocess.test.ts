/** Awkward files through our decoder and preprocessing, against Hugging Face's processors. Fixture: test/fixtures/preprocess/make.py. */
import { readFileSync } from 'node:fs'
import { inflateSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { decodeImage } from '../src/media/image.ts'
import { type ImagePreprocessing, preprocessImage } from '../src/media/preprocess.ts'
import { parsePreprocessorConfig } from '../src/media/preprocessor-config.ts'

const size = z.int().min(1)
const fixture = z
  .object({
    transformers: z.string(),
    configs: z.record(z.string(), z.json()),
    cases: z.array(
      z.object({
        label: z.string(),
        file: z.base64(),
        width: size,
        height: size,
        results: z.array(z.object({ config: z.string(), dims: z.array(size), levels: z.base64() })),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(new URL('./fixtures/preprocess/cases.json', import.meta.url), 'utf8')))

/** The processor's pixels, 0 to 255: bytes, or 256ths where it rounds nothing to bytes. */
function levelsOf(text: string, { arithmetic }: ImagePreprocessing): Float64Array {
  const bytes = inflateSync(Buffer.from(text, 'base64'))
  if (arithmetic !== 'torchvision-float') return Float64Array.from(bytes)
  return Float64Array.from(new Uint16Array(new Uint8Array(bytes).buffer), (value) => value / 256)
}

/** Normalised values back to 0..255. */
function unnormalised(data: Float32Array, plane: number, { normalize }: ImagePreprocessing): Float64Array {
  return Float64Array.from(data, (value, at) => {
    const channel = Math.floor(at / plane) % 3
    return (value * (normalize?.std[channel] ?? 1) + (normalize?.mean[channel] ?? 0)) * 255
  })
}

const specs = new Map(Object.entries(fixture.configs).map(([name, config]) => [name, parsePreprocessorConfig(config)]))

test('the fixture holds at least 60 files and every processor', () => {
  expect(fixture.cases.length).toBeGreaterThanOrEqual(60)
  expect(new Set(fixture.cases.flatMap(({ results }) => results.map(({ config }) => config)))).toEqual(new Set(specs.keys()))
})

describe(`as the processors of Transformers ${fixture.transformers} give them`, () => {
  test.each(fixture.cases)('$label', async ({ label, file, width, height, results }) => {
    const image = await decodeImage(new Uint8Array(Buffer.from(file, 'base64')))
    expect([image.width, image.height]).toEqual([width, height])
    for (const { config, dims, levels } of results) {
      const spec = specs.get(config)
      if (spec === undefined) throw new Error(`no config ${config}`)
      const tensor = preprocessImage(image, spec)
      expect(tensor.dims, config).toEqual(dims)
      if (tensor.dtype !== 'float32') throw new Error('not float32')
      const ours = unnormalised(tensor.data, (dims[2] ?? 0) * (dims[3] ?? 0), spec)
      const theirs = levelsOf(levels, spec)
      const differences = ours.map((value, at) => Math.abs(value - (theirs[at] ?? Number.NaN)))
      if (label.startsWith('jpeg')) {
        const mean = differences.reduce((sum, difference) => sum + difference, 0) / differences.length
        expect(mean, config).toBeLessThan(0.5)
      } else {
        expect(Math.max(...differences), config).toBeLessThan(1.001)
        const identical = differences.filter((difference) => difference < 0.01).length / differences.length
        expect(identical, config).toBeGreaterThanOrEqual(0.999)
      }
    }
  })
})
