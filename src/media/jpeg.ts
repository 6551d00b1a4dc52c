/**
 * Ordinary JPEGs to RGB in the calling thread, in less than half of libvips's time, and byte for byte what libjpeg makes of them (its default settings: the accurate
 * integer DCT, smooth enlarging of colours). Whatever is not ordinary, damaged files above all, is left to libvips and its judgement. All bytes of a file are read by
 * WebAssembly, within a memory that holds nothing but pictures.
 */
import type { DecodedImage } from '../model/contracts.ts'
import { grown } from '../webassembly.ts'
import { type JpegProgram, jpegProgram } from './jpeg-simd.ts'
import { keepBytes } from './picture-memory.ts'

interface Part {
  /** Sampling factors: blocks of it in an MCU. */
  readonly across: number
  readonly down: number
  readonly divisors: Uint16Array
}

interface HuffmanTable {
  /** How many codes of each length, from 1 to 16. */
  readonly counts: Uint8Array
  readonly symbols: Uint8Array
}

interface Headers {
  readonly width: number
  readonly height: number
  readonly parts: readonly (Part & { readonly dc: HuffmanTable; readonly ac: HuffmanTable })[]
  /** MCUs between restart markers; 0: none. */
  readonly restart: number
  /** Where the scan's data begins. */
  readonly data: number
}

/** A JPEG whose headers are read. */
export interface PlainJpeg {
  readonly width: number
  readonly height: number
  /** Undefined where its data is not as it should be. The pixels lie in memory that the next picture is written to, or that moves. */
  decode(): DecodedImage | undefined
}

/**
 * Undefined for a file that is better left to libvips: progressive, arithmetic, lossless, of 12 bits, turned by EXIF, in CMYK or RGB, with unusual sampling, in several scans,
 * or larger than a thread should keep memory for.
 *
 * @example
 * plainJpeg(await readFile('cat.jpg'))?.decode() // { width: 640, height: 480, data }
 */
export function plainJpeg(bytes: Uint8Array): PlainJpeg | undefined {
  const headers = headersOf(bytes)
  if (headers === undefined) return undefined
  const layout = layoutOf(headers, bytes.length)
  const program = layout.bytes > mostBytes ? undefined : jpegProgram()
  if (program === undefined) return undefined
  const { width, height } = headers
  return { width, height, decode: () => decoded(program, bytes, headers, layout) }
}

/** A thread keeps this much at most. */
const mostBytes = 2 ** 26

function headersOf(bytes: Uint8Array): Headers | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const divisors = new Map<number, Uint16Array>()
  const tables = new Map<number, HuffmanTable>()
  let frame: Frame | undefined
  let restart = 0
  let isYcc: boolean | undefined
  if (bytes.length < 4 || view.getUint16(0) !== 0xffd8) return undefined
  for (let at = 2; at + 4 <= bytes.length; ) {
    const marker = view.getUint16(at)
    const end = at + 2 + view.getUint16(at + 2)
    if (end > bytes.length || end < at + 4) return undefined
    const segment = bytes.subarray(at + 4, end)
    if (marker === 0xffdb) {
      if (!readDivisors(segment, divisors)) return undefined
    } else if (marker === 0xffc4) {
      if (!readTables(segment, tables)) return undefined
    } else if (marker === 0xffc0 || marker === 0xffc1) {
      if (frame !== undefined) return undefined
      frame = frameOf(segment)
      if (frame === undefined) return undefined
    } else if (marker === 0xffdd) {
      if (segment.length !== 2) return undefined
      restart = view.getUint16(at + 4)
    } else if (marker === 0xffda) {
      if (frame === undefined || !(isYcc ?? frame.namesYcc)) return undefined
      const parts = partsOf(segment, frame, divisors, tables)
      return parts === undefined ? undefined : { width: frame.width, height: frame.height, parts, restart, data: end }
    } else if (marker === 0xffe0 && starts(segment, 'JFIF\0')) {
      isYcc = true
    } else if (marker === 0xffe1 && starts(segment, 'Exif\0\0')) {
      if (!isUpright(segment.subarray(6))) return undefined
    } else if (marker === 0xffee && starts(segment, 'Adobe')) {
      isYcc ??= segment[11] === 1
    } else if (!((marker >= 0xffe0 && marker <= 0xffef) || marker === 0xfffe)) {
      return undefined
    }
    at = end
  }
  return undefined
}

