import { decodeAudio } from '../media/audio.ts'
import { decodeImage } from '../media/image.ts'
import type { DecodedAudio, DecodedImage, DecodedVideo, MediaSource } from './contracts.ts'

export interface ReadOptions {
  /** The folder that paths are relative to and may not leave. */
  readonly root?: string | undefined
  readonly signal?: AbortSignal | undefined
}
export interface ReadAudioOptions extends ReadOptions {
  /** Default: the file's own. */
  readonly sampleRateHz?: number
  /** Only this part of it. */
  readonly span?: { readonly startSeconds: number; readonly endSeconds: number }
}

/** Where decoded media come from: this process, or child processes that may die over hostile files. What a reader lacks, it refuses. */
export interface MediaReader {
  image(source: MediaSource, options: ReadOptions): Promise<DecodedImage>
  /** Mixed to one channel. */
  audio?(source: MediaSource, options: ReadAudioOptions): Promise<DecodedAudio>
  video?(source: MediaSource, options: ReadOptions): Promise<DecodedVideo>
}

/** Decodes in this process: for one's own files. */
export const localReader: MediaReader = {
  image: (source, { root, signal }) => decodeImage(source, { root, signal }),
  audio: (source, { root, signal, sampleRateHz, span }) => decodeAudio(source, { root, signal, sampleRateHz, span }),
}
