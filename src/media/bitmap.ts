/** Windows bitmaps, which sharp cannot read: the header by us, the pixels by ffmpeg. */
import { ModalignError } from '../errors.ts'
import type { DecodedImage } from '../model/contracts.ts'
import { runFfmpeg } from './ffmpeg.ts'
import { checkDimensions, type ImageLimits } from './image-limits.ts'

export interface BitmapOptions {
  readonly ffmpeg?: string | undefined
  readonly signal?: AbortSignal | undefined
  readonly beforeDecode?: ((pixels: number) => Promise<void>) | undefined
}

/**
 * Decodes a BMP. Its alpha, if any, is dropped: writers fill it with anything.
 *
 * @throws {ModalignError} `FFMPEG_MISSING` with what to install, `IMAGE_TRUNCATED`, `IMAGE_DECODE`, `IMAGE_TIMEOUT`, and what {@link checkDimensions} throws.
 */
export async function decodeBitmap(bytes: Uint8Array, limits: ImageLimits, options: BitmapOptions): Promise<DecodedImage> {
  const { width, height } = bitmapSize(bytes)
  checkDimensions(width, height, limits)
  await options.beforeDecode?.(width * height)
  const expectedBytes = width * height * 3
  const data = await runFfmpeg({
    input: bytes,
    demuxer: 'bmp_pipe',
    outputOptions: ['-frames:v', '1', '-pix_fmt', 'rgb24'],
    outputFormat: 'rawvideo',
    maxBytes: expectedBytes,
    timeoutMs: limits.timeoutMs,
    program: options.ffmpeg,
    signal: options.signal,
  }).catch((error: unknown) => {
    throw imageError(error, bytes)
  })
  if (data.length !== expectedBytes) {
    throw imageError(
      new ModalignError({
        code: 'FFMPEG_OUTPUT',
        got: `${data.length} bytes of pixels`,
        expected: `${expectedBytes} (${width} x ${height} x 3)`,
      }),
      bytes,
    )
  }
  return { width, height, data }
}

/** Width and height from the header; a negative height means that rows are stored from the top. */
function bitmapSize(bytes: Uint8Array): { readonly width: number; readonly height: number } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (bytes.length < 26) throw new ModalignError({ code: 'IMAGE_TRUNCATED', got: `${bytes.length} bytes`, expected: 'a whole BMP header' })
  const old = view.getUint32(14, true) === 12
  const width = old ? view.getUint16(18, true) : view.getInt32(18, true)
  const height = old ? view.getUint16(20, true) : Math.abs(view.getInt32(22, true))
  return { width, height }
}

function imageError(error: unknown, bytes: Uint8Array): unknown {
  if (!(error instanceof ModalignError)) return error
  if (error.code === 'FFMPEG_MISSING') {
    return new ModalignError({
      ...error.details,
      expected: 'ffmpeg, which decodes BMP pictures',
      hint: 'install ffmpeg (apt install ffmpeg, brew install ffmpeg, npm install ffmpeg-static) or convert the picture to PNG',
    })
  }
  const declared = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(2, true)
  const code = error.code === 'FFMPEG_TIMEOUT' ? 'IMAGE_TIMEOUT' : declared > bytes.length ? 'IMAGE_TRUNCATED' : 'IMAGE_DECODE'
  return new ModalignError({ ...error.details, code, expected: 'a BMP that decodes', cause: error })
}