const starts = (segment: Uint8Array, text: string): boolean => [...text].every((character, at) => segment[at] === character.charCodeAt(0))

interface Frame {
  readonly width: number
  readonly height: number
  readonly parts: readonly { readonly id: number; readonly across: number; readonly down: number; readonly divisors: number }[]
  /** Its components have no names of red, green and blue. */
  readonly namesYcc: boolean
}

function frameOf(segment: Uint8Array): Frame | undefined {
  const view = new DataView(segment.buffer, segment.byteOffset, segment.byteLength)
  const count = segment[5] ?? 0
  if (segment[0] !== 8 || (count !== 1 && count !== 3) || segment.length !== 6 + 3 * count) return undefined
  const [height, width] = [view.getUint16(1), view.getUint16(3)]
  if (width === 0 || height === 0) return undefined
  const parts = Array.from({ length: count }, (_, index) => {
    const at = 6 + 3 * index
    const sampling = segment[at + 1] ?? 0
    // A single component's blocks lie in rows, whatever its sampling.
    const [across, down] = count === 1 ? [1, 1] : [sampling >> 4, sampling & 15]
    return { id: segment[at] ?? 0, across, down, divisors: segment[at + 2] ?? 0 }
  })
  const [light, ...colours] = parts
  if (light === undefined || colours.some(({ across, down }) => across !== 1 || down !== 1)) return undefined
  const usual = (light.down === 1 && light.across <= 2) || (light.down === 2 && light.across === 2)
  // libjpeg enlarges very narrow colours otherwise.
  if (!usual || light.across === 0 || (light.across === 2 && Math.ceil(width / 2) <= 2)) return undefined
  return { width, height, parts, namesYcc: count === 1 || parts.every(({ id }, index) => id === index + 1) }
}

function readDivisors(segment: Uint8Array, found: Map<number, Uint16Array>): boolean {
  let at = 0
  while (at < segment.length) {
    const first = segment[at++] ?? 0
    const wide = first >> 4
    if (wide > 1 || (first & 15) > 3 || at + 64 * (wide + 1) > segment.length) return false
    const values = new Uint16Array(64)
    for (const place of order) {
      values[place] = wide === 1 ? ((segment[at] ?? 0) << 8) | (segment[at + 1] ?? 0) : (segment[at] ?? 0)
      at += wide + 1
    }
    found.set(first & 15, values)
  }
  return true
}

function readTables(segment: Uint8Array, found: Map<number, HuffmanTable>): boolean {
  let at = 0
  while (at < segment.length) {
    const first = segment[at] ?? 0
    const counts = segment.subarray(at + 1, at + 17)
    const total = counts.reduce((sum, count) => sum + count, 0)
    const symbols = segment.subarray(at + 17, at + 17 + total)
    if ((first & 0xef) > 3 || total > 256 || symbols.length !== total || !isPrefixCode(counts)) return false
    if (first < 16 && symbols.some((size) => size > 11)) return false
    found.set(first, { counts, symbols })
    at += 17 + total
  }
  return true
}

function isPrefixCode(counts: Uint8Array): boolean {
  let free = 1
  for (const count of counts) {
    free = free * 2 - count
    if (free < 0) return false
  }
  return counts.length === 16
}

