/** The program of a decoding process. It may die at any time: its owner gives what it had in hand to another process. */
import sharp from 'sharp'
import { type ErrorData, errorData } from '../errors.ts'
import { writeToRoom } from '../io/shared-room.ts'
import type { MediaSource } from '../model/contracts.ts'
import {
  type ChildDecodeOptions,
  type ChildResult,
  type FromChild,
  roomDescriptor,
  type SentResult,
  type ToChild,
} from './child-protocol.ts'
import { decodeImage } from './image.ts'
import { transformImage } from './preprocess.ts'
import type { ImageFormat } from './sniff.ts'

/** libvips's loaders. All others are blocked, whatever the bytes persuade it of. */
const loaders: Readonly<Partial<Record<ImageFormat, string>>> = {
  jpeg: 'VipsForeignLoadJpegBuffer',
  png: 'VipsForeignLoadPngBuffer',
  webp: 'VipsForeignLoadWebpBuffer',
  gif: 'VipsForeignLoadNsgifBuffer',
  tiff: 'VipsForeignLoadTiffBuffer',
  avif: 'VipsForeignLoadHeifBuffer',
  heic: 'VipsForeignLoadHeifBuffer',
  svg: 'VipsForeignLoadSvgBuffer',
  jxl: 'VipsForeignLoadJxlBuffer',
  jp2: 'VipsForeignLoadJp2kBuffer',
  pdf: 'VipsForeignLoadPdfBuffer',
}

// The processes are the parallelism; a cache would only keep strangers' pixels.
sharp.concurrency(1)
sharp.cache(false)

let admitted: (() => void) | undefined
let roomBytes = 0
let options: ChildDecodeOptions = {}

function tell(message: FromChild): void {
  process.send?.(message)
}

async function result(
  source: MediaSource,
  { preprocessing, admittedPixels }: Extract<ToChild, { type: 'decode' }>,
  tellSoFar: () => void,
): Promise<{ readonly image: ChildResult } | { readonly error: ErrorData }> {
  try {
    const image = await decodeImage(source, {
      ...options,
      inThisThread: true,
      beforeDecode: async (pixels) => {
        if (pixels > manyPixels) tellSoFar()
        if (pixels > admittedPixels)
          await new Promise<void>((resolve) => {
            admitted = resolve
            tell({ type: 'asks', pixels })
          })
      },
    })
    const { width, height } = image
    const prepared = preprocessing === undefined ? image : { ...image, ...transformImage(image, preprocessing) }
    return { image: { ...prepared, original: { width, height } } }
  } catch (error) {
    return { error: errorData(error) }
  }
}

/** What is decoded waits for the pictures behind it only where that takes milliseconds: for none of more pixels than this, and for no longer than that. */
const manyPixels = 2 ** 21
const longMs = 50

async function decode(message: Extract<ToChild, { type: 'decode' }>): Promise<void> {
  let results: SentResult[] = []
  let toldAt = performance.now()
  let used = 0
  const tellSoFar = (): void => {
    if (results.length > 0) tell({ type: 'decoded', results })
    results = []
    toldAt = performance.now()
  }
  for (const source of message.sources) {
    if (performance.now() - toldAt > longMs) tellSoFar()
    const decoded = await result(source, message, tellSoFar)
    if ('error' in decoded) {
      results.push(decoded)
      continue
    }
    const { data, ...rest } = decoded.image
    const inRoom = used + data.length <= roomBytes && writeToRoom(roomDescriptor, data, used)
    if (inRoom) used += data.length
    // A copy: the next picture is decoded where this one lies.
    results.push({ image: inRoom ? rest : { ...rest, data: data.slice() } })
  }
  tellSoFar()
}

process.on('message', (message: ToChild) => {
  if (message.type === 'admitted') {
    admitted?.()
  } else if (message.type === 'configure') {
    sharp.block({ operation: ['VipsForeignLoad'] })
    sharp.unblock({ operation: message.formats.flatMap((format) => loaders[format] ?? []) })
    options = message.options
    roomBytes = message.roomBytes
    tell({ type: 'ready' })
  } else {
    void decode(message)
  }
})
// The owner is gone: nobody wants the result.
process.on('disconnect', () => process.exit())
