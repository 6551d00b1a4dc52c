import { spawn } from 'node:child_process'
import { hash } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { errorData } from '../errors.ts'
import { createImageDecoder, type ImageDecoder } from './child-decoder.ts'
import { decodeImage } from './image.ts'
import { preprocessImage } from './preprocess.ts'

const spec = { resize: { size: { height: 16, width: 16 }, filter: 'bilinear' }, rescaleFactor: 1 / 255 } as const
let root: string
/** Takes a process some hundred milliseconds to decode. */
let large: Buffer
let decoder: ImageDecoder
beforeAll(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'modalign-decoder-'))
  const picture = sharp({ create: { width: 40, height: 30, channels: 3, background: '#4080c0' } })
  for (const format of ['jpeg', 'png', 'webp', 'gif', 'tiff', 'avif'] as const)
    await picture
      .clone()
      .toFormat(format)
      .toFile(path.join(root, `a.${format}`))
  await writeFile(path.join(root, 'page.png'), '<html>')
  await writeFile(path.join(root, 'a.svg'), '<svg xmlns="http://www.w3.org/2000/svg" width="3" height="2"/>')
  large = await sharp({ create: { width: 4000, height: 4000, channels: 3, background: 'red' } })
    .png({ compressionLevel: 1 })
    .toBuffer()
  decoder = createImageDecoder({ root, processes: 2 })
})
afterAll(async () => {
  await decoder.dispose()
  await rm(root, { recursive: true, force: true })
})

const failure = async (promise: Promise<unknown>) =>
  await promise.then(
    () => ({ code: 'DECODED' }),
    (error: unknown) => errorData(error),
  )

test('decodes every format as this process does, loaders restricted', async () => {
  for (const format of ['jpeg', 'png', 'webp', 'gif', 'tiff', 'avif']) {
    expect(await decoder.decode(`a.${format}`)).toEqual(await decodeImage(`a.${format}`, { root }))
  }
  expect(decoder.processIds.length).toBeLessThanOrEqual(2)
})

test('prepares as this process does, from bytes too', async () => {
  const image = await decodeImage('a.jpeg', { root })
  const { tensor, width, height, format } = await decoder.preprocess('a.jpeg', spec)
  expect([tensor, width, height, format]).toEqual([preprocessImage(image, spec), 40, 30, 'jpeg'])
  const bytes = await sharp(path.join(root, 'a.jpeg')).png().toBuffer()
  expect((await decoder.preprocess(bytes, spec)).format).toBe('png')
})

test('pictures too large for the shared room cross, too, between small ones', async () => {
  const wide = await sharp({ create: { width: 1400, height: 1100, channels: 3, background: '#123456' } })
    .png()
    .toBuffer()
  const sources = ['a.jpeg', wide, 'a.png', wide, 'a.webp']
  const decoded = await Promise.all(sources.map((source) => decoder.decode(source)))
  for (const [index, source] of sources.entries()) {
    const expected = await decodeImage(source, { root })
    const { data, ...rest } = decoded[index] ?? { data: new Uint8Array(0) }
    expect(Buffer.compare(data, expected.data)).toBe(0)
    expect(rest).toEqual({ width: expected.width, height: expected.height, format: expected.format, notes: expected.notes })
  }
})

test('several pictures in one message have each their own result, whatever becomes of the others', async () => {
  await using single = createImageDecoder({ root, processes: 1 })
  const wide = await sharp({ create: { width: 1400, height: 1100, channels: 3, background: '#123456' } })
    .png()
    .toBuffer()
  const sources = ['a.jpeg', 'page.png', wide, 'a.png', 'missing.png', 'a.webp', wide, 'a.tiff', '../a.png', 'a.gif', 'a.jpeg', 'a.avif']
  const mixed = [...sources, ...sources.toReversed(), ...sources]
  const outcome = async (promise: Promise<{ readonly data: Uint8Array }>) =>
    await promise.then(
      ({ data, ...rest }) => ({ ...rest, digest: hash('sha256', data) }),
      (error: unknown) => errorData(error).code,
    )
  const expected = await Promise.all(mixed.map((source) => outcome(decodeImage(source, { root }))))
  expect(await Promise.all(mixed.map((source) => outcome(single.decode(source))))).toEqual(expected)
  expect(expected).toContain('IMAGE_NOT_IMAGE')
})

