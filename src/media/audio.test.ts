/** Every bad sound that reliability's catalogue names (A1 to A16), made here as the real thing; and every kind of WAV as libsndfile reads it. */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import path from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { skipWithout, testDataMissing } from '../../test/skip.ts'
import { type ErrorData, errorData, renderError } from '../errors.ts'
import { type DecodeAudioOptions, decodeAudio } from './audio.ts'
import { findFfmpeg } from './ffmpeg.ts'
import type { MediaInput } from './source.ts'

const ffmpeg = await findFfmpeg().catch(() => undefined)
const withFfmpeg = skipWithout(ffmpeg === undefined ? 'no ffmpeg on this machine: apt install ffmpeg' : undefined)
let folder: string
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'modalign-audio-'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

const failure = async (source: MediaInput, options?: DecodeAudioOptions): Promise<ErrorData> =>
  await decodeAudio(source, options).then(
    ({ samples, notes }) => ({ code: `DECODED ${samples.length}${notes.map((note) => ` ${note}`).join('')}` }),
    (error: unknown) => errorData(error),
  )

/** What ffmpeg makes of a description of a sound. */
function made(name: string, ...options: readonly string[]): string {
  const file = path.join(folder, name)
  execFileSync(ffmpeg ?? '', ['-v', 'error', '-y', ...options, file])
  return file
}
const tone = ['-f', 'lavfi', '-i', 'sine=frequency=440:sample_rate=16000:duration=1']

interface Wav {
  readonly tag?: number
  readonly channels?: number
  readonly rate?: number
  readonly bits?: number
  readonly blockAlign?: number
  readonly data?: Uint8Array
  readonly dataSize?: number
}
const chunk = (id: string, content: Uint8Array, size = content.length): Buffer => {
  const head = Buffer.alloc(8)
  head.write(id, 'latin1')
  head.writeUInt32LE(size, 4)
  return Buffer.concat([head, content, Buffer.alloc(content.length % 2)])
}
const riff = (...chunks: readonly Uint8Array[]): Buffer => {
  const content = Buffer.concat([Buffer.from('WAVE'), ...chunks])
  return chunk('RIFF', content)
}
function formatChunk({ tag = 1, channels = 1, rate = 16_000, bits = 16, blockAlign = (channels * bits) / 8 }: Wav = {}): Buffer {
  const content = Buffer.alloc(16)
  content.writeUInt16LE(tag, 0)
  content.writeUInt16LE(channels, 2)
  content.writeUInt32LE(rate, 4)
  content.writeUInt32LE((rate * blockAlign) >>> 0, 8)
  content.writeUInt16LE(blockAlign, 12)
  content.writeUInt16LE(bits, 14)
  return chunk('fmt ', content)
}
const ramp = Buffer.from(Int16Array.from({ length: 100 }, (_, i) => i * 100).buffer)
const wav = (facts: Wav = {}): Buffer => riff(formatChunk(facts), chunk('data', facts.data ?? ramp, facts.dataSize))
const rampValues = Float32Array.from({ length: 100 }, (_, i) => (i * 100) / 32_768)

