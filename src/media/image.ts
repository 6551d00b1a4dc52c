/** Pictures from files and bytes to 8-bit RGB. Every limit of size, shape and time is enforced here, before the decoder does work. */
import path from 'node:path'
import type { Sharp, SharpOptions } from 'sharp'
import { ModalignError } from '../errors.ts'
import type { HttpAccess } from '../io/guarded-fetch.ts'
import type { DecodedImage } from '../model/contracts.ts'
import { decodeBitmap } from './bitmap.ts'
import type { Colour } from './crop.ts'
import { checkDimensions, defaultImageLimits, type ImageLimits } from './image-limits.ts'
import { plainJpeg } from './jpeg.ts'
import { endsEarly, type ImageFormat, imageFormats, type Sniffed, sniff, sniffedBytes } from './sniff.ts'
import { type MediaInput, readMedia, sourceName } from './source.ts'

/** What is decoded unless asked otherwise. SVG and PDF can name other files and draw without end; HEIC, JPEG XL and JPEG 2000 need what sharp's builds leave out. */
export const defaultImageFormats: readonly ImageFormat[] = ['jpeg', 'png', 'webp', 'gif', 'tiff', 'avif', 'bmp']

export interface DecodeImageOptions {
  /** The folder that a path is relative to and may not leave. Without it the path is taken as a user's own, relative to the working directory. */
  readonly root?: string | undefined
  readonly formats?: readonly ImageFormat[] | undefined
  /** Which servers pictures may be fetched from. Default none. */
  readonly http?: HttpAccess | undefined
  /** Which frame of an animation, or page of a stack, counted from 0. Default 0. An animation's frames are whole pictures, earlier ones laid below. */
  readonly page?: number | undefined
  readonly limits?: Partial<ImageLimits> | undefined
  /**
   * What transparency becomes: `flatten` (default) lays the picture on `background`; `drop` keeps the colours as stored, as Pillow's
   * `convert('RGB')` does, so that what was invisible shows. Choose `drop` to repeat the pixels of a Python pipeline.
   */
  readonly alpha?: 'flatten' | 'drop' | undefined
  /** Default white. */
  readonly background?: Colour | undefined
  /** Whether a file that ends early is refused (default) or decoded as far as it goes (a PNG in steps of 8 KiB), the rest grey or black, with the note `truncated`. */
  readonly truncated?: 'refuse' | 'accept' | undefined
  /** The ffmpeg program, for BMP. See `findFfmpeg`. */
  readonly ffmpeg?: string | undefined
  readonly signal?: AbortSignal | undefined
  /**
   * Ordinary JPEGs are decoded in the calling thread, which they block, in less than half of libvips's time and to the same pixels, which lie in memory that the next such
   * call writes over: for processes that decode one picture after another and do nothing else. Default false.
   */
  readonly inThisThread?: boolean | undefined
  /** Called with the number of pixels once the header has passed the limits; decoding waits for it, and the clock starts anew after it. For those who share memory among decodes. */
  readonly beforeDecode?: ((pixels: number) => Promise<void>) | undefined
}

/** What is worth counting though the picture was accepted. */
export type ImageNote =
  /** The name says another format. */
  | 'extension-mismatch'
  /** The file ends early and that was accepted. */
  | 'truncated'
  /** The decoder complained (stray bytes, bad metadata) but had the whole picture. */
  | 'decoder-warning'
  /** The first of several frames or pages was taken, and none was asked for. */
  | 'first-frame'

export interface DecodedImageFile extends DecodedImage {
  readonly format: ImageFormat
  readonly notes: readonly ImageNote[]
}

