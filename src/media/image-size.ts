/** How large a picture is, from its header alone. */
import { decodeImage } from './image.ts'
import { checkDimensions, defaultImageLimits, type ImageLimits } from './image-limits.ts'
import type { PictureSize } from './picture-size.ts'
import { sniff, sniffedBytes } from './sniff.ts'
import { type MediaInput, readMedia } from './source.ts'

export interface ImageSizeOptions {
  /** The folder that a path is relative to and may not leave. */
  readonly root?: string | undefined
  readonly limits?: Partial<ImageLimits> | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * Width and height as {@link decodeImage} gives them, EXIF orientation applied, without decoding pixels. BMP, and what this cannot read, goes the way of `decodeImage`, whose errors
 * tell what is wrong.
 *
 * @throws {ModalignError} `IMAGE_...` as `decodeImage`; for the source what `readMedia` throws
 * @example
 * const { width, height } = await imageSize('cat.jpg')
 */
export async function imageSize(source: MediaInput, { root, signal, ...options }: ImageSizeOptions = {}): Promise<PictureSize> {
  const limits = { ...defaultImageLimits, ...options.limits }
  const { maxBytes, timeoutMs } = limits
  const bytes = await readMedia(source, { maxBytes, timeoutMs, tooLargeCode: 'IMAGE_TOO_LARGE', root, signal })
  const found = sniff(bytes.subarray(0, sniffedBytes))
  if (found.type === 'image' && found.format !== 'bmp') {
    const { default: sharp } = await import('sharp')
    const header = await sharp(bytes, { limitInputPixels: false, failOn: 'none' })
      .metadata()
      .then(
        ({ autoOrient }) => autoOrient,
        () => undefined,
      )
    if (header !== undefined) {
      checkDimensions(header.width, header.height, limits)
      return { width: header.width, height: header.height }
    }
  }
  const { width, height } = await decodeImage(bytes, { limits, signal })
  return { width, height }
}