describe('WAV', () => {
  const { libsndfile, cases } = z
    .object({
      libsndfile: z.string(),
      cases: z.array(
        z.object({ label: z.string(), file: z.base64(), channels: z.int(), rate: z.int(), samples: z.base64(), ffmpeg: z.boolean() }),
      ),
    })
    .parse(JSON.parse(readFileSync(new URL('../../test/fixtures/sound/wav.json', import.meta.url), 'utf8')))
  for (const { label, file, channels, rate, samples, ffmpeg: needs } of cases) {
    ;(needs ? withFfmpeg : skipWithout(undefined)).test(`A7: ${label}: the samples of libsndfile ${libsndfile}`, async () => {
      const sound = await decodeAudio(Buffer.from(file, 'base64'))
      const bytes = new Uint8Array(Buffer.from(samples, 'base64'))
      const expected = new Float32Array(bytes.buffer)
      expect([sound.channels, sound.sampleRateHz]).toEqual([channels, rate])
      if (!needs) {
        expect(sound.samples.length).toBe(expected.length)
        expect(Buffer.compare(Buffer.from(sound.samples.buffer), Buffer.from(expected.buffer))).toBe(0)
        return
      }
      // The two pad the last block differently, and round the steps of IMA ADPCM differently.
      expect(sound.samples.length).toBeGreaterThanOrEqual(320)
      const difference = Math.max(...expected.slice(0, 320).map((value, i) => Math.abs(value - (sound.samples[i] ?? 9))))
      expect(difference).toBeLessThanOrEqual(label.includes('IMA') ? 16 / 32_768 : 0)
    })
  }

  test('any samples that wavefile writes are those that are read', async () => {
    const { WaveFile }: typeof import('wavefile') = createRequire(import.meta.url)('wavefile')
    const depths = [
      ['8', 128, 128, [0, 255]],
      ['16', 2 ** 15, 0, [-(2 ** 15), 2 ** 15 - 1]],
      ['24', 2 ** 23, 0, [-(2 ** 23), 2 ** 23 - 1]],
      ['32', 2 ** 31, 0, [-(2 ** 31), 2 ** 31 - 1]],
    ] as const
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...depths),
        fc.constantFrom('RIFF', 'RIFX'),
        fc.integer({ min: 1, max: 3 }),
        fc.array(fc.integer({ min: 0, max: 10_000 }), { minLength: 1, maxLength: 20 }),
        async ([depth, scale, zero, [low, high]], container, channels, parts) => {
          const values = parts.map((part) => Math.round(low + (part / 10_000) * (high - low)))
          const written = new WaveFile()
          // The same in every channel, so that the mean is the value.
          written.fromScratch(
            channels,
            8_000,
            depth,
            values.flatMap((value) => Array.from({ length: channels }, () => value)),
            { container },
          )
          const { samples } = await decodeAudio(written.toBuffer())
          const expected = Float32Array.from(values, (value) => (value - zero) / scale)
          for (const [i, sample] of samples.entries()) expect(sample).toBeCloseTo(expected[i] ?? 9, 6)
          expect(samples).toHaveLength(values.length)
        },
      ),
      { numRuns: 60 },
    )
  })

  test('A1: sizes that were never written go to the end; sizes beyond the end are a cut file', async () => {
    expect(await failure(wav({ dataSize: 0xffffffff }))).toEqual({ code: 'DECODED 100 open-ended' })
    expect(await failure(wav({ dataSize: 0 }))).toEqual({ code: 'DECODED 100 open-ended' })
    const streamed = wav()
    streamed.writeUInt32LE(0, 4)
    expect(await failure(streamed)).toEqual({ code: 'DECODED 100' })
    const cut = wav({ dataSize: 400 })
    expect(await failure(cut)).toMatchObject({ code: 'AUDIO_TRUNCATED', got: 'chunk "data" at byte 36, 400 bytes of 200' })
    expect(await failure(cut, { truncated: 'accept' })).toEqual({ code: 'DECODED 100 truncated' })
  })

  test.each([
    ['data before fmt', riff(chunk('data', ramp), formatChunk()), 'chunk "data" at byte 12'],
    ['no fmt', riff(chunk('LIST', ramp)), 'no chunk "fmt "'],
    ['no data', riff(formatChunk()), 'no chunk "data"'],
    ['two fmt', riff(formatChunk(), formatChunk(), chunk('data', ramp)), 'a second chunk "fmt " at byte 36'],
    ['a short fmt', riff(chunk('fmt ', ramp.subarray(0, 10)), chunk('data', ramp)), 'chunk "fmt " at byte 12 of 10 bytes'],
    ['a header alone', Buffer.from('RIFF\0\0\0\0WAVE', 'latin1'), 'no chunk "fmt "'],
  ])('A2: %s', async (_, file, got) => expect(await failure(file)).toMatchObject({ code: 'AUDIO_STRUCTURE', got }))

  test('A3: a chunk of odd length, padded or not', async () => {
    const padded = riff(formatChunk(), chunk('note', Buffer.from('abc')), chunk('data', ramp))
    const at = padded.indexOf('abc') + 3
    const bare = Buffer.concat([padded.subarray(0, at), padded.subarray(at + 1)])
    for (const file of [padded, bare]) expect((await decodeAudio(file)).samples).toEqual(rampValues)
  })

  test.each([
    [{ channels: 0, blockAlign: 2 }, 'AUDIO_CHANNELS'],
    [{ channels: 65_535, blockAlign: 2 }, 'AUDIO_CHANNELS'],
    [{ rate: 0 }, 'AUDIO_RATE'],
    [{ rate: 1 }, 'AUDIO_RATE'],
    [{ rate: 4_000_000_000 }, 'AUDIO_RATE'],
    [{ bits: 0, blockAlign: 2 }, 'AUDIO_BITS'],
    [{ bits: 7, blockAlign: 1 }, 'AUDIO_BITS'],
    [{ bits: 16, blockAlign: 3 }, 'AUDIO_BITS'],
    [{ bits: 16, blockAlign: 0 }, 'AUDIO_BITS'],
    [{ bits: 64, blockAlign: 8 }, 'AUDIO_BITS'],
    [{ tag: 3, bits: 16 }, 'AUDIO_BITS'],
  ] as const)('A4, A5, A6: %j', async (facts, code) => expect(await failure(wav(facts))).toMatchObject({ code }))

  test('A6: fewer bits than their container lie in its high ones', async () => {
    expect((await decodeAudio(wav({ bits: 12, blockAlign: 2 }))).samples).toEqual(rampValues)
    const wide = Buffer.from(Int32Array.from({ length: 100 }, (_, i) => i * 100 * 65_536).buffer)
    expect((await decodeAudio(wav({ bits: 24, blockAlign: 4, data: wide }))).samples).toEqual(rampValues)
    expect((await decodeAudio(wav({ bits: 20, blockAlign: 4, data: wide }))).samples).toEqual(rampValues)
  })

  test.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1e38, -20_000])('A8: %d as a sample', async (bad) => {
    const data = Float32Array.from({ length: 50 }, (_, i) => (i === 20 ? bad : 0.5))
    const file = wav({ tag: 3, bits: 32, data: Buffer.from(data.buffer) })
    expect(await failure(file)).toMatchObject({ code: 'AUDIO_NOT_FINITE', got: expect.stringContaining('sample 20') })
    const { samples, notes } = await decodeAudio(file, { badSamples: 'zero' })
    expect([samples[19], samples[20], samples[21], notes]).toEqual([0.5, 0, 0.5, ['samples-zeroed']])
  })

  test('A8: a little beyond full scale is sound', async () => {
    const data = Buffer.from(Float32Array.of(1.5, -1.25).buffer)
    expect([...(await decodeAudio(wav({ tag: 3, bits: 32, data }))).samples]).toEqual([1.5, -1.25])
  })

  test('A9: no sample at all becomes one of silence, never an empty tensor; one sample is a sound', async () => {
    const none = await decodeAudio(wav({ data: new Uint8Array() }))
    expect([[...none.samples], none.notes]).toEqual([[0], ['no-samples']])
    expect([...(await decodeAudio(wav({ data: ramp.subarray(2, 4) }))).samples]).toEqual([100 / 32_768])
    expect((await decodeAudio(wav({ data: ramp.subarray(0, 2) }), { sampleRateHz: 48_000 })).samples).toHaveLength(3)
  })

  test('A10: of a day of sound only what is allowed is read, and the cut is reported', async () => {
    const file = path.join(folder, 'day.wav')
    const rate = 44_100
    const bytes = rate * 4 * 3600 * 5
    await writeFile(file, wav({ channels: 2, rate, data: new Uint8Array(), dataSize: bytes }))
    const handle = await open(file, 'r+')
    await handle.truncate(44 + bytes)
    await handle.close()
    const before = process.memoryUsage().rss
    const sound = await decodeAudio(file, { limits: { maxBytes: 2 ** 33, maxSeconds: 10 } })
    expect([sound.samples.length, sound.notes]).toEqual([441_000, ['cut']])
    expect(process.memoryUsage().rss - before).toBeLessThan(100e6)
    expect(await failure(file, { limits: { maxBytes: 2 ** 33, maxSeconds: 10 }, tooLong: 'refuse' })).toMatchObject({
      code: 'AUDIO_TOO_LONG',
    })
    expect(await failure(file, { limits: { maxBytes: 1e6 } })).toMatchObject({ code: 'AUDIO_TOO_LARGE' })
  })

  test('A11: RF64 whose samples begin beyond 4 GiB', async () => {
    const file = path.join(folder, 'long.wav')
    const frames = 2 ** 31 + 1000
    const sizes = Buffer.alloc(28)
    sizes.writeBigUInt64LE(BigInt(frames * 2 + 72), 0)
    sizes.writeBigUInt64LE(BigInt(frames * 2), 8)
    sizes.writeBigUInt64LE(BigInt(frames), 16)
    const head = riff(chunk('ds64', sizes), formatChunk(), chunk('data', new Uint8Array(), 0xffffffff))
    head.write('RF64', 'latin1')
    head.writeUInt32LE(0xffffffff, 4)
    await writeFile(file, head)
    const handle = await open(file, 'r+')
    await handle.truncate(head.length + frames * 2)
    await handle.write(ramp, 0, ramp.length, head.length + (frames - 100) * 2)
    await handle.close()
    const startSeconds = (frames - 100) / 16_000
    const { samples } = await decodeAudio(file, { limits: { maxBytes: 2 ** 34 }, span: { startSeconds, endSeconds: startSeconds + 1 } })
    expect(samples).toEqual(rampValues)
  })

  test('A14: ten million empty chunks', async () => {
    const many = Buffer.alloc(8 * 200_000)
    for (let at = 0; at < many.length; at += 8) many.write('junk', at, 'latin1')
    expect(await failure(riff(formatChunk(), many, chunk('data', ramp)))).toMatchObject({
      code: 'AUDIO_STRUCTURE',
      got: 'more than 10000 chunks',
    })
  })

  test('A15: text inside is not looked at; names of chunks are escaped in errors', async () => {
    const info = chunk('LIST', Buffer.from('INFOISFT\x08\0\0\0\x1b[31m\x07\u202e'))
    expect((await decodeAudio(riff(formatChunk(), info, chunk('data', ramp)))).samples).toEqual(rampValues)
    const error = await failure(riff(formatChunk(), chunk('\x1b[2J', ramp, 10_000)))
    expect(error.code).toBe('AUDIO_TRUNCATED')
    expect(renderError(error)).not.toContain('\x1b')
  })

  test('A16: digital silence is sound', async () => {
    expect((await decodeAudio(wav({ data: new Uint8Array(200) }))).samples).toEqual(new Float32Array(100))
  })

  test('spans are cut to the sample, and nothing else is read', async () => {
    const { samples } = await decodeAudio(wav(), { span: { startSeconds: 10 / 16_000, endSeconds: 30 / 16_000 } })
    expect(samples).toEqual(rampValues.slice(10, 30))
    expect((await decodeAudio(wav(), { span: { startSeconds: 0, endSeconds: 100 } })).samples).toHaveLength(100)
    expect(await failure(wav(), { span: { startSeconds: 1, endSeconds: 2 } })).toMatchObject({ code: 'MEDIA_SPAN' })
    for (const [startSeconds, endSeconds] of [
      [-1, 1],
      [2, 1],
      [1, 1],
      [Number.NaN, 1],
    ] as const)
      expect(await failure(wav(), { span: { startSeconds, endSeconds } })).toMatchObject({ code: 'MEDIA_SPAN' })
  })

  test('any header is read or refused with an error of ours', async () => {
    const start = wav()
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(start.length - 1), fc.nat(255)), { maxLength: 6 }),
        fc.nat(start.length),
        async (changes, cut) => {
          const file = Buffer.from(start)
          for (const [at, value] of changes) file[at] = value
          const { code } = await failure(file.subarray(0, cut === 0 ? start.length : cut), { ffmpeg: '/nowhere/ffmpeg' })
          expect(code).toMatch(/^(DECODED|AUDIO_[A-Z_]+$|FFMPEG_MISSING$)/)
        },
      ),
      { numRuns: 150 },
    )
  })
})

