/** Every bad film that reliability's catalogue names (V1 to V18), made here by ffmpeg as the real thing; frames and times against ffmpeg's own. */
import { execFileSync } from 'node:child_process'
import { chmodSync } from 'node:fs'
import { copyFile, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { longOnly, skipWithout, testDataMissing } from '../../test/skip.ts'
import { type ErrorData, errorData } from '../errors.ts'
import { decodeAudio } from './audio.ts'
import { findFfmpeg } from './ffmpeg.ts'
import type { MediaInput } from './source.ts'
import { type DecodeVideoOptions, decodeVideo, videoFrames } from './video.ts'

const ffmpeg = await findFfmpeg().catch(() => undefined)
const missing = ffmpeg === undefined ? 'no ffmpeg on this machine: apt install ffmpeg' : undefined
const ffprobe = ffmpeg?.replace(/ffmpeg(?=[^/]*$)/, 'ffprobe')
let folder: string
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'modalign-video-'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

const long = skipWithout(process.env.MODALIGN_LONG === '1' ? undefined : longOnly)

const run = (...options: readonly string[]): Buffer =>
  execFileSync(ffmpeg ?? '', ['-v', 'error', '-y', ...options], { maxBuffer: 2 ** 28, stdio: ['ignore', 'pipe', 'pipe'] })
function made(name: string, ...options: readonly string[]): string {
  const file = path.join(folder, name)
  run(...options, file)
  return file
}
const failure = async (source: MediaInput, options?: DecodeVideoOptions): Promise<ErrorData> =>
  await decodeVideo(source, options).then(
    ({ frames }) => ({ code: `DECODED ${frames.length}` }),
    (error: unknown) => errorData(error),
  )
const source = (seconds: number, rate = 25, size = '48x32'): readonly string[] => [
  '-f',
  'lavfi',
  '-i',
  `testsrc2=size=${size}:rate=${rate}:duration=${seconds}`,
]
/** With frames shown in another order than they are coded. */
const x264 = ['-c:v', 'libx264', '-preset', 'ultrafast', '-bf', '2', '-g', '10', '-pix_fmt', 'yuv420p']

/** All frames as ffmpeg itself writes them. */
function dumped(file: string, width: number, height: number): readonly Buffer[] {
  const raw = run('-i', file, '-map', '0:v:0', '-vsync', 'passthrough', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-')
  return Array.from({ length: raw.length / (width * height * 3) }, (_, i) =>
    raw.subarray(i * width * height * 3, (i + 1) * width * height * 3),
  )
}
/** Times of showing as ffprobe reads them, from the beginning of the file. */
function probed(file: string): readonly number[] {
  const read = (...entries: readonly string[]): string =>
    execFileSync(ffprobe ?? '', ['-v', 'error', '-select_streams', 'v:0', ...entries, '-of', 'csv=p=0', file]).toString()
  const start = Number.parseFloat(read('-show_entries', 'format=start_time'))
  return (
    read('-show_entries', 'frame=best_effort_timestamp_time')
      .match(/-?\d+\.\d+/g)
      ?.map((time) => Number(time) - start) ?? []
  )
}
async function everyFrame(file: MediaInput, options: DecodeVideoOptions = {}) {
  const { totalFrames } = await decodeVideo(file, { ...options, sampling: { type: 'uniform', frames: 1 } })
  return await decodeVideo(file, { ...options, sampling: { type: 'uniform', frames: totalFrames } })
}

describe('what is refused before ffmpeg runs', () => {
  const noProgram = { ffmpeg: '/nowhere/ffmpeg' }

  test.each([
    ['V1: an HLS playlist', '#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n', 'playlist'],
    ['V1: an HLS playlist of a server', '#EXTM3U\nhttp://169.254.169.254/latest\n', 'playlist'],
    ['V3: an ffconcat script', 'ffconcat version 1.0\nfile /etc/passwd\n', 'script'],
    ['V3: SDP', 'v=0\no=- 0 0 IN IP4 127.0.0.1\n', '76 3d'],
    ['V3: DASH', '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>', 'XML'],
    ['a page', '<!DOCTYPE html><html>', 'HTML'],
    ['a picture', 'GIF89a', 'picture'],
  ])('%s', async (_, content, got) => {
    const file = path.join(folder, 'film.mp4')
    await writeFile(file, content)
    expect(await failure(file, noProgram)).toMatchObject({ code: 'VIDEO_CONTAINER', got: expect.stringContaining(got), file })
  })

  test('nothing, too much, bad options', async () => {
    expect(await failure(new Uint8Array(), noProgram)).toMatchObject({ code: 'VIDEO_EMPTY' })
    expect(await failure(new Uint8Array(100), { limits: { maxBytes: 99 } })).toMatchObject({ code: 'VIDEO_TOO_LARGE' })
    expect(await failure(new Uint8Array(100), { sampling: { type: 'uniform', frames: 0 } })).toMatchObject({ code: 'VIDEO_SAMPLING' })
    expect(await failure(new Uint8Array(100), { span: { startSeconds: 2, endSeconds: 1 } })).toMatchObject({ code: 'MEDIA_SPAN' })
    expect(await failure('http://169.254.169.254/film.mp4')).toMatchObject({ code: 'URL_NOT_ALLOWED' })
  })

  test('V14: no ffmpeg: what to install', async () => {
    const file = path.join(folder, 'any.mkv')
    await writeFile(file, Buffer.from('1a45dfa3', 'hex'))
    expect(await failure(file, noProgram)).toMatchObject({ code: 'FFMPEG_MISSING', hint: expect.stringContaining('apt install ffmpeg') })
  })

  test.skipIf(process.platform === 'win32')('V13, V14: a program that hangs, and one that something kills', async () => {
    const script = async (name: string, text: string): Promise<string> => {
      const file = path.join(folder, name)
      await writeFile(file, `#!/bin/sh\nPATH=/usr/bin:/bin\n${text}\n`)
      chmodSync(file, 0o755)
      return file
    }
    const film = Buffer.from('1a45dfa3', 'hex')
    expect(await failure(film, { ffmpeg: await script('hangs', 'sleep 600'), limits: { timeoutMs: 300 } })).toMatchObject({
      code: 'VIDEO_TIMEOUT',
    })
    expect(await failure(film, { ffmpeg: await script('dies', 'exit 137') })).toMatchObject({
      code: 'VIDEO_DECODE',
      hint: expect.stringContaining('memory'),
    })
  })
})

skipWithout(missing).describe('films', () => {
  let film: string
  beforeAll(() => {
    film = made('film.mkv', ...source(2), ...x264)
  })

  test('frames and times are those that ffmpeg and ffprobe give, coded out of order', async () => {
    const dump = dumped(film, 48, 32)
    const { frames, timesSeconds, indices, ...facts } = await decodeVideo(film, { sampling: { type: 'uniform', frames: 6 } })
    expect(indices).toEqual([0, 9, 19, 29, 39, 49])
    expect(facts).toMatchObject({ format: 'matroska', width: 48, height: 32, totalFrames: 50 })
    expect(frames.map(({ data }, i) => Buffer.compare(data, dump[indices[i] ?? 0] ?? Buffer.alloc(0)))).toEqual(frames.map(() => 0))
    const times = probed(film)
    for (const [i, time] of timesSeconds.entries()) expect(time).toBeCloseTo(times[indices[i] ?? 0] ?? -1, 5)
  })

  test('times in any order, repeats, and the end', async () => {
    const { indices, frames } = await decodeVideo(film, { sampling: { type: 'times', seconds: [1.99, 0, 0.41, 0.4, 0, 99] } })
    expect(indices).toEqual([49, 0, 10, 10, 0, 49])
    expect(frames[1]).toBe(frames[4])
    expect(await failure(film, { sampling: { type: 'times', seconds: [99] }, shortage: 'error' })).toMatchObject({
      code: 'VIDEO_TOO_SHORT',
    })
  })

  test('frames a second, key frames, scenes', async () => {
    expect((await decodeVideo(film, { sampling: { type: 'fps', fps: 2 } })).timesSeconds).toEqual([0, 0.48, 1, 1.48])
    expect((await decodeVideo(film, { sampling: { type: 'keyframes' } })).indices).toEqual([0, 10, 20, 30, 40])
    const cut = made(
      'cut.mkv',
      '-f',
      'lavfi',
      '-i',
      'color=red:s=32x32:d=0.4',
      '-f',
      'lavfi',
      '-i',
      'color=blue:s=32x32:d=0.4',
      '-filter_complex',
      '[0][1]concat',
      ...x264,
    )
    const scenes = await decodeVideo(cut, { sampling: { type: 'scenes' } })
    expect(scenes.indices).toEqual([0, 10])
    expect(scenes.frames.map(({ data }) => (data[0] ?? 0) > (data[2] ?? 0))).toEqual([true, false])
  })

  test('a part: only its frames are counted', async () => {
    const { indices, totalFrames, timesSeconds, endSeconds } = await decodeVideo(film, {
      span: { startSeconds: 0.5, endSeconds: 1 },
      sampling: { type: 'uniform', frames: 3 },
    })
    // The frame of 0.48 s is still on the screen at 0.5 s.
    expect([indices, totalFrames, timesSeconds, endSeconds]).toEqual([[0, 6, 12], 13, [0.48, 0.72, 0.96], 1])
    expect(await failure(film, { span: { startSeconds: 5, endSeconds: 6 } })).toMatchObject({ code: 'MEDIA_SPAN' })
  })

  long.test('the size that is asked for', async () => {
    const sizes = async (size: DecodeVideoOptions['size']) => {
      const { frames } = await decodeVideo(film, { size, sampling: { type: 'uniform', frames: 1 } })
      return frames.map(({ width, height, data }) => [width, height, data.length])
    }
    expect(await sizes({ width: 20, height: 30 })).toEqual([[20, 30, 1800]])
    expect(await sizes({ longestEdge: 24 })).toEqual([[24, 16, 1152]])
    expect(await sizes({ longestEdge: 1000 })).toEqual([[48, 32, 4608]])
    expect(await failure(film, { size: { width: 0, height: 3 } })).toMatchObject({ code: 'VIDEO_SIZE' })
    expect(await failure(film, { limits: { maxFrameBytes: 10_000 } })).toMatchObject({
      code: 'VIDEO_TOO_LARGE',
      hint: expect.stringContaining('videoFrames'),
    })
  })

  test('from bytes, its index at the end, nothing is left on the disk; V4: names that mean something to shells and to ffmpeg', async () => {
    const mp4 = made('film.mp4', '-i', film, '-c', 'copy')
    const before = await readdir(tmpdir())
    const sampling = { type: 'uniform', frames: 3 } as const
    const expected = (await decodeVideo(mp4, { sampling })).frames
    expect((await decodeVideo(await readFile(mp4), { sampling })).frames).toEqual(expected)
    expect(
      (await readdir(tmpdir())).filter((name) => name.startsWith('modalign-') && !before.includes(name) && name.length === 15),
    ).toEqual([])
    for (const name of ['-y', 'concat:a|b', 'a;touch b', 'x%03d.png', '$(id).mp4', 'new\nline.mp4']) {
      await copyFile(mp4, path.join(folder, name))
      expect(await failure(name, { root: folder, sampling })).toMatchObject({ code: name.startsWith('concat:') ? 'PATH_URL' : 'DECODED 3' })
    }
  })

  test('V18: leaving the loop ends ffmpeg', async () => {
    for await (const { index, seconds, image } of videoFrames(film, { sampling: { type: 'uniform', frames: 50 } })) {
      expect([index, seconds, image.width]).toEqual([0, 0, 48])
      break
    }
    if (process.platform === 'linux') expect(await children()).toEqual([])
    await expect(decodeVideo(film, { signal: AbortSignal.abort() })).rejects.toMatchObject({ name: 'AbortError' })
    // While ffmpeg works, and when it has given all that is left: one frame, three times.
    for (const sampling of [
      { type: 'uniform', frames: 50 },
      { type: 'times', seconds: [0, 0, 0] },
    ] as const) {
      const controller = new AbortController()
      const frames = videoFrames(film, { sampling, signal: controller.signal })
      await frames.next()
      controller.abort()
      await expect(
        (async () => {
          for await (const _ of frames);
        })(),
      ).rejects.toMatchObject({ name: 'AbortError' })
    }
    if (process.platform === 'linux') expect(await children()).toEqual([])
  })

  long.test('V2: a decoder that is not on the list', async () => {
    const odd = made('odd.avi', ...source(0.2), '-c:v', 'zmbv')
    expect(await failure(odd)).toMatchObject({ code: 'VIDEO_DECODE' })
  })

  test('V5: cut files', async () => {
    const mp4 = await readFile(made('whole.mp4', '-i', film, '-c', 'copy'))
    expect(await failure(mp4.subarray(0, mp4.length - 500))).toMatchObject({
      code: 'VIDEO_TRUNCATED',
      hint: expect.stringContaining('accept'),
    })
    const fast = await readFile(made('fast.mp4', '-i', film, '-c', 'copy', '-movflags', '+faststart'))
    const cut = fast.subarray(0, fast.length - 3_000)
    expect(await failure(cut)).toMatchObject({ code: 'VIDEO_TRUNCATED', got: expect.stringContaining('mdat') })
    const accepted = await decodeVideo(cut, { truncated: 'accept', sampling: { type: 'uniform', frames: 4 } })
    expect(accepted.frames).toHaveLength(4)
    expect(accepted.totalFrames).toBeLessThan(50)
  })

  test('V6: one frame, asked for eight', async () => {
    const one = made('one.mp4', ...source(0.04), ...x264)
    const { frames, totalFrames } = await decodeVideo(one)
    expect([frames.length, totalFrames, new Set(frames).size]).toEqual([8, 1, 1])
    expect(await failure(one, { shortage: 'error' })).toMatchObject({ code: 'VIDEO_TOO_SHORT' })
  })

  long.test('V7: a stream that never said how long it is', async () => {
    const streamed = run(...source(1), ...x264, '-f', 'matroska', '-')
    expect(await decodeVideo(streamed, { sampling: { type: 'uniform', frames: 2 } })).toMatchObject({
      indices: [0, 24],
      endSeconds: expect.closeTo(1, 5),
    })
  })

  const timed: readonly (readonly [string, string, readonly string[]])[] = [
    ['a variable rate', 'vfr.mp4', [...source(2), '-vf', "select='lt(n,10)+not(mod(n,7))'", '-vsync', 'vfr', ...x264]],
    ['a transport stream that begins at 1.4 s', 'late.ts', [...source(1), ...x264]],
    ['an edit list', 'edited.mp4', []],
    ['30000/1001 frames a second', 'ntsc.mov', ['-f', 'lavfi', '-i', 'testsrc2=size=48x32:rate=30000/1001:duration=0.5', ...x264]],
  ]
  for (const [what, name, options] of timed) {
    ;(name === 'vfr.mp4' ? skipWithout(undefined) : long).test(`V8: ${what}`, async () => {
      const file =
        options.length > 0
          ? made(name, ...options)
          : made(name, '-ss', '0.5', '-i', made('toedit.mp4', '-i', film, '-c', 'copy'), '-c', 'copy')
      const { frames, timesSeconds } = await everyFrame(file)
      const times = probed(file).filter((time) => time > -1e-6)
      expect(timesSeconds).toHaveLength(times.length)
      for (const [i, time] of timesSeconds.entries()) expect(time).toBeCloseTo(times[i] ?? -1, 4)
      const dump = dumped(file, 48, 32)
      expect(frames.length).toBe(dump.length)
      expect(frames.map(({ data }, i) => Buffer.compare(data, dump[i] ?? Buffer.alloc(0)))).toEqual(frames.map(() => 0))
    })
  }

  long.test('V8: AVI, which has no times of showing, with frames coded out of order', async () => {
    const file = made('plain.avi', ...source(1, 15), '-c:v', 'mpeg4', '-bf', '2', '-g', '12')
    const { frames, timesSeconds } = await everyFrame(file)
    const dump = dumped(file, 48, 32)
    expect(frames.map(({ data }, i) => Buffer.compare(data, dump[i] ?? Buffer.alloc(0)))).toEqual(dump.map(() => 0))
    for (const [i, time] of timesSeconds.entries()) expect(time - (timesSeconds[0] ?? 0)).toBeCloseTo(i / 15, 5)
  })

  long.test('V9: a size that changes half-way', async () => {
    const [small, large] = [made('small.ts', ...source(0.4), ...x264), made('large.ts', ...source(0.4, 25, '96x64'), ...x264)]
    const both = Buffer.concat([await readFile(small), await readFile(large)])
    const { frames } = await decodeVideo(both, { sampling: { type: 'uniform', frames: 20 } })
    expect(new Set(frames.map(({ width, height, data }) => `${width} ${height} ${data.length}`))).toEqual(new Set(['48 32 4608']))
    expect(frames).toHaveLength(20)
  })

  long.test('V10: frames of more pixels than allowed', async () => {
    const large = made('large.mkv', ...source(0.04, 25, '2000x1000'), '-c:v', 'ffv1')
    expect(await failure(large, { limits: { maxPixels: 1_000_000 } })).toMatchObject({ code: 'VIDEO_TOO_LARGE' })
  })

  for (const degrees of [90, 180, 270]) {
    ;(degrees === 90 ? skipWithout(undefined) : long).test(`V11: turned by ${degrees} degrees, once`, async () => {
      const turned = made(`turned-${degrees}.mp4`, '-i', film, '-c', 'copy', '-metadata:s:v:0', `rotate=${degrees}`)
      const [width, height] = degrees === 180 ? [48, 32] : [32, 48]
      const { frames, ...facts } = await decodeVideo(turned, { sampling: { type: 'uniform', frames: 1 } })
      expect(facts).toMatchObject({ width, height })
      expect(Buffer.compare(frames[0]?.data ?? new Uint8Array(), dumped(turned, width ?? 0, height ?? 0)[0] ?? Buffer.alloc(0))).toBe(0)
    })
  }

  for (const [what, options] of [
    ['10 bits', ['-pix_fmt', 'yuv422p10le']],
    ['4:4:4', ['-pix_fmt', 'yuv444p']],
    ['alpha', ['-pix_fmt', 'bgra']],
    ['grey', ['-pix_fmt', 'gray']],
  ] as const) {
    ;(what === '10 bits' ? skipWithout(undefined) : long).test(`V12: ${what}`, async () => {
      const file = made(`${what.replaceAll(/\W/g, '')}.mkv`, ...source(0.08), '-c:v', 'ffv1', ...options)
      const { frames } = await decodeVideo(file, { sampling: { type: 'uniform', frames: 2 } })
      const dump = dumped(file, 48, 32)
      expect(frames.map(({ data }, i) => Buffer.compare(data, dump[i] ?? Buffer.alloc(0)))).toEqual([0, 0])
    })
  }

  long.test('V16: more attachments than a film has streams', async () => {
    const text = path.join(folder, 'font.txt')
    await writeFile(text, 'x')
    const attachments = Array.from({ length: 150 }, (_, i) => ['-attach', text, `-metadata:s:t:${i}`, 'mimetype=text/plain']).flat()
    const many = made('many.mkv', '-i', film, ...attachments, '-c', 'copy')
    expect((await failure(many, { limits: { timeoutMs: 20_000 } })).code).toMatch(/^(DECODED 8|VIDEO_DECODE|VIDEO_TOO_LARGE)$/)
  })

  long.test('V17: an encrypted film', async () => {
    const key = '0123456789abcdef0123456789abcdef'
    const locked = made(
      'locked.mp4',
      '-i',
      film,
      '-c',
      'copy',
      '-encryption_scheme',
      'cenc-aes-ctr',
      '-encryption_key',
      key,
      '-encryption_kid',
      key,
    )
    expect(await failure(locked)).toMatchObject({ code: 'VIDEO_ENCRYPTED' })
  })

  test.skipIf(process.platform === 'win32')('frames far apart are sought, and are the same frames', async () => {
    const log = path.join(folder, 'runs.log')
    const recording = path.join(folder, 'recording-ffmpeg')
    await writeFile(recording, `#!/bin/sh\necho "$*" >> ${log}\nexec ${ffmpeg} "$@"\n`)
    chmodSync(recording, 0o755)
    const kinds = [
      ['far.mp4', ['-movflags', '+faststart']],
      ['far.mkv', ['-output_ts_offset', '7']],
    ] as const
    for (const [name, options] of process.env.MODALIGN_LONG === '1' ? kinds : kinds.slice(0, 1)) {
      const far = made(name, ...source(40), ...x264, '-g', '50', ...options)
      const { frames, indices, timesSeconds } = await decodeVideo(far, {
        sampling: { type: 'times', seconds: [39.9, 0.5, 20, 20.04, 39.9] },
      })
      const dump = dumped(far, 48, 32)
      const times = probed(far)
      expect(indices).toEqual([997, 12, 500, 501, 997])
      expect(frames.map(({ data }, i) => Buffer.compare(data, dump[indices[i] ?? 0] ?? Buffer.alloc(0)))).toEqual(indices.map(() => 0))
      for (const [i, time] of timesSeconds.entries()) expect(time).toBeCloseTo(times[indices[i] ?? 0] ?? -1, 2)
      const part = await decodeVideo(far, { span: { startSeconds: 30, endSeconds: 31 }, sampling: { type: 'uniform', frames: 2 } })
      expect(part.frames.map(({ data }, i) => Buffer.compare(data, dump[750 + (part.indices[i] ?? 0)] ?? Buffer.alloc(0)))).toEqual([0, 0])
    }
  })

  test('the sound of the same file, beginning with the film', async () => {
    const late = made(
      'late.mkv',
      ...['-i', film, '-itsoffset', '0.5', '-f', 'lavfi', '-i', 'aevalsrc=0.5:s=16000:d=1'],
      ...['-map', '0:v', '-map', '1:a', '-c:v', 'copy', '-c:a', 'flac'],
    )
    const { audio, frames } = await decodeVideo(late, { audio: {}, sampling: { type: 'uniform', frames: 2 } })
    const first = audio?.samples.findIndex((value) => value > 0.4) ?? -1
    expect([frames.length, audio?.sampleRateHz, Math.abs(first - 8_000) <= 16]).toEqual([2, 16_000, true])
    // Alone, the sound begins where it begins.
    expect((await decodeAudio(late)).samples[100]).toBeCloseTo(0.5, 3)
    const part = await decodeVideo(late, { audio: { sampleRateHz: 8_000 }, span: { startSeconds: 1, endSeconds: 1.25 } })
    expect(part.audio?.samples).toHaveLength(2_000)
    expect(await failure(film, { audio: {} })).toMatchObject({ code: 'AUDIO_NO_STREAM' })
  })
})

async function children(): Promise<readonly string[]> {
  const text = await readFile(`/proc/${process.pid}/task/${process.pid}/children`, 'utf8').catch(() => '')
  const names = await Promise.all(
    text
      .split(' ')
      .filter((pid) => pid !== '')
      .map((pid) => readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')),
  )
  return names.filter((name) => name.includes('ffmpeg'))
}

const data = process.env.MODALIGN_TEST_DATA
skipWithout(data === undefined ? testDataMissing : missing).describe('real films', () => {
  for (const [name, width, height, totalFrames] of [
    ['3.mp4', 640, 360, 146],
    ['2.avi', 320, 240, 270],
    ['4.mp4', 224, 224, 150],
  ] as const) {
    ;(name === '4.mp4' ? skipWithout(undefined) : long).test(name, async () => {
      const file = path.join(data ?? '', 'records/mllm_demo_data', name)
      const { frames, indices, timesSeconds, ...facts } = await decodeVideo(file, { sampling: { type: 'uniform', frames: 4 } })
      expect(facts).toMatchObject({ width, height, totalFrames })
      const dump = dumped(file, width, height)
      const times = probed(file)
      for (const [i, index] of indices.entries()) {
        expect(Buffer.compare(frames[i]?.data ?? new Uint8Array(), dump[index] ?? Buffer.alloc(0))).toBe(0)
        expect(timesSeconds[i]).toBeCloseTo(times[index] ?? -1, 4)
      }
    })
  }
})