test('what shares a message with a large picture does not wait for it', async () => {
  await using single = createImageDecoder({ root, processes: 1 })
  await single.decode('a.png')
  // One goes at once; the others wait, and go together.
  const first = single.preprocess('a.png', spec)
  const [small, ...others] = ['a.jpeg', large, 'a.gif', 'a.png'].map((source) => single.preprocess(source, spec))
  let isLargeDone = false
  void others[0]?.then(() => {
    isLargeDone = true
  })
  await Promise.all([first, small])
  await new Promise((resolve) => setImmediate(resolve))
  expect(isLargeDone).toBe(false)
  expect((await Promise.all(others)).map(({ width }) => width)).toEqual([4000, 40, 40])
})

test('an abort frees the process that has answered for some of its pictures', async () => {
  await using single = createImageDecoder({ root, processes: 1 })
  await single.decode('a.png')
  const [pid] = single.processIds
  const controller = new AbortController()
  const first = single.preprocess('a.png', spec)
  const call = { signal: controller.signal }
  const [small, ...others] = ['a.jpeg', large, 'a.gif', 'a.png'].map((source) => single.preprocess(source, spec, call))
  const fates = others.map(failure)
  await Promise.all([first, small])
  controller.abort()
  expect((await Promise.all(fates)).map(({ code }) => code)).toEqual(['ABORTED', 'ABORTED', 'ABORTED'])
  expect(await single.decode('a.png')).toMatchObject({ width: 40, height: 30 })
  expect(single.processIds).not.toContain(pid)
})

test('pictures that share a message when their process dies lose nothing', async () => {
  await using single = createImageDecoder({ root, processes: 1 })
  await single.decode('a.png')
  // One goes at once; the rest wait, and the first four of them go together.
  const first = single.preprocess('a.png', spec)
  const others = [large, ...Array.from({ length: 11 }, () => 'a.jpeg')].map((source) => single.preprocess(source, spec))
  await first
  const [victim] = single.processIds
  if (victim !== undefined) process.kill(victim, 'SIGKILL')
  expect((await Promise.all(others)).map(({ width }) => width)).toEqual([4000, ...Array.from({ length: 11 }, () => 40)])
  expect(single.processIds).not.toContain(victim)
})

test.skipIf(process.platform === 'win32')('a process that hangs costs none of several pictures; one alone is over time', async () => {
  await using single = createImageDecoder({ root, processes: 1, limits: { timeoutMs: 2000 } })
  await single.decode('a.png')
  const hang = (): void => {
    const [pid] = single.processIds
    if (pid !== undefined) process.kill(pid, 'SIGSTOP')
  }
  const first = single.preprocess('a.png', spec)
  const together = Array.from({ length: 4 }, () => single.preprocess('a.jpeg', spec))
  await first
  hang()
  expect((await Promise.all(together)).map(({ width }) => width)).toEqual([40, 40, 40, 40])
  hang()
  expect(await failure(single.preprocess('a.png', spec))).toMatchObject({ code: 'IMAGE_TIMEOUT' })
  expect((await single.preprocess('a.png', spec)).width).toBe(40)
})

test('data URLs and streams decode too, and errors call them what they are', async () => {
  const bytes = await sharp(path.join(root, 'a.jpeg')).png().toBuffer()
  await using own = createImageDecoder({ processes: 1 })
  expect(await own.decode(`data:image/png;base64,${bytes.toString('base64')}`)).toMatchObject({ width: 40, height: 30 })
  expect(await own.decode(Readable.from([bytes]))).toMatchObject({ width: 40, height: 30 })
  expect(await own.decode(pathToFileURL(path.join(root, 'a.png')))).toMatchObject({ format: 'png' })
  expect(await failure(own.decode('http://example.org/a.png?key=secret'))).toMatchObject({
    code: 'URL_NOT_ALLOWED',
    file: 'http://example.org/a.png',
  })
  expect(await failure(own.decode('data:image/png;base64,AAAA'))).toMatchObject({
    code: 'IMAGE_NOT_IMAGE',
    file: expect.stringContaining('data:'),
  })
})

test('errors cross whole', async () => {
  expect(await failure(decoder.decode('page.png'))).toMatchObject({ code: 'IMAGE_NOT_IMAGE', file: 'page.png' })
  expect(await failure(decoder.decode('../a.png'))).toMatchObject({ code: 'PATH_ESCAPE' })
  expect(await failure(decoder.decode('a.svg'))).toMatchObject({ code: 'IMAGE_FORMAT_BLOCKED' })
})

