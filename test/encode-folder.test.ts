/** Encoding many pictures: in batches as one by one, and in memory that does not grow. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { mobilenetV2 } from '../encoders/mobilenet-v2.ts'
import { encodeJob, encoderThreads } from '../src/jobs/encode.ts'
import type { InputItem } from '../src/jobs/inputs.ts'
import { createImageDecoder, type ImageDecoder } from '../src/media/child-decoder.ts'
import { decodingReader } from '../src/model/media-reader.ts'
import { contentDigest } from '../src/training/content-digest.ts'
import { openFeatureStore } from '../src/training/feature-store.ts'
import { anonymousBytes } from './bench/memory.ts'
import { longOnly, skipWithout } from './skip.ts'

let root: string
let decoder: ImageDecoder
const files: string[] = []
beforeAll(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'modalign-encode-'))
  decoder = createImageDecoder({ processes: 2 })
  for (const [index, background] of ['#c04020', '#20c040', '#4020c0', '#808010', '#f0f0f0'].entries()) {
    const file = path.join(root, `${index}.png`)
    await sharp({
      create: { width: 60 + 7 * index, height: 50, channels: 3, background, noise: { type: 'gaussian', mean: 128, sigma: 40 } },
    })
      .png()
      .toFile(file)
    files.push(file)
  }
})
afterAll(async () => {
  await decoder.dispose()
  await rm(root, { recursive: true, force: true })
})

async function* items(paths: readonly string[]): AsyncGenerator<InputItem> {
  for (const [index, file] of paths.entries()) yield { id: `${index}`, source: file, path: file }
}

test('batches in two sessions give what one picture at a time gives', async () => {
  const encoded = async (name: string, batchSize: number, sessions: number): Promise<readonly Float32Array[]> => {
    const encoder = await mobilenetV2({ device: 'cpu', threads: 1, sessions })
    try {
      await using store = await openFeatureStore(path.join(root, name), { dtype: 'float32' })
      const reader = decodingReader(decoder)
      const summary = await encodeJob({
        items: items(files),
        encoder,
        reader,
        store,
        batchSize,
        batchesAtOnce: sessions + 1,
        onBad: 'fail',
      })
      expect(summary).toMatchObject({ status: 'finished', encoded: files.length, bad: 0 })
      const found: Float32Array[] = []
      for (const file of files) {
        const key = {
          modality: 'image',
          content: await contentDigest(file, {}),
          encoder: encoder.fingerprint,
          width: encoder.width,
        } as const
        const features = store.get(key)
        if (features === undefined) throw new Error(`nothing of ${file}`)
        found.push(features.data)
      }
      return found
    } finally {
      await encoder.dispose()
    }
  }
  const [single, batched] = [await encoded('single', 1, 1), await encoded('batched', 2, 2)]
  for (const [index, one] of single.entries()) {
    const other = batched[index] ?? new Float32Array(0)
    expect(other.length).toBe(one.length)
    expect(one.some((value) => value > 0.1)).toBe(true)
    expect(one.reduce((most, value, at) => Math.max(most, Math.abs(value - (other[at] ?? Number.NaN))), 0)).toBeLessThan(1e-5)
  }
})

skipWithout(process.env.MODALIGN_LONG === '1' ? undefined : longOnly).test(
  '20,000 pictures take no more memory than 5,000, though decoding processes die on the way',
  async () => {
    const total = 20_000
    const encoder = await mobilenetV2({ device: 'cpu', ...encoderThreads() })
    try {
      await using store = await openFeatureStore(path.join(root, 'many'), { dtype: 'int8' })
      // Every picture is new to the store, which keeps each under its bytes.
      const folder = await mkdtemp(path.join(root, 'many-'))
      const generated = async function* (): AsyncGenerator<InputItem> {
        for (let index = 0; index < total; index++) {
          const file = path.join(folder, `${index}.png`)
          const background = `#${(index * 97 + 0x100000).toString(16).slice(-6)}`
          await sharp({ create: { width: 16, height: 12, channels: 3, background } })
            .png()
            .toFile(file)
          if (index % 2000 === 1999) for (const pid of decoder.processIds.slice(0, 1)) process.kill(pid, 'SIGKILL')
          yield { id: `${index}`, source: file, path: file }
        }
      }
      const resident: { readonly encoded: number; readonly bytes: number }[] = []
      const summary = await encodeJob({
        items: generated(),
        encoder,
        reader: decodingReader(decoder),
        store,
        batchSize: 8,
        batchesAtOnce: 3,
        onBad: 'fail',
        onProgress: ({ encoded }) => {
          // Decoding processes are part of it.
          if (encoded % 200 === 0) resident.push({ encoded, bytes: anonymousBytes() ?? process.memoryUsage().rss })
        },
      })
      expect(summary.encoded + summary.known).toBe(total)
      // A quarter of the run is for caches and heaps to fill.
      const settled = resident.filter(({ encoded }) => encoded > total / 4)
      expect(settled.length).toBeGreaterThan(20)
      const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length
      const [x, y] = [mean(settled.map(({ encoded }) => encoded)), mean(settled.map(({ bytes }) => bytes))]
      const spread = settled.reduce((sum, { encoded }) => sum + (encoded - x) ** 2, 0)
      const slope = settled.reduce((sum, { encoded, bytes }) => sum + (encoded - x) * (bytes - y), 0) / spread
      const left = settled.map(({ encoded, bytes }) => bytes - y - slope * (encoded - x))
      const deviation = Math.sqrt(mean(left.map((value) => value ** 2)))
      const error = (deviation * Math.sqrt(settled.length / (settled.length - 2))) / Math.sqrt(spread)
      console.log(`resident memory: ${(y / 2 ** 20).toFixed(0)} MiB, slope ${slope.toFixed(0)} +- ${error.toFixed(0)} bytes a picture`)
      // A picture's tensor is 600 kB: what is kept of one in a thousand would show.
      expect(slope).toBeLessThan(Math.max(3 * error, 500))
    } finally {
      await encoder.dispose()
    }
  },
  3_600_000,
)