/**
 * Decodes one picture to 8-bit RGB, pixel for pixel as Pillow does where the format leaves no choice: EXIF orientation applied once; 16-bit
 * channels lose their low byte; grey, palettes and CMYK become RGB by Pillow's formulas; ICC profiles are ignored (encoders were trained that
 * way); of an animation or a stack of pages the first is taken, or the one asked for; alpha as {@link DecodeImageOptions.alpha} says. What the file is, its first
 * bytes say, not its name. BMP goes through ffmpeg, because sharp cannot read it.
 *
 * @param source a path, a URL, the file's bytes, or a stream of them: see {@link MediaInput}
 * @throws {ModalignError} `IMAGE_EMPTY`, `IMAGE_NOT_IMAGE`, `IMAGE_FORMAT_BLOCKED`, `IMAGE_TOO_LARGE`, `IMAGE_DIMENSIONS`, `IMAGE_ASPECT`, `IMAGE_TRUNCATED`,
 * `IMAGE_DECODE`, `IMAGE_PAGE`, `IMAGE_TIMEOUT`; for the source what {@link readMedia} throws; `FFMPEG_...` for BMP. An `AbortError` where `signal` says so.
 *
 * @example
 * const { width, height, data } = await decodeImage('cat.jpg') // data.length === 3 * width * height
 */
export async function decodeImage(source: MediaInput, options: DecodeImageOptions = {}): Promise<DecodedImageFile> {
  const limits = { ...defaultImageLimits, ...options.limits }
  const file = sourceName(source)
  const { signal } = options
  signal?.throwIfAborted()
  // The clock covers what libvips's own does not: reading from a slow disk, waiting for a thread.
  let timer: NodeJS.Timeout | undefined
  let startClock = (): void => {}
  let abort = (): void => {}
  const stopped = new Promise<never>((_, reject) => {
    startClock = () => {
      timer = setTimeout(() => reject(timeoutError(limits.timeoutMs)), limits.timeoutMs)
    }
    abort = () => reject(signal?.reason)
  })
  signal?.addEventListener('abort', abort, { once: true })
  let asked = false
  const beforeDecode = async (pixels: number): Promise<void> => {
    if (asked) return
    asked = true
    clearTimeout(timer)
    await options.beforeDecode?.(pixels)
    startClock()
  }
  startClock()
  try {
    return await Promise.race([decodeWithin(source, limits, { ...options, beforeDecode }), stopped])
  } catch (error) {
    throw error instanceof ModalignError && file !== undefined ? new ModalignError({ ...error.details, file, cause: error.cause }) : error
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', abort)
  }
}

function timeoutError(timeoutMs: number): ModalignError {
  return new ModalignError({ code: 'IMAGE_TIMEOUT', got: `no picture after ${timeoutMs} ms`, expected: 'a picture that decodes in time' })
}

async function decodeWithin(source: MediaInput, limits: ImageLimits, options: DecodeImageOptions): Promise<DecodedImageFile> {
  const bytes = await readMedia(source, {
    maxBytes: limits.maxBytes,
    tooLargeCode: 'IMAGE_TOO_LARGE',
    timeoutMs: limits.timeoutMs,
    root: options.root,
    http: options.http,
    signal: options.signal,
  })
  const format = identify(bytes, options.formats ?? defaultImageFormats)
  const named = formatOfExtension(source instanceof URL ? source.pathname : typeof source === 'string' ? source : '')
  const mismatch: readonly ImageNote[] = named !== undefined && named !== format ? ['extension-mismatch'] : []
  if (format === 'bmp') pageOf(options, 1)
  const decoded =
    format === 'bmp'
      ? { ...(await decodeBitmap(bytes, limits, options)), notes: [] }
      : ((format === 'jpeg' && options.inThisThread === true ? await decodePlainJpeg(bytes, limits, options) : undefined) ??
        (await decodeWithSharp(bytes, format, limits, options)))
  return { ...decoded, format, notes: [...mismatch, ...decoded.notes] }
}

function identify(bytes: Uint8Array, allowed: readonly ImageFormat[]): ImageFormat {
  if (bytes.length === 0) throw new ModalignError({ code: 'IMAGE_EMPTY', got: '0 bytes', expected: 'an image' })
  const found = sniff(bytes.subarray(0, sniffedBytes))
  if (found.type === 'image') {
    if (allowed.includes(found.format)) return found.format
    throw new ModalignError({
      code: 'IMAGE_FORMAT_BLOCKED',
      got: found.format,
      expected: `one of ${allowed.join(', ')}`,
      hint: 'convert it to PNG, or allow the format by name',
    })
  }
  const start = Buffer.from(bytes.subarray(0, 16)).toString('hex').replace(/../g, '$& ').trim()
  throw new ModalignError({ code: 'IMAGE_NOT_IMAGE', got: `${start}${looksLike(found)}`, expected: 'an image' })
}

