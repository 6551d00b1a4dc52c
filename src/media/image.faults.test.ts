/** Every kind of bad picture that reliability's catalogue names (I1 to I35), made here as the real thing. */
import { execFileSync } from 'node:child_process'
import { chmod, mkdir, mkdtemp, open, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { crc32, deflateSync } from 'node:zlib'
import sharp from 'sharp'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type ErrorData, errorData, renderError } from '../errors.ts'
import { createImageDecoder } from './child-decoder.ts'
import { readMediaFile } from './file.ts'
import { checkWebpVersion, type DecodeImageOptions, decodeImage } from './image.ts'
import { preprocessImage } from './preprocess.ts'

let folder: string
let files: Readonly<Record<'jpeg' | 'png' | 'webp' | 'gif' | 'tiff' | 'avif', Buffer>>
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'modalign-image-'))
  const width = 96
  const height = 64
  // Smooth with some noise, so that every format needs more than a few bytes.
  const data = Uint8Array.from({ length: width * height * 3 }, (_, i) => ((i * 5) & 127) + ((Math.imul(i, 2_654_435_761) >>> 27) & 31))
  const picture = sharp(data, { raw: { width, height, channels: 3 } })
  const as = (format: 'jpeg' | 'png' | 'webp' | 'gif' | 'tiff' | 'avif'): Promise<Buffer> => picture.clone().toFormat(format).toBuffer()
  const [jpeg, png, webp, gif, tiff, avif] = await Promise.all([as('jpeg'), as('png'), as('webp'), as('gif'), as('tiff'), as('avif')])
  files = { jpeg, png, webp, gif, tiff, avif }
})
afterAll(() => rm(folder, { recursive: true, force: true }))

async function failure(source: string | Uint8Array, options?: DecodeImageOptions): Promise<ErrorData> {
  return await decodeImage(source, options).then(
    ({ width, height }) => ({ code: `DECODED ${width} x ${height}` }),
    (error: unknown) => errorData(error),
  )
}

async function written(name: string, content: string | Uint8Array): Promise<string> {
  const file = path.join(folder, name)
  await writeFile(file, content)
  return file
}

/** A PNG with any header, its checksums right. Colour types: 0 grey, 2 RGB, 4 grey with alpha, 6 RGBA. */
function pngClaiming(width: number, height: number, rows: Uint8Array, bits = 8, colourType = 2): Buffer {
  const chunk = (type: string, content: Uint8Array): Buffer => {
    const body = Buffer.concat([Buffer.from(type, 'latin1'), content])
    const length = Buffer.alloc(4)
    length.writeUInt32BE(content.length)
    const sum = Buffer.alloc(4)
    sum.writeUInt32BE(crc32(body))
    return Buffer.concat([length, body, sum])
  }
  const header = Buffer.alloc(13)
  header.writeUInt32BE(width, 0)
  header.writeUInt32BE(height, 4)
  header.set([bits, colourType, 0, 0, 0], 8)
  return Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(rows)),
    chunk('IEND', Buffer.alloc(0)),
  ])
}

/** A 24-bit BMP header with its pixels. */
function bitmap(width: number, height: number, pixels: Uint8Array): Buffer {
  const header = Buffer.alloc(54)
  header.write('BM', 'latin1')
  header.writeUInt32LE(54 + pixels.length, 2)
  header.writeUInt32LE(54, 10)
  header.writeUInt32LE(40, 14)
  header.writeInt32LE(width, 18)
  header.writeInt32LE(height, 22)
  header.writeUInt16LE(1, 26)
  header.writeUInt16LE(24, 28)
  return Buffer.concat([header, pixels])
}

