import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { errorData } from '../errors.ts'
import { type FfmpegRequest, findFfmpeg, runFfmpeg, startFfmpeg } from './ffmpeg.ts'

const real = await findFfmpeg().catch(() => undefined)
const environment = { ...process.env }
let folder: string
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'modalign-ffmpeg-'))
})
afterEach(() => {
  for (const name of ['PATH', 'FFMPEG_PATH']) {
    if (environment[name] === undefined) delete process.env[name]
    else process.env[name] = environment[name]
  }
})
afterAll(() => rm(folder, { recursive: true, force: true }))

/** A program in ffmpeg's place: what it does badly, ffmpeg could do on a hostile file. */
async function program(name: string, script: string): Promise<string> {
  const file = path.join(folder, name)
  await writeFile(file, `#!/bin/sh\nPATH=/usr/bin:/bin\n${script}\n`)
  await chmod(file, 0o755)
  return file
}

const request: FfmpegRequest = {
  input: new Uint8Array([1, 2, 3]),
  demuxer: 'wav',
  outputOptions: ['-frames:v', '1'],
  outputFormat: 'rawvideo',
  maxBytes: 1000,
  timeoutMs: 20_000,
}
const failure = async (changes: Partial<FfmpegRequest>) =>
  await runFfmpeg({ ...request, ...changes }).then(
    (bytes) => ({ code: `${bytes.length} bytes` }),
    (error: unknown) => errorData(error),
  )

describe.skipIf(process.platform === 'win32')('finding the program', () => {
  test('option, then FFMPEG_PATH, then PATH', async () => {
    const first = await program('first', 'true')
    const second = await program('second', 'true')
    const third = await program('ffmpeg', 'true')
    process.env.FFMPEG_PATH = second
    process.env.PATH = folder
    expect(await findFfmpeg(first)).toBe(first)
    expect(await findFfmpeg()).toBe(second)
    delete process.env.FFMPEG_PATH
    expect([third, real]).toContain(await findFfmpeg())
  })

  test('a path that leads nowhere is an error, not passed over', async () => {
    process.env.FFMPEG_PATH = path.join(folder, 'nothing')
    await expect(findFfmpeg()).rejects.toMatchObject({
      code: 'FFMPEG_MISSING',
      details: { expected: expect.stringContaining('FFMPEG_PATH') },
    })
    await expect(findFfmpeg('/nowhere/ffmpeg')).rejects.toMatchObject({ code: 'FFMPEG_MISSING' })
  })
})

