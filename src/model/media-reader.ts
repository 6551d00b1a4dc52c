import { decodeImage } from '../media/image.ts'
import type { DecodedImage, MediaSource } from './contracts.ts'

export interface ReadOptions {
  /** The folder that paths are relative to and may not leave. */
  readonly root?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** Where decoded media come from: this process, or child processes that may die over hostile files. */
export interface MediaReader {
  image(source: MediaSource, options: ReadOptions): Promise<DecodedImage>
}

/** Decodes in this process: for one's own files. */
export const localReader: MediaReader = {
  image: (source, { root, signal }) => decodeImage(source, { root, signal }),
}
