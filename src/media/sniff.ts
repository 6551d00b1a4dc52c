/** What a file is by its first bytes. Names and extensions are never trusted: real collections hold GIFs called .jpg and error pages called .png. */

export const imageFormats = ['jpeg', 'png', 'webp', 'gif', 'tiff', 'avif', 'bmp', 'svg', 'heic', 'jxl', 'jp2', 'pdf', 'ico', 'psd'] as const
export type ImageFormat = (typeof imageFormats)[number]

/** Containers and streams that hold sound or moving pictures. */
export const mediaContainers = ['mov', 'matroska', 'avi', 'mpegts', 'ogg', 'flac', 'wav', 'mp3', 'aac'] as const
export type MediaContainer = (typeof mediaContainers)[number]

export type Sniffed =
  | { readonly type: 'image'; readonly format: ImageFormat }
  | { readonly type: 'container'; readonly format: MediaContainer }
  /** Known, but nothing that we decode. */
  | { readonly type: 'other'; readonly looksLike: string }
  | { readonly type: 'unknown' }

/** `sniff` looks at this many bytes at most. */
export const sniffedBytes = 1024

const latin1 = (bytes: Uint8Array, from: number, to: number): string => Buffer.from(bytes.subarray(from, to)).toString('latin1')

interface Signature {
  readonly at: number
  readonly magic: string
  readonly is: Sniffed
}
const image = (format: ImageFormat): Sniffed => ({ type: 'image', format })
const container = (format: MediaContainer): Sniffed => ({ type: 'container', format })
const other = (looksLike: string): Sniffed => ({ type: 'other', looksLike })

const signatures: readonly Signature[] = [
  { at: 0, magic: '\xff\xd8\xff', is: image('jpeg') },
  { at: 0, magic: '\x89PNG\r\n\x1a\n', is: image('png') },
  { at: 0, magic: 'GIF87a', is: image('gif') },
  { at: 0, magic: 'GIF89a', is: image('gif') },
  { at: 0, magic: 'II*\0', is: image('tiff') },
  { at: 0, magic: 'MM\0*', is: image('tiff') },
  { at: 0, magic: 'II+\0', is: image('tiff') },
  { at: 0, magic: 'MM\0+', is: image('tiff') },
  { at: 0, magic: '\xff\x0a', is: image('jxl') },
  { at: 0, magic: '\0\0\0\x0cJXL \r\n\x87\n', is: image('jxl') },
  { at: 0, magic: '\0\0\0\x0cjP  \r\n\x87\n', is: image('jp2') },
  { at: 0, magic: '\xff\x4f\xff\x51', is: image('jp2') },
  { at: 0, magic: '%PDF-', is: image('pdf') },
  { at: 0, magic: '\0\0\x01\0', is: image('ico') },
  { at: 0, magic: '8BPS', is: image('psd') },
  { at: 0, magic: '\x1aE\xdf\xa3', is: container('matroska') },
  { at: 0, magic: 'OggS', is: container('ogg') },
  { at: 0, magic: 'fLaC', is: container('flac') },
  { at: 0, magic: 'ID3', is: container('mp3') },
  { at: 0, magic: '%!PS', is: other('PostScript') },
  { at: 0, magic: 'SIMPLE  =', is: other('FITS') },
  { at: 0, magic: 'MATLAB 5.0', is: other('a MATLAB file') },
  { at: 0, magic: '\x89HDF', is: other('HDF5') },
  { at: 0, magic: 'PK\x03\x04', is: other('a ZIP archive') },
  { at: 0, magic: '\x1f\x8b', is: other('gzip') },
  { at: 0, magic: '#EXTM3U', is: other('a playlist') },
  { at: 0, magic: 'ffconcat', is: other('an ffmpeg script') },
  { at: 0, magic: 'version https://git-lfs', is: other('a Git LFS pointer, not the file itself') },
]

const riffTypes: ReadonlyMap<string, Sniffed> = new Map([
  ['WEBP', image('webp')],
  ['WAVE', container('wav')],
  ['AVI ', container('avi')],
])
const heicBrands = new Set(['heic', 'heix', 'heim', 'heis', 'hevc', 'hevx', 'mif1', 'msf1'])
const bitmapHeaderSizes = new Set([12, 40, 52, 56, 64, 108, 124])

/**
 * Names a file by its first {@link sniffedBytes} bytes.
 *
 * @example
 * sniff(Buffer.from('GIF89a...')) // { type: 'image', format: 'gif' }
 * sniff(Buffer.from('<!DOCTYPE html><title>404</title>')) // { type: 'other', looksLike: 'HTML' }
 */