describe('what is no sound', () => {
  test.each([
    ['', 'AUDIO_EMPTY', '0 bytes'],
    ['<html>404</html>', 'AUDIO_CONTAINER', 'HTML'],
    ['#EXTM3U\nfile:///etc/passwd', 'AUDIO_CONTAINER', 'playlist'],
    ['GIF89a', 'AUDIO_CONTAINER', 'a picture (gif)'],
    ['some words', 'AUDIO_CONTAINER', '73 6f 6d 65'],
  ])('%j', async (content, code, got) => {
    expect(await failure(Buffer.from(content))).toMatchObject({ code, got: expect.stringContaining(got) })
  })

  test('without ffmpeg: what to install', async () => {
    expect(await failure(Buffer.from('fLaC....'), { ffmpeg: '/nowhere/ffmpeg' })).toMatchObject({
      code: 'FFMPEG_MISSING',
      expected: 'ffmpeg, which decodes every sound but WAV',
      hint: expect.stringContaining('apt install ffmpeg'),
    })
  })
})

withFfmpeg.describe('through ffmpeg', () => {
  test('FLAC gives the samples of the WAV, from a file, from bytes and cut', async () => {
    const source = made('a.wav', ...tone)
    const flac = made('a.flac', '-i', source)
    const { samples } = await decodeAudio(source)
    expect(samples).toHaveLength(16_000)
    expect(Buffer.compare(Buffer.from((await decodeAudio(flac)).samples.buffer), Buffer.from(samples.buffer))).toBe(0)
    expect((await decodeAudio(readFileSync(flac))).samples).toEqual(samples)
    const span = { startSeconds: 0.25, endSeconds: 0.5 }
    expect((await decodeAudio(flac, { span })).samples).toEqual(samples.slice(4_000, 8_000))
    expect(await failure(flac, { limits: { maxSeconds: 0.5 } })).toEqual({ code: 'DECODED 8000 cut' })
    expect(await failure(flac, { limits: { maxSeconds: 1 } })).toEqual({ code: 'DECODED 16000' })
    expect(await failure(flac, { span: { startSeconds: 5, endSeconds: 6 } })).toMatchObject({ code: 'MEDIA_SPAN' })
  })

  test('stereo is mixed by the mean, five channels too', async () => {
    const channels = ['0.5', '-0.25', '0.125', '0', '0.75']
    const five = made('five.flac', '-f', 'lavfi', '-i', `aevalsrc=${channels.join('|')}:c=5.0:s=8000:d=0.1`)
    const { samples, channels: count } = await decodeAudio(five)
    expect(count).toBe(5)
    for (const value of samples) expect(value).toBeCloseTo(0.225, 6)
  })

  test('A12: an ID3 tag of megabytes before the sound, and before AAC', async () => {
    const mp3 = readFileSync(made('a.mp3', ...tone))
    const plain = await decodeAudio(mp3)
    const size = 3_000_000
    const tag = Buffer.concat([
      Buffer.from('ID3\x03\0\0', 'latin1'),
      Buffer.from([(size >> 21) & 127, (size >> 14) & 127, (size >> 7) & 127, size & 127]),
      Buffer.alloc(size),
    ])
    const bare = mp3.subarray(10 + [6, 7, 8, 9].reduce((sum, at) => sum * 128 + (mp3[at] ?? 0), 0))
    expect((await decodeAudio(Buffer.concat([tag, bare]))).samples.length).toBe(plain.samples.length)
    expect(await failure(Buffer.concat([tag, bare]), { limits: { maxBytes: 2 ** 20 } })).toMatchObject({ code: 'AUDIO_TOO_LARGE' })
    const aac = await decodeAudio(Buffer.concat([tag, readFileSync(made('a.aac', ...tone))]))
    expect([aac.format, aac.samples.length > 15_000]).toEqual(['aac', true])
  })

  test('A13: a film without sound; M4A from bytes, whose index lies at the end', async () => {
    const film = made('silent.mp4', '-f', 'lavfi', '-i', 'color=red:size=32x32:duration=0.2')
    expect(await failure(film)).toMatchObject({ code: 'AUDIO_NO_STREAM', file: film })
    const m4a = made('a.m4a', ...tone)
    const fromFile = await decodeAudio(m4a)
    expect(fromFile.format).toBe('mov')
    expect((await decodeAudio(readFileSync(m4a))).samples).toEqual(fromFile.samples)
  })

  test('cut and broken files', async () => {
    const m4a = readFileSync(made('b.m4a', ...tone))
    expect(await failure(m4a.subarray(0, m4a.length >> 1))).toMatchObject({
      code: 'AUDIO_TRUNCATED',
      hint: expect.stringContaining('accept'),
    })
    const broken = readFileSync(made('b.flac', ...tone))
    broken.fill(0x55, 42)
    expect((await failure(broken)).code).toMatch(/^(AUDIO_DECODE|AUDIO_TRUNCATED|DECODED \d+ .*decoder-warning)$/)
  })

  test('time and aborts', async () => {
    const flac = made('c.flac', ...tone)
    expect(await failure(flac, { limits: { timeoutMs: 1 } })).toMatchObject({ code: 'AUDIO_TIMEOUT' })
    await expect(decodeAudio(flac, { signal: AbortSignal.abort() })).rejects.toMatchObject({ name: 'AbortError' })
    const controller = new AbortController()
    const decoding = decodeAudio(flac, { signal: controller.signal })
    controller.abort()
    await expect(decoding).rejects.toMatchObject({ name: 'AbortError' })
  })
})