function looksLike(found: Exclude<Sniffed, { type: 'image' }>): string {
  if (found.type === 'container') return `, which looks like sound or video (${found.format})`
  return found.type === 'other' ? `, which looks like ${found.looksLike}` : ''
}

const otherExtensions: Readonly<Record<string, ImageFormat>> = {
  jpg: 'jpeg',
  jpe: 'jpeg',
  jfif: 'jpeg',
  tif: 'tiff',
  apng: 'png',
  dib: 'bmp',
}

function formatOfExtension(file: string): ImageFormat | undefined {
  const extension = path.extname(file).slice(1).toLowerCase()
  return Object.hasOwn(otherExtensions, extension) ? otherExtensions[extension] : imageFormats.find((format) => format === extension)
}

type Decoded = DecodedImage & { readonly notes: readonly ImageNote[] }

/** Undefined where libvips is to judge. */
async function decodePlainJpeg(bytes: Uint8Array, limits: ImageLimits, options: DecodeImageOptions): Promise<Decoded | undefined> {
  const jpeg = plainJpeg(bytes)
  if (jpeg === undefined) return undefined
  checkDimensions(jpeg.width, jpeg.height, limits)
  await options.beforeDecode?.(jpeg.width * jpeg.height)
  pageOf(options, 1)
  const image = jpeg.decode()
  return image && { ...image, notes: [] }
}

/** sharp's name of a format where it is not ours. */
const sharpNames: Readonly<Partial<Record<ImageFormat, string>>> = { avif: 'heif', heic: 'heif' }

let sharpModule: Promise<typeof import('sharp')> | undefined

/** At first use: programs that never see a picture need no native module. Once: an import goes through every loader hook, each time. */
function loadSharp(): Promise<typeof import('sharp')> {
  sharpModule ??= import('sharp')
  return sharpModule
}

async function decodeWithSharp(bytes: Uint8Array, format: ImageFormat, limits: ImageLimits, options: DecodeImageOptions): Promise<Decoded> {
  const { default: sharp } = await loadSharp()
  const failed = (error: unknown): ModalignError => decodeError(error, bytes, format, limits)
  if (format === 'webp') checkWebpVersion(sharp.versions.webp)

  const header = await sharp(bytes, { limitInputPixels: false, failOn: 'none' })
    .metadata()
    .catch((error: unknown) => {
      throw failed(error)
    })
  if (header.format !== (sharpNames[format] ?? format)) {
    throw new ModalignError({
      code: 'IMAGE_DECODE',
      got: `${format} by its first bytes, ${header.format} to the decoder`,
      expected: 'one format',
    })
  }
  checkDimensions(header.width, header.height, limits)
  await options.beforeDecode?.(header.width * header.height)

  const pages = header.pages ?? 1
  const page = pageOf(options, pages)
  const cmyk = header.space === 'cmyk'
  const decode = async (failOn: NonNullable<SharpOptions['failOn']>): Promise<DecodedImage> => {
    const picture: Sharp = sharp(bytes, {
      failOn,
      limitInputPixels: limits.maxPixels,
      sequentialRead: true,
      ...(pages > 1 && { page, pages: 1 }),
      autoOrient: true,
      ignoreIcc: true,
    })
    const inColours = cmyk ? picture.pipelineColourspace('cmyk').toColourspace('cmyk') : picture.toColourspace('srgb')
    const { data, info } = await inColours
      .timeout({ seconds: Math.min(3600, Math.ceil(limits.timeoutMs / 1000)) })
      .raw({ depth: 'uchar' })
      .toBuffer({ resolveWithObject: true })
    const rgb = cmyk ? rgbOfCmyk(data, info.channels) : rgbOf(data, info.channels, options)
    return { width: info.width, height: info.height, data: rgb }
  }
  const several: readonly ImageNote[] = pages > 1 && options.page === undefined ? ['first-frame'] : []
  return await decode('warning').then(
    (image) => ({ ...image, notes: several }),
    async (error: unknown) => {
      const strict = failed(error)
      if (strict.code === 'IMAGE_TIMEOUT') throw strict
      if (strict.code === 'IMAGE_TRUNCATED') {
        if (options.truncated !== 'accept') throw strict
        const image = await decode('none').catch(() => Promise.reject(strict))
        return { ...image, notes: [...several, 'truncated' as const] }
      }
      // Real collections are full of stray bytes and odd metadata around whole pictures; those are warnings, not errors.
      const image = await decode('error').catch(() => Promise.reject(strict))
      return { ...image, notes: [...several, 'decoder-warning' as const] }
    },
  )
}

