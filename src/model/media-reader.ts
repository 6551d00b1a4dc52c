import { decodeAudio } from '../media/audio.ts'
import type { ImageDecoder, TransformedImage } from '../media/child-decoder.ts'
import type { FrameSampling } from '../media/frame-sampling.ts'
import { decodeImage } from '../media/image.ts'
import type { ImagePreprocessing } from '../media/preprocess.ts'
import { decodeVideo } from '../media/video.ts'
import type { DecodedAudio, DecodedImage, DecodedVideo, MediaSource } from './contracts.ts'

export interface ReadOptions {
  /** The folder that paths are relative to and may not leave. */
  readonly root?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Whoever asks has other work to do for a while: decoding need not take more of the machine for it. */
  readonly unhurried?: boolean | undefined
}
export interface ReadAudioOptions extends ReadOptions {
  /** Default: the file's own. */
  readonly sampleRateHz?: number
  /** Only this part of it. */
  readonly span?: { readonly startSeconds: number; readonly endSeconds: number }
}

export interface ReadVideoOptions extends ReadOptions {
  /** Default: the decoder's. */
  readonly sampling?: FrameSampling
  /** Only this part of it. */
  readonly span?: { readonly startSeconds: number; readonly endSeconds: number }
}

/** Where decoded media come from: this process, or child processes that may die over hostile files. What a reader lacks, it refuses. */
export interface MediaReader {
  image(source: MediaSource, options: ReadOptions): Promise<DecodedImage>
  /** Decoded and prepared where it was decoded: `pixels` are what `transformImage` gives, `width` and `height` the picture's own. */
  preparedImage?(
    source: MediaSource,
    preprocessing: ImagePreprocessing,
    options: ReadOptions,
  ): Promise<Pick<TransformedImage, 'pixels' | 'width' | 'height'>>
  /** Mixed to one channel. */
  audio?(source: MediaSource, options: ReadAudioOptions): Promise<DecodedAudio>
  video?(source: MediaSource, options: ReadVideoOptions): Promise<DecodedVideo>
}

/** Decodes in this process: for one's own files. */
export const localReader: MediaReader = {
  image: (source, { root, signal }) => decodeImage(source, { root, signal }),
  audio: (source, { root, signal, sampleRateHz, span }) => decodeAudio(source, { root, signal, sampleRateHz, span }),
  video: (source, { root, signal, sampling, span }) => decodeVideo(source, { root, signal, sampling, span }),
}

/**
 * Pictures from decoding processes, everything else decoded here. Paths are those of the decoder's root.
 *
 * @example
 * await using decoder = createImageDecoder()
 * const summary = await encodeJob({ items, encoder, reader: decodingReader(decoder), store, batchSize: 16, onBad: 'skip' })
 */
export function decodingReader(decoder: ImageDecoder): MediaReader {
  return {
    ...localReader,
    image: (source, { signal, unhurried }) => decoder.decode(source, { signal, unhurried }),
    preparedImage: (source, preprocessing, { signal, unhurried }) => decoder.transform(source, preprocessing, { signal, unhurried }),
  }
}
