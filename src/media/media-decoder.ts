/** Decoding strangers' media of every kind for a job: nothing that decodes compressed bytes runs in this process, and no more at once than the machine bears. */
import { availableParallelism } from 'node:os'
import { ModalignError } from '../errors.ts'
import type { HttpAccess } from '../io/guarded-fetch.ts'
import { type DecodeAudioOptions, type DecodedAudioFile, decodeAudio } from './audio.ts'
import { createImageDecoder, type ImageDecoder, type ImageDecoderOptions } from './child-decoder.ts'
import type { MediaInput } from './source.ts'
import { type DecodedVideoFile, type DecodeVideoOptions, decodeVideo } from './video.ts'

type Shared = 'root' | 'http' | 'ffmpeg' | 'signal'

export interface MediaDecoderOptions {
  /** The folder that paths are relative to and may not leave. */
  readonly root?: string | undefined
  /** Which servers media may be fetched from. Default none. */
  readonly http?: HttpAccess | undefined
  /** The ffmpeg program. See `findFfmpeg`. */
  readonly ffmpeg?: string | undefined
  /** How many pictures, and how many sounds and films, are decoded at once. Default: as many as the machine has cores. */
  readonly processes?: number | undefined
  readonly image?: Omit<ImageDecoderOptions, Shared | 'processes'> | undefined
  /** What every sound is decoded with, unless a call says otherwise. */
  readonly audio?: Omit<DecodeAudioOptions, Shared> | undefined
  /** What every film is decoded with, unless a call says otherwise. */
  readonly video?: Omit<DecodeVideoOptions, Shared> | undefined
}

/** Options of one call. */
export type AudioCall = Omit<DecodeAudioOptions, Exclude<Shared, 'signal'>>
export type VideoCall = Omit<DecodeVideoOptions, Exclude<Shared, 'signal'>>

export interface MediaDecoder extends AsyncDisposable {
  /** Pictures, in a pool of child processes. */
  readonly images: ImageDecoder
  /** As `decodeAudio`: ffmpeg is a process of its own; WAV is read by our own bounded code. */
  audio(source: MediaInput, options?: AudioCall): Promise<DecodedAudioFile>
  /** As `decodeVideo`. */
  video(source: MediaInput, options?: VideoCall): Promise<DecodedVideoFile>
  /** Kills every process; what is under way rejects with `DECODER_DISPOSED`. */
  dispose(): Promise<void>
}

/**
 * Decoders for pictures, sounds and films that share a root and a limit of processes. A picture over which a process dies, and a sound or film over which ffmpeg
 * dies, hangs or outgrows its limits, costs that one item.
 *
 * @example
 * await using decoder = createMediaDecoder({ root: 'data', audio: { sampleRateHz: 16_000 } })
 * const { samples } = await decoder.audio('clips/1.mp3')
 * const { frames } = await decoder.video('clips/1.mp4', { sampling: { type: 'uniform', frames: 8 } })
 */
export function createMediaDecoder(options: MediaDecoderOptions = {}): MediaDecoder {
  const { root, http, ffmpeg, processes = availableParallelism() } = options
  const shared = { root, http, ffmpeg }
  const images = createImageDecoder({ ...options.image, ...shared, processes })
  const ending = new AbortController()
  const waiting: (() => void)[] = []
  let running = 0

  /** Runs `work` once there is room, with a signal that ends on the caller's or with the decoder. */
  const within = async <T>(signal: AbortSignal | undefined, work: (signal: AbortSignal) => Promise<T>): Promise<T> => {
    const either = signal === undefined ? ending.signal : AbortSignal.any([signal, ending.signal])
    either.throwIfAborted()
    if (running < processes) running++
    else await turnOf(waiting, either)
    try {
      return await work(either)
    } finally {
      // The room goes to the next one, if there is one.
      const next = waiting.shift()
      if (next === undefined) running--
      else next()
    }
  }
  const dispose = async (): Promise<void> => {
    ending.abort(
      new ModalignError({ code: 'DECODER_DISPOSED', got: 'a medium for a decoder that was disposed', expected: 'a decoder in use' }),
    )
    await images.dispose()
  }
  return {
    images,
    audio: (source, call = {}) => within(call.signal, (signal) => decodeAudio(source, { ...options.audio, ...call, ...shared, signal })),
    video: (source, call = {}) => within(call.signal, (signal) => decodeVideo(source, { ...options.video, ...call, ...shared, signal })),
    dispose,
    [Symbol.asyncDispose]: dispose,
  }
}

/** Waits for a place in the queue; leaves it if the signal says so. */
async function turnOf(waiting: (() => void)[], signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const abort = (): void => {
      const at = waiting.indexOf(admit)
      if (at >= 0) waiting.splice(at, 1)
      reject(signal.reason)
    }
    const admit = (): void => {
      signal.removeEventListener('abort', abort)
      resolve()
    }
    signal.addEventListener('abort', abort, { once: true })
    waiting.push(admit)
  })
}
