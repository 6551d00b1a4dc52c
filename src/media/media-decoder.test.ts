import { execFileSync } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { skipWithout } from '../../test/skip.ts'
import { errorData } from '../errors.ts'
import { findFfmpeg } from './ffmpeg.ts'
import { createMediaDecoder } from './media-decoder.ts'

const ffmpeg = await findFfmpeg().catch(() => undefined)
const withFfmpeg = skipWithout(ffmpeg === undefined ? 'no ffmpeg on this machine: apt install ffmpeg' : undefined)
let root: string
beforeAll(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'modalign-media-'))
  const wav = Buffer.alloc(44 + 3200)
  wav.write('RIFF', 0, 'latin1')
  wav.writeUInt32LE(wav.length - 8, 4)
  wav.write('WAVEfmt ', 8, 'latin1')
  for (const [value, at] of [
    [16, 16],
    [16_000, 24],
    [32_000, 28],
    [3200, 40],
  ] as const)
    wav.writeUInt32LE(value, at)
  for (const [value, at] of [
    [1, 20],
    [1, 22],
    [2, 32],
    [16, 34],
  ] as const)
    wav.writeUInt16LE(value, at)
  wav.write('data', 36, 'latin1')
  await writeFile(path.join(root, 'a.wav'), wav)
  await sharp({ create: { width: 8, height: 6, channels: 3, background: 'red' } })
    .png()
    .toFile(path.join(root, 'a.png'))
})
afterAll(() => rm(root, { recursive: true, force: true }))

const failure = async (promise: Promise<unknown>) =>
  await promise.then(
    () => ({ code: 'DECODED' }),
    (error: unknown) => errorData(error),
  )

test('pictures and sounds below one root, more than fit at once', async () => {
  await using decoder = createMediaDecoder({ root, processes: 1, audio: { sampleRateHz: 8_000 } })
  expect(await decoder.images.decode('a.png')).toMatchObject({ width: 8, height: 6 })
  const sounds = await Promise.all(Array.from({ length: 5 }, () => decoder.audio('a.wav')))
  expect(sounds.map(({ samples }) => samples.length)).toEqual([800, 800, 800, 800, 800])
  expect((await decoder.audio('a.wav', { sampleRateHz: 16_000 })).samples).toHaveLength(1600)
  expect(await failure(decoder.audio('../a.wav'))).toMatchObject({ code: 'PATH_ESCAPE' })
  if (ffmpeg !== undefined) expect(await failure(decoder.video('a.wav'))).toMatchObject({ code: 'VIDEO_NO_STREAM' })
})

test('an abort leaves the queue; what waits goes on', async () => {
  await using decoder = createMediaDecoder({ root, processes: 1 })
  const controller = new AbortController()
  const first = decoder.audio('a.wav')
  const aborted = failure(decoder.audio('a.wav', { signal: controller.signal }))
  const last = decoder.audio('a.wav')
  controller.abort()
  expect(await aborted).toMatchObject({ code: 'ABORTED' })
  expect([(await first).samples.length, (await last).samples.length]).toEqual([1600, 1600])
})

withFfmpeg.test('disposing ends a film under way and those that wait', async () => {
  const film = path.join(root, 'long.mkv')
  execFileSync(ffmpeg ?? '', ['-v', 'error', '-f', 'lavfi', '-i', 'testsrc2=size=640x360:rate=25:duration=4', '-c:v', 'mpeg4', film])
  const decoder = createMediaDecoder({ root, processes: 1 })
  const fates = [1, 2].map(() => failure(decoder.video('long.mkv', { sampling: { type: 'uniform', frames: 64 } })))
  await decoder.dispose()
  for (const fate of await Promise.all(fates)) expect(fate).toMatchObject({ code: 'DECODER_DISPOSED' })
  expect(await failure(decoder.audio('a.wav'))).toMatchObject({ code: 'DECODER_DISPOSED' })
})
