/** Encoders by their names on the Hugging Face Hub, from its cache on disk. Downloads are tested where names are resolved: src/weights/hub. */
import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { clip } from '../encoders/clip.ts'
import { openclip } from '../encoders/openclip.ts'
import { vit } from '../encoders/vit.ts'
import { whisper } from '../encoders/whisper.ts'
import { encoderCatalogue } from '../src/cli/catalogues.ts'

const fixture = (name: string): string => fileURLToPath(new URL(`fixtures/${name}`, import.meta.url))
const commit = 'a'.repeat(40)
const options = { device: 'cpu', threads: 1 } as const
let cache = ''

async function cached(name: string, from: string): Promise<void> {
  const folder = path.join(cache, `models--${name.replace('/', '--')}`)
  await mkdir(path.join(folder, 'refs'), { recursive: true })
  await writeFile(path.join(folder, 'refs/main'), commit)
  await cp(from, path.join(folder, 'snapshots', commit), { recursive: true })
}

beforeAll(async () => {
  cache = await mkdtemp(path.join(tmpdir(), 'modalign-hub-'))
  vi.stubEnv('HF_HUB_CACHE', cache)
  await cached('acme/tiny-clip', fixture('vision/clip'))
  await cached('acme/tiny-openclip', fixture('vision/openclip'))
  await cached('acme/tiny-vit', fixture('vision/onnx-community/vit'))
  await cached('acme/tiny-whisper', fixture('audio/families/whisper'))
})
afterAll(async () => {
  vi.unstubAllEnvs()
  await rm(cache, { recursive: true, force: true })
})

test('a name stands for the folder, or the file, that the cache has', async () => {
  const named = await clip({ ...options, model: 'acme/tiny-clip' })
  const own = await clip({ ...options, model: fixture('vision/clip') })
  expect(named.fingerprint).toBe(own.fingerprint)
  // A saved model remembers where that is.
  expect(named.recipe?.model).toBe(path.join(cache, 'models--acme--tiny-clip/snapshots', commit))
  const file = await vit({ ...options, model: `acme/tiny-vit/onnx/model_q4.onnx@${commit}` })
  expect(file.label).toContain('ViT')
  const sound = await encoderCatalogue(options).whisper?.({ model: 'acme/tiny-whisper', windowSeconds: 1 })
  expect(sound?.width).toBe(16)
  await Promise.all([named, own, file, sound].map((encoder) => encoder?.dispose()))
})

test('a repository of OpenCLIP’s own files is found by its name', async () => {
  const named = await openclip({ ...options, model: 'acme/tiny-openclip' })
  const own = await openclip({ ...options, model: fixture('vision/openclip') })
  expect(named.fingerprint).toBe(own.fingerprint)
  await Promise.all([named.dispose(), own.dispose()])
})

test('what the cache has not is asked of nobody', async () => {
  await expect(whisper({ ...options, model: 'acme/elsewhere' })).rejects.toMatchObject({ code: 'HUB_NOT_CACHED' })
  vi.stubEnv('HF_HUB_OFFLINE', '1')
  await expect(clip({ ...options, model: 'acme/elsewhere', download: true })).rejects.toMatchObject({ code: 'HUB_OFFLINE' })
})