/** libwebp below 1.3.2 writes past its buffers on crafted files (CVE-2023-4863). sharp's own builds are newer; a libvips of the system may not be. */
export function checkWebpVersion(version: string | undefined): void {
  const [major = 0, minor = 0, patch = 0] = (version ?? '').split('.').map(Number)
  // A build that does not say cannot be judged; sharp's always say.
  if (version === undefined || major * 1e6 + minor * 1e3 + patch >= 1_003_002) return
  throw new ModalignError({
    code: 'IMAGE_DECODER_UNSAFE',
    got: `libwebp ${version}`,
    expected: 'libwebp 1.3.2 or newer',
    hint: "update libwebp, or use sharp's own libvips",
  })
}

function pageOf({ page = 0 }: DecodeImageOptions, pages: number): number {
  if (Number.isSafeInteger(page) && page >= 0 && page < pages) return page
  throw new ModalignError({ code: 'IMAGE_PAGE', got: `page ${page}`, expected: `a whole number from 0 to ${pages - 1}` })
}

function decodeError(error: unknown, bytes: Uint8Array, format: ImageFormat, limits: ImageLimits): ModalignError {
  const words = error instanceof Error ? error.message : String(error)
  if (/timeout/i.test(words)) return timeoutError(limits.timeoutMs)
  if (endsEarly(bytes, format)) {
    return new ModalignError({
      code: 'IMAGE_TRUNCATED',
      got: `a ${format} of ${bytes.length} bytes that ends early`,
      expected: 'a whole file',
      hint: "fetch it again, or accept cut files with truncated: 'accept'",
      cause: error,
    })
  }
  return new ModalignError({ code: 'IMAGE_DECODE', got: words.replaceAll('\n', '; '), expected: `a ${format} that decodes`, cause: error })
}

/** Grey, grey with alpha, RGB or RGBA to RGB. */
function rgbOf(data: Uint8Array, channels: number, { alpha = 'flatten', background = [255, 255, 255] }: DecodeImageOptions): Uint8Array {
  if (channels === 3) return new Uint8Array(data.buffer, data.byteOffset, data.length)
  const pixels = data.length / channels
  const rgb = new Uint8Array(pixels * 3)
  const hasAlpha = channels === 2 || channels === 4
  const step = channels < 3 ? 0 : 1
  for (let pixel = 0; pixel < pixels; pixel++) {
    const at = pixel * channels
    const opacity = hasAlpha && alpha === 'flatten' ? (data[at + channels - 1] ?? 0) : 255
    for (let channel = 0; channel < 3; channel++) {
      const value = data[at + channel * step] ?? 0
      rgb[pixel * 3 + channel] = opacity === 255 ? value : dividedBy255(value * opacity + (background[channel] ?? 0) * (255 - opacity))
    }
  }
  return rgb
}

/** Pillow's CMYK to RGB: black first, then the inks take their share of what is left. */
function rgbOfCmyk(data: Uint8Array, channels: number): Uint8Array {
  const pixels = data.length / channels
  const rgb = new Uint8Array(pixels * 3)
  for (let pixel = 0; pixel < pixels; pixel++) {
    const white = 255 - (data[pixel * channels + 3] ?? 0)
    for (let ink = 0; ink < 3; ink++) rgb[pixel * 3 + ink] = Math.max(0, white - dividedBy255((data[pixel * channels + ink] ?? 0) * white))
  }
  return rgb
}

/** x / 255 rounded, for 0 <= x <= 255 * 255. */
function dividedBy255(x: number): number {
  return Math.floor((x + 127) / 255)
}