test('SVG decodes where it is allowed', async () => {
  await using open = createImageDecoder({ root, processes: 1, formats: ['svg'] })
  expect(await open.decode('a.svg')).toMatchObject({ width: 3, height: 2 })
})

test('a process that dies costs no picture; a picture over which two die is reported, and the others go on', async () => {
  await Promise.all([decoder.decode('a.png'), decoder.decode('a.jpeg')])
  // Both processes are up now. The first takes the large picture; the small ones wait behind it and behind the second.
  const [first, second] = decoder.processIds
  if (first === undefined || second === undefined) throw new Error('two processes were expected')
  const fate = failure(decoder.preprocess(large, spec))
  process.kill(first, 'SIGKILL')
  while (decoder.processIds.includes(first)) await sleep(2)
  // The retry runs in the second process.
  process.kill(second, 'SIGKILL')
  expect(await fate).toMatchObject({ code: 'IMAGE_DECODER_CRASHED', got: expect.stringContaining('SIGKILL') })
  expect(await decoder.decode('a.png')).toMatchObject({ width: 40, height: 30 })

  await Promise.all([decoder.decode('a.png'), decoder.decode('a.jpeg')])
  const [victim] = decoder.processIds
  const retried = decoder.preprocess(large, spec)
  if (victim !== undefined) process.kill(victim, 'SIGKILL')
  expect(await retried).toMatchObject({ width: 4000, height: 4000 })
})

test('an abort rejects at once and frees the process', async () => {
  const controller = new AbortController()
  const aborted = failure(decoder.preprocess(large, spec, { signal: controller.signal }))
  const waiting = Array.from({ length: 4 }, () => failure(decoder.preprocess('a.png', spec, { signal: controller.signal })))
  controller.abort()
  expect(await aborted).toMatchObject({ code: 'ABORTED' })
  for (const error of await Promise.all(waiting)) expect(error).toMatchObject({ code: 'ABORTED' })
  expect(await failure(decoder.decode('a.png', { signal: AbortSignal.abort() }))).toMatchObject({ code: 'ABORTED' })
  expect(await decoder.decode('a.png')).toMatchObject({ width: 40, height: 30 })
})

test('pictures larger than what may be decoded at once go one at a time', async () => {
  await using narrow = createImageDecoder({ root, processes: 2, maxPixelsAtOnce: 100 })
  const results = await Promise.all(Array.from({ length: 6 }, () => narrow.preprocess('a.png', spec)))
  expect(results.map(({ width }) => width)).toEqual([40, 40, 40, 40, 40, 40])
})

test('what is over time is over', async () => {
  await using hasty = createImageDecoder({ root, processes: 1, limits: { timeoutMs: 5 } })
  expect(await failure(hasty.preprocess(large, spec))).toMatchObject({ code: 'IMAGE_TIMEOUT' })
})

test('disposing ends the processes and rejects what is under way', async () => {
  const passing = createImageDecoder({ root, processes: 1 })
  await passing.decode('a.png')
  const [pid] = passing.processIds
  const [running, queued] = [failure(passing.preprocess(large, spec)), failure(passing.decode('a.png'))]
  await passing.dispose()
  expect(await running).toMatchObject({ code: 'DECODER_DISPOSED' })
  expect(await queued).toMatchObject({ code: 'DECODER_DISPOSED' })
  expect(await failure(passing.decode('a.png'))).toMatchObject({ code: 'DECODER_DISPOSED' })
  expect(() => process.kill(pid ?? 0, 0)).toThrow('ESRCH')
})

test('a program with nothing else to do waits for the end of its processes', async () => {
  const program = `
    import { createImageDecoder } from ${JSON.stringify(new URL('./child-decoder.ts', import.meta.url).href)}
    const decoder = createImageDecoder({ root: ${JSON.stringify(root)}, processes: 1 })
    await decoder.decode('a.png')
    await decoder.dispose()
    console.log('over')
  `
  // A file: the decoder's processes inherit the flags of the program that starts them, --eval among them.
  const file = path.join(root, 'program.mjs')
  await writeFile(file, program)
  const child = spawn(process.execPath, ['--import', 'tsx', file], { stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk.toString()
  })
  const status = await new Promise((resolve) => child.once('close', resolve))
  expect([status, output]).toEqual([0, 'over\n'])
})
