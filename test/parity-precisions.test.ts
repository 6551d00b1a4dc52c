/** Published precisions (half, 8 and 4 bits) through the families that open them, against Python's ONNX Runtime on the same file. Fixture: test/fixtures/precisions/make.py. */
import { readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { gunzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { onnxPrecisions } from '../encoders/blocks/onnx-layouts.ts'
import { clip } from '../encoders/clip.ts'
import { dinov2 } from '../encoders/dinov2.ts'
import { siglip } from '../encoders/siglip.ts'
import { vit } from '../encoders/vit.ts'
import { wav2vec2 } from '../encoders/wav2vec2.ts'
import { whisper } from '../encoders/whisper.ts'
import type { Encoder, Features } from '../src/model/contracts.ts'
import { float32Tensor, type NamedTensors } from '../src/tensors.ts'

const floats = z.base64().transform((text) => {
  const bytes = Uint8Array.from(Buffer.from(text, 'base64'))
  return new Float32Array(bytes.buffer)
})
const precision = z.enum(['fp16', 'int8', 'q8', 'q4', 'q4f16'])
const { onnxruntime, families } = z
  .object({
    onnxruntime: z.string(),
    families: z.array(
      z.object({
        name: z.enum(['clip', 'siglip', 'dinov2', 'vit', 'whisper', 'wav2vec2']),
        file: z.string(),
        config: z.json(),
        layer: z.union([z.literal('last'), z.int()]),
        preprocessor: z.json().optional(),
        precisions: z.record(precision, z.object({ model: z.base64(), features: floats })),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(new URL('./fixtures/precisions/files.json', import.meta.url), 'utf8')))

type Precision = z.infer<typeof precision>
type Family = Pick<(typeof families)[number], 'name' | 'layer' | 'file'>

const options = { device: 'cpu', threads: 1 } as const
const images = { clip, siglip, dinov2, vit }

/** Numbers that float32 holds exactly: what make.py feeds. */
const fractions = (length: number): Float32Array => Float32Array.from({ length }, (_, at) => ((at * 37) % 251) / 128 - 1)
/** One window, as `preprocess` would give it: what is compared is the model. */
const window = (value: NamedTensors[string], steps: number): NamedTensors => ({
  'window.0': value,
  steps: { dtype: 'int32', dims: [1], data: Int32Array.of(steps) },
  longer: { dtype: 'bool', dims: [], data: Uint8Array.of(0) },
})

async function features({ name, layer, file }: Family, folder: string, weights: Precision): Promise<Features> {
  let encoder: Encoder | undefined
  try {
    if (name === 'whisper' || name === 'wav2vec2') {
      const model = path.join(folder, 'onnx', `${file}${onnxPrecisions[weights]}.onnx`)
      const opened = name === 'whisper' ? await whisper({ ...options, model, windowSeconds: 1 }) : await wav2vec2({ ...options, model })
      encoder = opened
      const input = name === 'whisper' ? float32Tensor(fractions(8_000), [1, 80, 100]) : float32Tensor(fractions(4_000), [1, 4_000])
      return await opened.encode([window(input, name === 'whisper' ? 50 : 12)])
    }
    const opened = await images[name]({ ...options, model: folder, layer, weights })
    encoder = opened
    const data = Uint8Array.from({ length: 16 * 16 * 3 }, (_, at) => (at * 37) % 251)
    return await opened.encode([await opened.preprocess({ width: 16, height: 16, data })])
  } finally {
    await encoder?.dispose()
  }
}

describe(`the features of Python's ONNX Runtime ${onnxruntime}`, () => {
  let root = ''
  beforeAll(async () => {
    root = await mkdtemp(path.join(tmpdir(), 'modalign-precisions-'))
  })
  afterAll(() => rm(root, { recursive: true, force: true }))

  const all = families.flatMap((family) =>
    precision.options.flatMap((weights) => {
      const found = family.precisions[weights]
      return found === undefined ? [] : [{ ...family, weights, ...found }]
    }),
  )
  // A session for each file: every family and every precision once, all of them in the long run.
  const some = all.filter(({ weights }, index) => weights === precision.options[Math.floor(index / 5) % 5])

  test('there are five precisions of six families', () => {
    expect(all).toHaveLength(30)
    expect(some).toHaveLength(6)
    expect(new Set(some.map(({ weights }) => weights)).size).toBe(5)
  })

  test.each(process.env.MODALIGN_LONG === '1' ? all : some)(
    '$name, $weights',
    async ({ name, layer, file, config, preprocessor, weights, model, features: expected }) => {
      const folder = path.join(root, `${name}-${weights}`)
      await mkdir(path.join(folder, 'onnx'), { recursive: true })
      await writeFile(path.join(folder, 'config.json'), JSON.stringify(config))
      if (preprocessor !== undefined) await writeFile(path.join(folder, 'preprocessor_config.json'), JSON.stringify(preprocessor))
      await writeFile(path.join(folder, 'onnx', `${file}${onnxPrecisions[weights]}.onnx`), gunzipSync(Buffer.from(model, 'base64')))
      const { data } = await features({ name, layer, file }, folder, weights)
      expect(data.length).toBe(expected.length)
      const difference = data.reduce((most, value, at) => Math.max(most, Math.abs(value - (expected[at] ?? Number.NaN))), 0)
      // Computed in half precision, the last place of features between 2 and 4 may round otherwise: ONNX Runtime's versions differ in which operators they cast for.
      expect(difference).toBeLessThanOrEqual(weights.endsWith('16') ? 2 ** -9 : 1e-4)
    },
  )
})
