/** Decoding strangers' pictures in processes that may die: a native crash costs one picture, never the job. */
import { availableParallelism } from 'node:os'
import { ModalignError } from '../errors.ts'
import type { DecodedImage } from '../model/contracts.ts'
import type { TensorValue } from '../tensors.ts'
import type { ChildDecodeOptions, ChildResult } from './child-protocol.ts'
import { type DecodingProcess, type PictureJob, startDecodingProcess } from './decoding-process.ts'
import { type DecodedImageFile, defaultImageFormats, type ImageNote } from './image.ts'
import { defaultImageLimits } from './image-limits.ts'
import { pixelBudget } from './pixel-budget.ts'
import { type ImagePreprocessing, imageTensor } from './preprocess.ts'
import type { ImageFormat } from './sniff.ts'
import { isRemote, type MediaInput, readMedia, sourceName } from './source.ts'

export interface ImageDecoderOptions extends ChildDecodeOptions {
  /** How many processes decode at once. Default: as many as the machine has cores. */
  readonly processes?: number
  /** How many pixels may be in decoding at once, in all processes together; a larger picture goes alone. Default 200 million. */
  readonly maxPixelsAtOnce?: number
}

export interface PreprocessedImage {
  /** float32 `[1, 3, height, width]`. */
  readonly tensor: TensorValue
  /** The picture's own size. */
  readonly width: number
  readonly height: number
  readonly format: ImageFormat
  readonly notes: readonly ImageNote[]
}

/** A picture as `transformImage` gives it. */
export interface TransformedImage extends Omit<PreprocessedImage, 'tensor'> {
  readonly pixels: DecodedImage
}

export interface DecodeCall {
  readonly signal?: AbortSignal | undefined
  /**
   * Whoever asks has other work to do for a while: the picture does not bring an idle process to work beside one that works already. Cores that are busy with something else
   * decode no faster in several processes, which only take them from each other. Default false.
   */
  readonly unhurried?: boolean | undefined
}

export interface ImageDecoder extends AsyncDisposable {
  /** Of the processes that run now. */
  readonly processIds: readonly number[]
  /** As `decodeImage`. A picture over which two processes die is `IMAGE_DECODER_CRASHED`; one that does not answer in time is killed (`IMAGE_TIMEOUT`). */
  decode(source: MediaInput, options?: DecodeCall): Promise<DecodedImageFile>
  /** The same, then `transformImage`: padding, resizing and cropping happen in the process, so that little crosses. */
  transform(source: MediaInput, spec: ImagePreprocessing, options?: DecodeCall): Promise<TransformedImage>
  /** {@link ImageDecoder.transform}, then `imageTensor`. */
  preprocess(source: MediaInput, spec: ImagePreprocessing, options?: DecodeCall): Promise<PreprocessedImage>
  /** Kills the processes; pictures under way reject with `DECODER_DISPOSED`. */
  dispose(): Promise<void>
}

/** Pictures in one message: as few wait for each other where there are few. */
const mostAtOnce = 4

/**
 * A pool of decoding processes, started as they are needed. Pictures are given to them in the order of the calls.
 *
 * @example
 * await using decoder = createImageDecoder({ root: 'coco', processes: 2 })
 * const { tensor } = await decoder.preprocess('train2017/000000033471.jpg', encoder.preprocessing)
 */
export function createImageDecoder({
  processes = availableParallelism(),
  maxPixelsAtOnce = 200_000_000,
  ...options
}: ImageDecoderOptions = {}): ImageDecoder {
  const { timeoutMs, maxBytes } = { ...defaultImageLimits, ...options.limits }
  const sourceLimits = { maxBytes, tooLargeCode: 'IMAGE_TOO_LARGE', timeoutMs, root: options.root, http: options.http }
  const budget = pixelBudget(maxPixelsAtOnce)
  const children = new Set<DecodingProcess>()
  const waiting: PictureJob[] = []
  let disposed = false

  /** The next pictures for one of so many processes: several where more wait than that. */
  const next = (atWork: number): readonly PictureJob[] => {
    const [first] = waiting
    if (first === undefined) return []
    const most = first.alone ? 1 : Math.max(1, Math.min(mostAtOnce, Math.floor(waiting.length / atWork)))
    const other = waiting.findIndex(({ alone, preprocessing }) => alone || preprocessing !== first.preprocessing)
    return waiting.splice(0, Math.max(1, other < 0 ? most : Math.min(most, other)))
  }
  const assign = (): void => {
    while (waiting.length > 0) {
      const idle = [...children].filter(({ isIdle }) => isIdle())
      const atWork = waiting.every(({ unhurried }) => unhurried) ? 1 : processes
      if (children.size - idle.length >= atWork) return
      const child = idle[0] ?? (children.size < processes ? start() : undefined)
      if (child === undefined) return
      child.run(next(atWork))
    }
  }
  const start = (): DecodingProcess => {
    const child = startDecodingProcess({
      formats: options.formats ?? defaultImageFormats,
      options,
      timeoutMs,
      budget,
      // So much for each: together they stay within the budget, and nobody has to ask for an ordinary picture.
      ownPixels: Math.floor(maxPixelsAtOnce / processes),
      freed: assign,
      ended(interrupted) {
        children.delete(child)
        if (disposed) {
          for (const job of interrupted) job.reject(disposedError())
          return
        }
        waiting.unshift(...interrupted)
        assign()
      },
    })
    children.add(child)
    return child
  }
  const request = async (
    input: MediaInput,
    preprocessing: ImagePreprocessing | undefined,
    { signal, unhurried = false }: DecodeCall,
  ): Promise<ChildResult> => {
    signal?.throwIfAborted()
    if (disposed) throw disposedError()
    // Only this process has the stream, and only this one should speak to servers.
    const source = isRemote(input) ? await readMedia(input, { ...sourceLimits, ...(signal && { signal }) }) : input
    const name = sourceName(input)
    let abort = (): void => {}
    try {
      return await new Promise((resolve, reject) => {
        const job: PictureJob = { source, preprocessing, name, resolve, reject, signal, unhurried, alone: false, isRetry: false }
        abort = () => {
          const at = waiting.indexOf(job)
          if (at >= 0) waiting.splice(at, 1)
          reject(signal?.reason)
        }
        signal?.addEventListener('abort', abort, { once: true })
        waiting.push(job)
        assign()
      })
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  const transform: ImageDecoder['transform'] = async (source, spec, call = {}) => {
    const { original, format, notes, ...pixels } = await request(source, spec, call)
    return { pixels, ...original, format, notes }
  }

  const dispose = async (): Promise<void> => {
    disposed = true
    for (const job of waiting.splice(0)) job.reject(disposedError())
    await Promise.all([...children].map((child) => child.kill(disposedError())))
  }
  return {
    get processIds() {
      return [...children].flatMap(({ pid }) => pid ?? [])
    },
    async decode(source, call = {}) {
      const { original: _, ...image } = await request(source, undefined, call)
      return image
    },
    transform,
    async preprocess(source, spec, options) {
      const { pixels, ...image } = await transform(source, spec, options)
      return { tensor: imageTensor(pixels, spec), ...image }
    },
    dispose,
    [Symbol.asyncDispose]: dispose,
  }
}

function disposedError(): ModalignError {
  return new ModalignError({ code: 'DECODER_DISPOSED', got: 'a picture for a decoder that was disposed', expected: 'a decoder in use' })
}