function partsOf(
  segment: Uint8Array,
  frame: Frame,
  divisors: ReadonlyMap<number, Uint16Array>,
  tables: ReadonlyMap<number, HuffmanTable>,
): Headers['parts'] | undefined {
  const count = frame.parts.length
  const isWhole = segment[0] === count && segment.length === 4 + 2 * count
  if (!isWhole || segment[1 + 2 * count] !== 0 || segment[2 + 2 * count] !== 63 || segment[3 + 2 * count] !== 0) return undefined
  const parts = frame.parts.flatMap(({ id, across, down, divisors: number }, index) => {
    const both = segment[2 + 2 * index] ?? 0
    const [dc, ac, found] = [tables.get(both >> 4), tables.get(16 + (both & 15)), divisors.get(number)]
    if (segment[1 + 2 * index] !== id || dc === undefined || ac === undefined || found === undefined) return []
    return { across, down, dc, ac, divisors: found }
  })
  return parts.length === count ? parts : undefined
}

/** Whether EXIF says nothing of an orientation, or that the picture stands upright. False where it cannot be read. */
function isUpright(tiff: Uint8Array): boolean {
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength)
  const little = starts(tiff, 'II*\0')
  if (tiff.length < 8 || (!little && !starts(tiff, 'MM\0*'))) return false
  const at = view.getUint32(4, little)
  if (at + 2 > tiff.length) return false
  const entries = view.getUint16(at, little)
  if (at + 2 + 12 * entries > tiff.length) return false
  for (let entry = at + 2; entry < at + 2 + 12 * entries; entry += 12) {
    if (view.getUint16(entry, little) !== 0x0112) continue
    const isShort = view.getUint16(entry + 2, little) === 3 && view.getUint32(entry + 4, little) === 1
    if (!isShort || view.getUint16(entry + 8, little) !== 1) return false
  }
  return true
}

/** Where a coefficient lies in its block of 8 x 8, by its number in the file. */
const order = Uint8Array.from({ length: 64 }, (_, wanted) => {
  let [x, y] = [0, 0]
  for (let step = 0; step < wanted; step++) {
    const upwards = (x + y) % 2 === 0
    if (upwards && x === 7) y++
    else if (upwards) [x, y] = [x + 1, Math.max(0, y - 1)]
    else if (y === 7) x++
    else [x, y] = [Math.max(0, x - 1), y + 1]
  }
  return 8 * y + x
})

/** Addresses of what is there for every picture; see `jpeg-simd.wat`. */
const partsAt = 0
const partBytes = 64
const orderAt = 192
const blockAt = 256
const divisorsAt = 512
const divisorBytes = 128
const tablesAt = 1024
const tableBytes = 4608
const fileAt = tablesAt + 6 * tableBytes
/** Vectors reach beyond what they are for. */
const overhang = 64

interface Layout {
  readonly across: number
  readonly down: number
  readonly planes: readonly { readonly at: number; readonly rowBytes: number; readonly width: number; readonly height: number }[]
  /** Of the enlarged rows of colour. */
  readonly rows: readonly [number, number]
  readonly rowBytes: number
  readonly pixels: number
  readonly bytes: number
}

function layoutOf({ width, height, parts }: Headers, fileBytes: number): Layout {
  const mostAcross = Math.max(...parts.map(({ across }) => across))
  const mostDown = Math.max(...parts.map(({ down }) => down))
  const across = Math.ceil(width / (8 * mostAcross))
  const down = Math.ceil(height / (8 * mostDown))
  let free = fileAt + fileBytes
  const taken = (bytes: number): number => {
    const at = Math.ceil((free + overhang) / 16) * 16
    free = at + bytes
    return at
  }
  const planes = parts.map((part) => {
    // Behind each row a place for what lies beyond its edges.
    const rowBytes = 8 * part.across * across + 32
    return {
      at: taken(rowBytes * 8 * part.down * down),
      rowBytes,
      width: Math.ceil((width * part.across) / mostAcross),
      height: Math.ceil((height * part.down) / mostDown),
    }
  })
  const rowBytes = 16 * across * mostAcross + overhang
  const rows: [number, number] = [taken(rowBytes), taken(rowBytes)]
  const pixels = taken(3 * width * height)
  return { across, down, planes, rows, rowBytes, pixels, bytes: taken(overhang) }
}