describe('content', () => {
  test('I1: an empty file is called empty', async () => {
    const file = await written('empty.jpg', '')
    expect(await failure(file)).toMatchObject({ code: 'IMAGE_EMPTY', file })
    expect(await failure(new Uint8Array())).toMatchObject({ code: 'IMAGE_EMPTY' })
  })

  test.each(['jpeg', 'png', 'webp', 'gif', 'tiff', 'avif'] as const)('I2, I3: half a %s is called truncated', async (format) => {
    const half = files[format].subarray(0, files[format].length >> 1)
    const error = await failure(half)
    expect(error).toMatchObject({ code: 'IMAGE_TRUNCATED', got: expect.stringContaining(`${half.length} bytes`) })
    expect(error.hint).toContain('accept')
  })

  test.each(['jpeg', 'png'] as const)('I2: half a %s decodes where that is accepted, and says so', async (format) => {
    // Noise that does not compress: libpng reads in steps of 8 KiB.
    let state = 1
    const noise = Uint8Array.from({ length: 300 * 200 * 3 }, () => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0
      return state >>> 24
    })
    const bytes = await sharp(noise, { raw: { width: 300, height: 200, channels: 3 } })
      .toFormat(format)
      .toBuffer()
    const image = await decodeImage(bytes.subarray(0, bytes.length >> 1), { truncated: 'accept' })
    expect([image.width, image.height, image.notes]).toEqual([300, 200, ['truncated']])
    const whole = await decodeImage(bytes)
    expect(Buffer.compare(image.data.subarray(0, 300 * 3 * 60), whole.data.subarray(0, 300 * 3 * 60))).toBe(0)
  })

  test.each(['jpeg', 'png', 'webp', 'gif', 'tiff', 'avif'] as const)(
    'a %s cut at any length is an error of ours or a picture',
    async (format) => {
      const bytes = files[format]
      for (let cut = 1; cut < bytes.length; cut += Math.ceil(bytes.length / 40)) {
        const { code } = await failure(bytes.subarray(0, cut))
        expect(code).toMatch(/^(IMAGE_(TRUNCATED|DECODE|NOT_IMAGE|FORMAT_BLOCKED|DIMENSIONS)|DECODED 96 x 64)$/)
      }
    },
  )

  test('I4: a broken header before a whole tail', async () => {
    const broken = Buffer.from(files.png)
    broken.fill(0xff, 12, 29)
    expect(await failure(broken)).toMatchObject({ code: 'IMAGE_DECODE', expected: 'a png that decodes' })
  })

  test('I5: one flipped bit decodes, or fails with an error of ours, and does so every time', async () => {
    for (let at = 20; at < files.jpeg.length; at += 97) {
      const flipped = Buffer.from(files.jpeg)
      flipped[at] = (flipped[at] ?? 0) ^ 8
      const first = await failure(flipped)
      expect(first.code).toMatch(/^(IMAGE_[A-Z_]+|DECODED \d+ x \d+)$/)
      expect(await failure(flipped)).toEqual(first)
    }
  })

  test('I6: a GIF called .jpg is a GIF, and that is noted', async () => {
    const image = await decodeImage(await written('really-a-gif.jpg', files.gif))
    expect([image.format, image.notes]).toEqual(['gif', ['extension-mismatch']])
    expect((await decodeImage(await written('fine.JPG', files.jpeg))).notes).toEqual([])
  })

  test.each([
    ['<!DOCTYPE html><html><title>404 Not Found</title></html>', '3c 21 44 4f 43 54 59 50 45 20 68 74 6d 6c 3e 3c, which looks like HTML'],
    ['\n  <html lang="en">', 'HTML'],
    ['{"error": "not found"}', 'JSON'],
    ['PK\x03\x04 an archive', 'ZIP'],
    ['version https://git-lfs.github.com/spec/v1\noid sha256:0', 'Git LFS'],
    ['%!PS-Adobe-3.0', 'PostScript'],
    ['SIMPLE  =                    T', 'FITS'],
    ['MATLAB 5.0 MAT-file', 'MATLAB'],
    ['#EXTM3U\nfile:///etc/passwd', 'playlist'],
    ['RIFF\x10\x00\x00\x00WAVEfmt ', 'wav'],
    ['just some words', '6a 75 73 74'],
  ])('I7: no picture: %s', async (content, words) => {
    const error = await failure(Buffer.from(content, 'latin1'))
    expect(error.code).toBe('IMAGE_NOT_IMAGE')
    expect(error.got).toContain(words)
  })

  test('I12: a header that promises more rows than there are', async () => {
    const rows = new Uint8Array(8 * (8 * 3 + 1))
    expect(await failure(pngClaiming(8, 8, rows))).toEqual({ code: 'DECODED 8 x 8' })
    expect(await failure(pngClaiming(8, 16, rows))).toMatchObject({ code: 'IMAGE_DECODE' })
    expect(await failure(pngClaiming(16, 8, rows))).toMatchObject({ code: 'IMAGE_DECODE' })
  })

  test('I13: ten thousand frames: the first', async () => {
    const head = Buffer.from('47494638396101000100800000000000ffffff', 'hex')
    const frame = Buffer.from('2c00000000010001000002024401003b', 'hex').subarray(0, -1)
    const many = Buffer.concat([head, ...Array.from({ length: 10_000 }, () => frame), Buffer.from([0x3b])])
    const image = await decodeImage(many)
    expect([image.width, image.height, image.notes]).toEqual([1, 1, ['first-frame']])
  })

  test('I13: another frame, where it is asked for; frames that are not there', async () => {
    const single = (background: string): Promise<Buffer> =>
      sharp({ create: { width: 4, height: 4, channels: 3, background } })
        .png()
        .toBuffer()
    const frames = await sharp(await Promise.all(['red', 'lime', 'blue'].map(single)), { join: { animated: true } })
      .gif()
      .toBuffer()
    const colours = await Promise.all([0, 1, 2].map(async (page) => [...(await decodeImage(frames, { page })).data.subarray(0, 3)]))
    expect(colours).toEqual([
      [255, 0, 0],
      [0, 255, 0],
      [0, 0, 255],
    ])
    expect((await decodeImage(frames, { page: 0 })).notes).toEqual([])
    expect(await failure(frames, { page: 3 })).toMatchObject({ code: 'IMAGE_PAGE', expected: 'a whole number from 0 to 2' })
    expect(await failure(files.jpeg, { page: 1 })).toMatchObject({ code: 'IMAGE_PAGE' })
  })

  test('I14: a TIFF whose pages lead back to the first', async () => {
    const loop = Buffer.from(files.tiff)
    const first = loop.readUInt32LE(4)
    loop.writeUInt32LE(first, first + 2 + 12 * loop.readUInt16LE(first))
    const { code } = await failure(loop, { limits: { timeoutMs: 5_000 } })
    expect(code).toMatch(/^(DECODED 96 x 64|IMAGE_DECODE)$/)
  })

  test.each([
    [0, 1, 0],
    [2, 3, 0],
    [4, 1, 1],
    [6, 3, 1],
  ])('I16: a PNG of 16 bits a channel, colour type %i: the high bytes', async (colourType, colours, alphas) => {
    const [width, height, channels] = [5, 4, colours + alphas]
    const value = (pixel: number, channel: number): number => (channel < colours ? (pixel * 7919 + channel * 104_729) & 0xffff : 0xffff)
    const rows = Buffer.alloc(height * (1 + width * channels * 2))
    for (let pixel = 0; pixel < width * height; pixel++)
      for (let channel = 0; channel < channels; channel++)
        rows.writeUInt16BE(value(pixel, channel), Math.floor(pixel / width) + 1 + (pixel * channels + channel) * 2)
    const { data } = await decodeImage(pngClaiming(width, height, rows, 16, colourType))
    expect([...data]).toEqual(
      Array.from({ length: width * height * 3 }, (_, i) => value(Math.floor(i / 3), colours === 1 ? 0 : i % 3) >> 8),
    )
  })

  test('I17: a profile of sixteen megabytes that is none', async () => {
    const profile = Buffer.concat([Buffer.from('ICC_PROFILE\0'), Buffer.alloc(65_521, 'x')])
    const segment = (index: number): Buffer => {
      const marker = Buffer.from([0xff, 0xe2, 0xff, 0xff])
      const part = Buffer.from(profile)
      part.set([index, 255], 12)
      return Buffer.concat([marker, part])
    }
    const bloated = Buffer.concat([
      files.jpeg.subarray(0, 2),
      ...Array.from({ length: 255 }, (_, i) => segment(i + 1)),
      files.jpeg.subarray(2),
    ])
    expect(Buffer.compare((await decodeImage(bloated)).data, (await decodeImage(files.jpeg)).data)).toBe(0)
  })

  test('I19: megabytes of metadata neither count as pixels nor reach the result', async () => {
    const segment = Buffer.concat([Buffer.from([0xff, 0xe1, 0xff, 0xff]), Buffer.alloc(0xfffd, 'x')])
    const bloated = Buffer.concat([files.jpeg.subarray(0, 2), ...Array.from({ length: 60 }, () => segment), files.jpeg.subarray(2)])
    expect(Buffer.compare((await decodeImage(bloated)).data, (await decodeImage(files.jpeg)).data)).toBe(0)
    expect(await failure(bloated, { limits: { maxBytes: 2 ** 20 } })).toMatchObject({
      code: 'IMAGE_TOO_LARGE',
      got: `${bloated.length} bytes`,
    })
  })

  test.each([
    '<svg xmlns="http://www.w3.org/2000/svg" width="3" height="2"/>',
    '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg"><text>&x;</text></svg>',
    '<!-- a comment --><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
  ])('I20: SVG is blocked: %s', async (content) => {
    expect(await failure(Buffer.from(content))).toMatchObject({ code: 'IMAGE_FORMAT_BLOCKED', got: 'svg' })
  })

  test('I20: SVG that is asked for still has limits', async () => {
    const svg = (size: number): Buffer =>
      Buffer.from(
        `<svg xmlns="http://www.w3.org/2000/svg" width="${size}" height="${size}"><rect width="${size}" height="${size}" fill="red"/></svg>`,
      )
    const image = await decodeImage(svg(2), { formats: ['svg'] })
    expect([...image.data.subarray(0, 3)]).toEqual([255, 0, 0])
    expect(await failure(svg(30_000), { formats: ['svg'] })).toMatchObject({ code: 'IMAGE_TOO_LARGE' })
  })

  test.each([
    ['pdf', '%PDF-1.7\n'],
    ['heic', '\0\0\0\x18ftypheic\0\0\0\0mif1heic'],
    ['jxl', '\xff\x0a rest'],
    ['jp2', '\0\0\0\x0cjP  \r\n\x87\n'],
    ['psd', '8BPS\0\x01'],
  ])('I21: %s is blocked', async (format, start) => {
    expect(await failure(Buffer.from(start, 'latin1'))).toMatchObject({ code: 'IMAGE_FORMAT_BLOCKED', got: format })
  })

  test('I22: of a JPEG with an archive behind it only the JPEG is read', async () => {
    const polyglot = Buffer.concat([files.jpeg, Buffer.from('PK\x03\x04<script>alert(1)</script>', 'latin1')])
    expect(Buffer.compare((await decodeImage(polyglot)).data, (await decodeImage(files.jpeg)).data)).toBe(0)
  })
})