const data = process.env.MODALIGN_TEST_DATA
skipWithout(
  data === undefined ? testDataMissing : ffmpeg === undefined ? 'no ffmpeg on this machine: apt install ffmpeg' : undefined,
).describe('real recordings', () => {
  test.each(['1.mp3', '4.mp3', '2.wav', '3.flac'])('%s: the samples of ffmpeg, mixed', async (name) => {
    const file = path.join(data ?? '', 'records/mllm_demo_data', name)
    const { samples, channels, sampleRateHz } = await decodeAudio(file)
    const raw = execFileSync(ffmpeg ?? '', ['-v', 'error', '-i', file, '-f', 'f32le', '-'], { maxBuffer: 2 ** 28 })
    const all = new Float32Array(new Uint8Array(raw).buffer)
    expect(samples.length).toBe(all.length / channels)
    const difference = samples.reduce((most, value, frame) => {
      let sum = 0
      for (let channel = 0; channel < channels; channel++) sum += all[frame * channels + channel] ?? 0
      return Math.max(most, Math.abs(value - Math.fround(sum / channels)))
    }, 0)
    expect(difference).toBe(0)
    expect((await decodeAudio(file, { sampleRateHz: 16_000 })).samples.length).toBe(Math.ceil((samples.length * 16_000) / sampleRateHz))
  })
})