function decoded(program: JpegProgram, bytes: Uint8Array, headers: Headers, layout: Layout): DecodedImage | undefined {
  const { width, height, parts, restart, data } = headers
  const { memory } = program
  const whole = new Uint8Array(grown(memory, layout.bytes))
  keepBytes(layout.bytes)
  whole.set(bytes, fileAt)
  // What reads beyond the file finds its end.
  whole.set([0xff, 0xd9, 0xff, 0xd9, 0xff, 0xd9, 0xff, 0xd9], fileAt + bytes.length)
  whole.fill(0, blockAt, blockAt + 128)
  whole.set(
    order.map((place) => 2 * place),
    orderAt,
  )
  for (const [index, { across, down, divisors, dc, ac }] of parts.entries()) {
    const plane = layout.planes[index]
    if (plane === undefined) throw new Error('internal: a plane for each component')
    const divisorsOfPart = divisorsAt + index * divisorBytes
    const tables = tablesAt + 2 * index * tableBytes
    new Uint16Array(memory.buffer, divisorsOfPart, 64).set(divisors)
    writeTable(memory.buffer, tables, dc)
    writeTable(memory.buffer, tables + tableBytes, ac)
    const fields = [across, down, plane.at, plane.rowBytes, divisorsOfPart, tables, tables + tableBytes, 0]
    new Int32Array(memory.buffer, partsAt + index * partBytes, fields.length).set(fields)
  }
  const end = program.run.scan(
    fileAt + data,
    partsAt,
    partsAt + parts.length * partBytes,
    orderAt,
    blockAt,
    layout.across,
    layout.down,
    restart,
  )
  // The scan ends where the picture does, and within the file.
  if (end === 0 || end + 2 > fileAt + bytes.length || whole[end] !== 0xff || whole[end + 1] !== 0xd9) return undefined
  writePixels(program, headers, layout)
  return { width, height, data: whole.subarray(layout.pixels, layout.pixels + 3 * width * height) }
}

const lookedAt = 10

/** As `scan` of `jpeg-simd.wat` reads it. */
function writeTable(buffer: ArrayBuffer, at: number, { counts, symbols }: HuffmanTable): void {
  const entries = new Int32Array(buffer, at, 1 << lookedAt).fill(0)
  const beyond = new Int32Array(buffer, at + 4 * entries.length, 17)
  const shifts = new Int32Array(buffer, at + 4 * (entries.length + 17), 17)
  new Uint8Array(buffer, at + 4 * (entries.length + 34), symbols.length).set(symbols)
  let code = 0
  let symbol = 0
  for (let length = 1; length <= 16; length++) {
    shifts[length] = symbol - code
    const count = counts[length - 1] ?? 0
    for (let index = 0; index < count && length <= lookedAt; index++) {
      const free = lookedAt - length
      entries.fill(length | ((symbols[symbol + index] ?? 0) << 8), (code + index) << free, (code + index + 1) << free)
    }
    symbol += count
    code += count
    beyond[length] = code << (16 - length)
    code <<= 1
  }
}

/** RGB from the planes. */
function writePixels({ memory, run: { paint } }: JpegProgram, { width, height, parts }: Headers, layout: Layout): void {
  const [blueRow, redRow] = layout.rows
  const [, blue] = layout.planes
  if (blue === undefined) {
    // Grey is a picture whose rows of colour, always the same, are of none.
    new Uint8Array(memory.buffer).fill(128, blueRow, redRow + layout.rowBytes)
    const none = partsAt + partBytes
    new Int32Array(memory.buffer, none, 8).fill(0).set([blueRow, 0], 2)
    paint(partsAt, none, none, 0, blueRow, redRow, 0, 0, layout.pixels, width, height)
    return
  }
  const [light] = parts
  const halved = light?.across === 1 ? 0 : light?.down === 1 ? 1 : 2
  const [blueAt, redAt] = [partsAt + partBytes, partsAt + 2 * partBytes]
  paint(partsAt, blueAt, redAt, halved, blueRow, redRow, blue.width, blue.height, layout.pixels, width, height)
}
