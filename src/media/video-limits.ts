/** How large, long and slow a film may be. */
export interface VideoLimits {
  /** Of the file; as bytes or a stream it is held in memory. Default 4 GiB. */
  readonly maxBytes: number
  /** Width times height of a frame. Default 2^25, enough for 8K. */
  readonly maxPixels: number
  /** Of all frames that are taken together, as RGB. Default 2 GiB. */
  readonly maxFrameBytes: number
  /** Of the whole film, counted before anything is decoded. Default one million. */
  readonly maxFramesInFile: number
  /** Wall clock of each pass over the file. Default 300 s. */
  readonly timeoutMs: number
}

export const defaultVideoLimits: VideoLimits = {
  maxBytes: 2 ** 32,
  maxPixels: 2 ** 25,
  maxFrameBytes: 2 ** 31,
  maxFramesInFile: 1_000_000,
  timeoutMs: 300_000,
}