describe('I23: hostile WebP', () => {
  test.each([
    ['1.3.1', 'IMAGE_DECODER_UNSAFE'],
    ['1.2.4', 'IMAGE_DECODER_UNSAFE'],
    ['0.6.1', 'IMAGE_DECODER_UNSAFE'],
    ['1.3.2', undefined],
    ['1.10.0', undefined],
    ['2.0.0', undefined],
    [undefined, undefined],
  ])('libwebp %s', (version, code) => {
    const outcome = (): string | undefined => {
      try {
        checkWebpVersion(version)
        return undefined
      } catch (error) {
        return errorData(error).code
      }
    }
    expect(outcome()).toBe(code)
  })

  test('a lossless file with broken Huffman tables costs no process', async () => {
    const lossless = await sharp(files.png).webp({ lossless: true }).toBuffer()
    await using decoder = createImageDecoder({ processes: 1 })
    await decoder.decode(lossless)
    const before = decoder.processIds
    // The tables lie behind the header of the VP8L chunk.
    for (let at = 26; at < 58; at += 4) {
      const broken = Buffer.from(lossless)
      broken.fill(0xff, at, at + 4)
      await decoder
        .decode(broken)
        .catch((error: unknown) => expect(errorData(error).code).toMatch(/^IMAGE_(DECODE|TRUNCATED|DIMENSIONS|ASPECT|TOO_LARGE)$/))
    }
    expect(decoder.processIds).toEqual(before)
  })
})