export function sniff(bytes: Uint8Array): Sniffed {
  for (const { at, magic, is } of signatures) if (latin1(bytes, at, at + magic.length) === magic) return is
  const four = latin1(bytes, 0, 4)
  if (['RIFF', 'RIFX', 'RF64', 'BW64'].includes(four)) return riffTypes.get(latin1(bytes, 8, 12)) ?? other('a RIFF file of another kind')
  if (latin1(bytes, 4, 8) === 'ftyp') return isoBrand(bytes)
  if (four.startsWith('BM') && bitmapHeaderSizes.has(view(bytes).byteLength >= 18 ? view(bytes).getUint32(14, true) : 0))
    return image('bmp')
  if (bytes[0] === 0x47 && bytes[188] === 0x47 && bytes[376] === 0x47) return container('mpegts')
  // Eleven sync bits, then the layer: 0 is AAC (ADTS), the others MPEG audio.
  if (bytes[0] === 0xff && ((bytes[1] ?? 0) & 0xe0) === 0xe0) return container(((bytes[1] ?? 0) & 0x06) === 0 ? 'aac' : 'mp3')
  return sniffText(latin1(bytes, 0, sniffedBytes))
}

function isoBrand(bytes: Uint8Array): Sniffed {
  const end = Math.min(view(bytes).getUint32(0), bytes.length, 256)
  const brands = [latin1(bytes, 8, 12)]
  for (let at = 16; at + 4 <= end; at += 4) brands.push(latin1(bytes, at, at + 4))
  if (brands.some((brand) => brand === 'avif' || brand === 'avis')) return image('avif')
  if (brands.some((brand) => heicBrands.has(brand))) return image('heic')
  return container('mov')
}

const htmlElements = new Set(['html', 'head', 'body', 'title', 'meta', 'script', 'h1', 'p', 'div', 'center'])

/** The first element of a document in lower case, or what its document type names, behind declarations and comments; undefined where none begins within the text. */
function rootElement(text: string): string | undefined {
  let at = 0
  // Each round moves forward, so that no text takes more than its own length.
  while (at < text.length) {
    if (text.startsWith('<!--', at)) at = after(text, '-->', at + 4)
    else if (text.startsWith('<?', at)) at = after(text, '?>', at + 2)
    else if (text.startsWith('<!doctype', at)) return /^\s+([\w:-]+)/.exec(text.slice(at + 9, at + 64))?.[1]
    else if (text[at] === '<') return /^[\w:-]+/.exec(text.slice(at + 1, at + 64))?.[0]
    else at++
  }
  return undefined
}

function after(text: string, end: string, from: number): number {
  const at = text.indexOf(end, from)
  return at < 0 ? text.length : at + end.length
}

function sniffText(text: string): Sniffed {
  const start = text
    .replace(/^\xef\xbb\xbf/, '')
    .trimStart()
    .toLowerCase()
  if (start.startsWith('<')) {
    const root = rootElement(start)
    if (root === 'svg' || root?.endsWith(':svg') === true) return image('svg')
    return other(root !== undefined && htmlElements.has(root) ? 'HTML' : 'XML')
  }
  if (/^[[{]\s*(["[{}\]]|-?\d|true|false|null)/.test(start)) return other('JSON')
  return { type: 'unknown' }
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/**
 * Whether an image that did not decode ends before its own structure says it should. Decoders report a cut file in many words, or as a
 * bad header; the structure is plainer.
 */
export function endsEarly(bytes: Uint8Array, format: ImageFormat): boolean {
  const data = view(bytes)
  const { length } = bytes
  if (format === 'jpeg')
    return !(bytes[length - 2] === 0xff && bytes[length - 1] === 0xd9) && !latin1(bytes, length - 4096, length).includes('\xff\xd9')
  if (format === 'png') return !chunksReach(bytes, 'IEND')
  if (format === 'webp') return length < 12 || data.getUint32(4, true) + 8 > length
  if (format === 'gif') return bytes[length - 1] !== 0x3b
  if (format === 'bmp') return length < 18 || data.getUint32(2, true) > length
  if (format === 'avif') return !boxesFit(bytes)
  if (format === 'tiff') return length < 8 || data.getUint32(4, bytes[0] === 0x49) + 2 > length
  return false
}

function chunksReach(bytes: Uint8Array, last: string): boolean {
  const data = view(bytes)
  for (let at = 8; at + 12 <= bytes.length; at += data.getUint32(at) + 12) if (latin1(bytes, at + 4, at + 8) === last) return true
  return false
}

function boxesFit(bytes: Uint8Array): boolean {
  const data = view(bytes)
  let at = 0
  while (at + 8 <= bytes.length) {
    const size = data.getUint32(at)
    // 0: to the end of the file; 1: a 64-bit size follows.
    if (size === 0) return true
    const whole = size === 1 ? (at + 16 <= bytes.length ? Number(data.getBigUint64(at + 8)) : Number.POSITIVE_INFINITY) : size
    if (whole < 8) return true
    at += whole
  }
  return at === bytes.length
}