describe.skipIf(process.platform === 'win32')('running it', () => {
  test('the command line: our demuxer before the input, only files and pipes, no standard input', async () => {
    const echo = await program('echo-arguments', 'printf "%s\\n" "$@"')
    const lines = async (input: FfmpegRequest['input']) =>
      new TextDecoder()
        .decode(await runFfmpeg({ ...request, input, program: echo }))
        .trimEnd()
        .split('\n')
    const safe = [
      '-nostdin',
      '-hide_banner',
      '-loglevel',
      'error',
      '-max_alloc',
      '268435456',
      '-protocol_whitelist',
      'file,pipe',
      '-format_whitelist',
      'wav',
      '-codec_whitelist',
      expect.stringMatching(/^h264,.*pcm_s16le/),
      '-max_streams',
      '100',
      '-f',
      'wav',
    ]
    expect(await lines(new Uint8Array())).toEqual([...safe, '-i', 'pipe:0', '-frames:v', '1', '-f', 'rawvideo', 'pipe:1'])
    const odd = '/data/concat:a|b -y %03d $(id).wav'
    expect((await lines({ file: odd })).slice(16, 18)).toEqual(['-i', `file:${odd}`])
  })

  test('a relative path is refused', async () => {
    expect(await failure({ input: { file: '-y' }, program: await program('unused', 'true') })).toMatchObject({ code: 'FFMPEG_INPUT' })
  })

  test('nothing of our environment reaches it', async () => {
    process.env.MODALIGN_SECRET = 'secret'
    const env = await program('env', 'env')
    const text = new TextDecoder().decode(await runFfmpeg({ ...request, program: env }))
    delete process.env.MODALIGN_SECRET
    expect(text).not.toContain('secret')
  })

  test('a program that hangs is killed with everything it started', async () => {
    const pids = path.join(folder, 'pids')
    const hangs = await program('hangs', `sleep 600 & echo $! > ${pids}; echo $$ >> ${pids}; wait`)
    expect(await failure({ program: hangs, timeoutMs: 1500 })).toMatchObject({ code: 'FFMPEG_TIMEOUT' })
    const started = (await readFile(pids, 'utf8')).trim().split('\n').map(Number)
    expect(started).toHaveLength(2)
    // A killed process may stay in the table until its parent has collected it.
    for (const pid of started) {
      for (let tries = 0; tries < 40 && (await isRunning(pid)); tries++) await sleep(50)
      expect(await isRunning(pid)).toBe(false)
    }
  })

  test('an abort kills it', async () => {
    const hangs = await program('hangs-too', 'sleep 600')
    const running = runFfmpeg({ ...request, program: hangs, signal: AbortSignal.timeout(300) })
    await expect(running).rejects.toMatchObject({ name: 'TimeoutError' })
  })

  test('an abort is heard at one output while another, begun, is full of bytes that nobody reads', async () => {
    const controller = new AbortController()
    const output = { options: [], format: 'rawvideo', maxBytes: 2 ** 40 }
    const input = request.input
    const outputs = [output, output]
    const both = {
      input,
      outputs,
      demuxer: 'wav',
      timeoutMs: 20_000,
      program: await program('both', 'yes >&3 & yes'),
      signal: controller.signal,
    } as const
    await using process = await startFfmpeg(both)
    const [first, second] = process.outputs.map((chunks) => chunks[Symbol.asyncIterator]())
    expect((await first?.next())?.done).toBe(false)
    expect((await second?.next())?.done).toBe(false)
    await sleep(200)
    controller.abort()
    await expect(
      (async () => {
        while ((await first?.next())?.done === false);
      })(),
    ).rejects.toMatchObject({ name: 'AbortError' })
  })

  test('more output than agreed ends it', async () => {
    expect(await failure({ program: await program('endless', 'yes') })).toMatchObject({ code: 'FFMPEG_OUTPUT' })
  })

  test('megabytes of complaints neither block it nor fill the error', async () => {
    const complains = await program('complains', 'yes complaint | head -c 20000000 >&2; exit 3')
    const error = await failure({ program: complains })
    expect(error.code).toBe('FFMPEG_FAILED')
    expect('got' in error && error.got?.length).toBeLessThanOrEqual(120)
  })

  test('a program that fails in silence, or is killed', async () => {
    expect(await failure({ program: await program('fails', 'exit 7') })).toMatchObject({ code: 'FFMPEG_FAILED', got: 'exit status 7' })
    expect(await failure({ program: await program('killed', 'kill -9 $$') })).toMatchObject({
      code: 'FFMPEG_FAILED',
      hint: expect.stringContaining('memory'),
    })
  })

  test('a file that is no program', async () => {
    const file = path.join(folder, 'text')
    await writeFile(file, 'not a program')
    await chmod(file, 0o755)
    expect((await failure({ program: file })).code).toMatch(/^FILE_|^FFMPEG_/)
  })

  test.skipIf(real === undefined)('a playlist named as a film opens no other file (skipped where there is no ffmpeg)', async () => {
    const secret = path.join(folder, 'secret.txt')
    await writeFile(secret, 'secret')
    const playlist = path.join(folder, 'film.mp4')
    await writeFile(playlist, `#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://${secret}\n#EXT-X-ENDLIST\n`)
    expect(await failure({ input: { file: playlist }, demuxer: 'mov', outputOptions: [], maxBytes: 1e6 })).toMatchObject({
      code: 'FFMPEG_FAILED',
    })
  })
})

async function isRunning(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  return status !== '' && !/\) Z /.test(status)
}