describe('size and shape', () => {
  test('I8: 40,000 x 40,000 is refused by its header, without the memory', async () => {
    const before = process.memoryUsage().rss
    const error = await failure(pngClaiming(40_000, 40_000, new Uint8Array(4_000_000)))
    expect(error).toMatchObject({ code: 'IMAGE_TOO_LARGE', got: '40000 x 40000 pixels' })
    expect(process.memoryUsage().rss - before).toBeLessThan(50e6)
  })

  test.each([
    [1, 65_500],
    [65_500, 1],
    [2, 401],
  ])('I9: %i x %i is refused for its shape', async (width, height) => {
    const rows = new Uint8Array(height * (width * 3 + 1))
    expect(await failure(pngClaiming(width, height, rows))).toMatchObject({ code: 'IMAGE_ASPECT' })
    expect(await failure(pngClaiming(width, height, rows), { limits: { maxAspectRatio: 70_000 } })).toEqual({
      code: `DECODED ${width} x ${height}`,
    })
  })

  test.each([
    [1, 1],
    [2, 1],
    [1, 200],
  ])('I10: %i x %i is a picture, and becomes a tensor of the right shape', async (width, height) => {
    const image = await decodeImage(pngClaiming(width, height, new Uint8Array(height * (width * 3 + 1))))
    const spec = { resize: { size: { shortestEdge: 32 }, filter: 'bicubic' }, centreCrop: { height: 32, width: 32 } } as const
    expect(preprocessImage(image, spec).dims).toEqual([1, 3, 32, 32])
  })

  test('I11: no width', async () => {
    expect((await failure(pngClaiming(0, 8, new Uint8Array(8)))).code).toMatch(/^IMAGE_(DIMENSIONS|DECODE)$/)
    expect(await failure(bitmap(0, 8, new Uint8Array(8)))).toMatchObject({ code: 'IMAGE_DIMENSIONS' })
  })

  test('I35: a picture that takes too long', async () => {
    const large = await sharp({ create: { width: 6000, height: 6000, channels: 3, background: 'red' } })
      .png({ compressionLevel: 1 })
      .toBuffer()
    expect(await failure(large, { limits: { timeoutMs: 5 } })).toMatchObject({ code: 'IMAGE_TIMEOUT', got: 'no picture after 5 ms' })
  })

  test('an abort reaches the caller', async () => {
    await expect(decodeImage(files.jpeg, { signal: AbortSignal.abort() })).rejects.toMatchObject({ name: 'AbortError' })
    const controller = new AbortController()
    const decoding = decodeImage(files.jpeg, { signal: controller.signal })
    controller.abort()
    await expect(decoding).rejects.toMatchObject({ name: 'AbortError' })
  })
})

