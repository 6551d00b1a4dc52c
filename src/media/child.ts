/** The program of a decoding process. It may die at any time: its owner reports the one picture and starts another process. */
import sharp from 'sharp'
import { errorData } from '../errors.ts'
import { writeToRoom } from '../io/shared-room.ts'
import { type FromChild, roomDescriptor, type ToChild } from './child-protocol.ts'
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

function tell(message: FromChild): void {
  process.send?.(message)
}

async function decode({ source, options, preprocessing, admittedPixels }: Extract<ToChild, { type: 'decode' }>): Promise<void> {
  try {
    const image = await decodeImage(source, {
      ...options,
      inThisThread: true,
      beforeDecode: async (pixels) => {
        if (pixels > admittedPixels)
          await new Promise<void>((resolve) => {
            admitted = resolve
            tell({ type: 'asks', pixels })
          })
      },
    })
    const { width, height } = image
    const { data, ...result } = preprocessing === undefined ? image : { ...image, ...transformImage(image, preprocessing) }
    const inRoom = data.length <= roomBytes && writeToRoom(roomDescriptor, data)
    tell({ type: 'decoded', image: { ...result, ...(!inRoom && { data }), original: { width, height } } })
  } catch (error) {
    tell({ type: 'failed', error: errorData(error) })
  }
}

process.on('message', (message: ToChild) => {
  if (message.type === 'admitted') {
    admitted?.()
  } else if (message.type === 'configure') {
    sharp.block({ operation: ['VipsForeignLoad'] })
    sharp.unblock({ operation: message.formats.flatMap((format) => loaders[format] ?? []) })
    roomBytes = message.roomBytes
    tell({ type: 'ready' })
  } else {
    void decode(message)
  }
})
// The owner is gone: nobody wants the result.
process.on('disconnect', () => process.exit())