describe('paths and kinds of files', () => {
  test('I24: a folder, a FIFO, a socket and a device are not read, and none of them blocks', async () => {
    await mkdir(path.join(folder, 'folder.jpg'))
    const fifo = path.join(folder, 'fifo.jpg')
    execFileSync('mkfifo', [fifo])
    const socket = path.join(folder, 'socket.jpg')
    const server = createServer()
    await new Promise<void>((resolve) => server.listen(socket, resolve))
    for (const file of [path.join(folder, 'folder.jpg'), fifo, socket, '/dev/zero'])
      expect(await failure(file)).toMatchObject({ code: 'FILE_NOT_REGULAR', file })
    await new Promise((resolve) => server.close(resolve))
  })

  test('I25: a link that leaves the root', async () => {
    const outside = await written('outside.png', files.png)
    const root = path.join(folder, 'root')
    await mkdir(path.join(root, 'sub'), { recursive: true })
    await symlink(outside, path.join(root, 'link.png'))
    await symlink(folder, path.join(root, 'up'))
    await writeFile(path.join(root, 'sub', 'in.png'), files.png)
    await symlink(path.join('sub', 'in.png'), path.join(root, 'inside.png'))
    expect(await failure('link.png', { root })).toMatchObject({ code: 'PATH_ESCAPE', file: 'link.png' })
    expect(await failure('up/outside.png', { root })).toMatchObject({ code: 'PATH_ESCAPE' })
    expect(await failure('inside.png', { root })).toEqual({ code: 'DECODED 96 x 64' })
    expect(await failure('./sub//in.png', { root })).toEqual({ code: 'DECODED 96 x 64' })
  })

  test.each([
    ['../outside.png', 'PATH_ESCAPE'],
    ['sub/../../outside.png', 'PATH_ESCAPE'],
    ['sub\\..\\..\\outside.png', 'PATH_ESCAPE'],
    ['/etc/passwd', 'PATH_ABSOLUTE'],
    ['C:\\windows\\win.ini', 'PATH_ABSOLUTE'],
    ['\\\\server\\share\\x.png', 'PATH_ABSOLUTE'],
    ['file:///etc/passwd', 'PATH_URL'],
    ['http://169.254.169.254/latest', 'PATH_URL'],
    ['data:image/png;base64,AAAA', 'PATH_URL'],
    ['concat:a|b', 'PATH_URL'],
    ['a\0.png', 'PATH_NUL'],
    ['', 'PATH_EMPTY'],
    ['.', 'PATH_ESCAPE'],
  ])('a path that is no path below the root: %j', async (name, code) => {
    expect(await failure(name, { root: folder })).toMatchObject({ code, file: name })
  })

  test('a folder whose name begins like the root is not below it', async () => {
    await mkdir(path.join(folder, 'img'))
    await mkdir(path.join(folder, 'img-private'))
    const secret = await written('img-private/x.png', files.png)
    await symlink(secret, path.join(folder, 'img', 'x.png'))
    expect(await failure('x.png', { root: path.join(folder, 'img') })).toMatchObject({ code: 'PATH_ESCAPE' })
  })

  test('I26: links in a circle', async () => {
    await symlink(path.join(folder, 'b.png'), path.join(folder, 'a.png'))
    await symlink(path.join(folder, 'a.png'), path.join(folder, 'b.png'))
    expect(await failure(path.join(folder, 'a.png'))).toMatchObject({ code: 'FILE_MISSING', got: expect.stringContaining('loop') })
    expect(await failure('a.png', { root: folder })).toMatchObject({ code: 'FILE_MISSING', got: expect.stringContaining('loop') })
  })

  test('a missing file: what is near is suggested', async () => {
    await mkdir(path.join(folder, 'Photos'))
    await written('Photos/Cat.JPG', files.jpeg)
    expect(await failure('Photos/cat.jpg', { root: folder })).toMatchObject({ code: 'FILE_MISSING', hint: 'did you mean "Cat.JPG"?' })
    expect(await failure('photos/Cat.JPG', { root: folder })).toMatchObject({ code: 'FILE_MISSING', hint: 'did you mean "Photos"?' })
    expect(await failure(path.join(folder, 'Photos', 'Cat.png'))).toMatchObject({ code: 'FILE_MISSING', hint: 'did you mean "Cat.JPG"?' })
    expect(await failure('Photos/dog.jpg', { root: folder })).toMatchObject({
      code: 'FILE_MISSING',
      got: expect.stringContaining('no "dog.jpg" in'),
    })
    expect(await failure('x.jpg', { root: path.join(folder, 'nowhere') })).toMatchObject({ code: 'FILE_MISSING' })
  })

  test('I27: a file that is exchanged while it is read is read once more; one that keeps changing is refused', async () => {
    const file = await written('changing.png', files.png)
    const replace = async (): Promise<void> => {
      await writeFile(`${file}.new`, files.webp)
      await rename(`${file}.new`, file)
    }
    // The reads race with the exchanges: whatever they give is one of the two files, whole.
    let busy = true
    const exchanging = (async () => {
      for (let round = 0; busy; round++) {
        if (round % 2 === 0) await replace()
        else await writeFile(file, files.png)
      }
    })()
    const outcomes = new Set<string>()
    for (let round = 0; round < 60; round++) {
      const bytes = await readMediaFile(file, { maxBytes: 1e6 }).catch((error: unknown) => errorData(error).code)
      if (typeof bytes === 'string') outcomes.add(bytes)
      else if (bytes.length > 0 && Buffer.compare(bytes, files.png) !== 0 && Buffer.compare(bytes, files.webp) !== 0)
        // writeFile truncates, then writes: a shorter png is a file that somebody was still writing.
        outcomes.add(Buffer.compare(bytes, files.png.subarray(0, bytes.length)) === 0 ? 'partly written' : 'MIXED')
    }
    busy = false
    await exchanging
    expect([...outcomes].filter((outcome) => !['FILE_CHANGED', 'FILE_MISSING', 'partly written'].includes(outcome))).toEqual([])
  })

  test.skipIf(process.platform === 'win32')('I28: a file that may not be read', async () => {
    const file = await written('secret.png', files.png)
    await chmod(file, 0o000)
    // Root may read anything, so as root the test reads as nobody.
    const isRoot = process.geteuid?.() === 0
    if (isRoot) process.seteuid?.(65_534)
    try {
      expect(await failure(file)).toMatchObject({ code: 'FILE_PERMISSION', file })
    } finally {
      if (isRoot) process.seteuid?.(0)
    }
  })

  test.each([
    'new\nline.png',
    '\u202egnp.exe.png',
    'caf\u00e9.png',
    'cafe\u0301.png',
    '😀.png',
    `${'x'.repeat(251)}.png`,
    '-y.png',
    'x%03d.png',
    'a|b.png',
  ])('I29: the name %j works', async (name) => {
    await written(name, files.png)
    expect(await failure(name, { root: folder })).toEqual({ code: 'DECODED 96 x 64' })
  })

  test.skipIf(process.platform !== 'linux')(
    'I29: a name that is no UTF-8 cannot be said as text, and is missing rather than mistaken',
    async () => {
      const name = Buffer.concat([Buffer.from(`${folder}/odd-`), Buffer.from([0xff]), Buffer.from('.png')])
      await writeFile(name, files.png)
      expect(await failure('odd-\ufffd.png', { root: folder })).toMatchObject({ code: 'FILE_MISSING' })
      expect(await failure(pathToFileURL(`${folder}/odd-`).href.concat('%FF.png'))).toMatchObject({ code: 'URL_INVALID' })
    },
  )

  test('I34: a sparse file of a terabyte is refused unread', async () => {
    const file = path.join(folder, 'sparse.png')
    const handle = await open(file, 'w')
    await handle.truncate(1e12)
    await handle.close()
    expect(await failure(file)).toMatchObject({ code: 'IMAGE_TOO_LARGE', got: '1000000000000 bytes' })
  })

  test('every error names the file and fits on one line', async () => {
    const file = await written('page.jpg', '<html>\n<body>')
    const error = await failure(file)
    expect(renderError(error)).toMatch(/^IMAGE_NOT_IMAGE: [^\n]*page\.jpg: got 3c 68 [^\n]*HTML, expected an image$/)
  })
})

describe('BMP, which sharp cannot read', () => {
  const pixels = Uint8Array.from({ length: 4 * 2 * 3 }, (_, i) => i * 10)

  test('without ffmpeg it is refused with what to do', async () => {
    const error = await failure(bitmap(4, 2, pixels), { ffmpeg: '/nowhere/ffmpeg' })
    expect(error).toMatchObject({
      code: 'FFMPEG_MISSING',
      expected: 'ffmpeg, which decodes BMP pictures',
      hint: expect.stringContaining('convert the picture to PNG'),
    })
  })

  test('a size from the header is checked before anything runs', async () => {
    expect(await failure(bitmap(100_000, 100_000, pixels), { ffmpeg: '/nowhere/ffmpeg' })).toMatchObject({ code: 'IMAGE_TOO_LARGE' })
    expect(await failure(bitmap(-4, 2, pixels), { ffmpeg: '/nowhere/ffmpeg' })).toMatchObject({ code: 'IMAGE_DIMENSIONS' })
    expect(await failure(bitmap(4, 2, pixels).subarray(0, 20))).toMatchObject({ code: 'IMAGE_TRUNCATED' })
  })
})
