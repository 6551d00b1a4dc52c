/** ffmpeg's `framecrc` text: which frames or packets a stream has, when they are shown, and how large they are. */
import { ModalignError } from '../errors.ts'

export interface ListedFrame {
  /** Seconds from the beginning of the file; undefined where the container does not say. */
  readonly seconds: number | undefined
  /** The same for decoding, which no reordering moves. */
  readonly decodeSeconds: number | undefined
  readonly bytes: number
  readonly isKey: boolean
  /** Decoded, but not shown: an edit list cut it off. */
  readonly isDiscarded: boolean
}

export interface FrameList {
  readonly width: number
  readonly height: number
  /** Seconds of one tick, as a fraction. */
  readonly timeBase: readonly [number, number]
  readonly frames: readonly ListedFrame[]
}

const flagKey = 1
const flagDiscard = 4

/** Reads the text line by line, as it comes; `onFrame` is called for each frame. */
export class FrameListReader {
  #rest = ''
  #width = 0
  #height = 0
  #timeBase: readonly [number, number] = [1, 1]
  readonly #frames: ListedFrame[] = []

  add(chunk: Uint8Array): void {
    const lines = (this.#rest + Buffer.from(chunk).toString('latin1')).split('\n')
    this.#rest = lines.pop() ?? ''
    for (const line of lines) this.#line(line)
  }

  finish(): FrameList {
    if (this.#rest !== '') this.#line(this.#rest)
    this.#rest = ''
    return this.current()
  }

  current(): FrameList {
    return { width: this.#width, height: this.#height, timeBase: this.#timeBase, frames: this.#frames }
  }

  #line(line: string): void {
    const header = /^#(tb|dimensions) 0: (\d{1,10})[/x](\d{1,10})\s*$/.exec(line)
    if (header !== null) {
      const values = [Number(header[2]), Number(header[3])] as const
      if (header[1] === 'tb') this.#timeBase = values
      else [this.#width, this.#height] = values
    }
    if (line.startsWith('#') || line.trim() === '') return
    const [stream, dts, pts, , size, , ...more] = line.split(',').map((field) => field.trim())
    if (stream !== '0' || size === undefined || !/^\d+$/.test(size)) {
      throw new ModalignError({ code: 'FFMPEG_OUTPUT', got: line, expected: 'a line of framecrc' })
    }
    // Key frames have no flags written.
    const written = more.find((field) => field.startsWith('F='))
    const flags = written === undefined ? flagKey : Number(written.slice(2))
    this.#frames.push({
      seconds: this.#seconds(pts),
      decodeSeconds: this.#seconds(dts),
      bytes: Number(size),
      isKey: (flags & flagKey) !== 0,
      isDiscarded: (flags & flagDiscard) !== 0,
    })
  }

  #seconds(ticks: string | undefined): number | undefined {
    const [numerator, denominator] = this.#timeBase
    return ticks !== undefined && /^-?\d+$/.test(ticks) ? (Number(ticks) * numerator) / denominator : undefined
  }
}

/** A frame in the order of showing. */
export interface ShownFrame {
  readonly seconds: number
  readonly isKey: boolean
}

/**
 * Frames in the order of showing. Where the container has no times of showing (AVI), the times of decoding, sorted, are those of a stream without gaps.
 */
export function shownFrames({ frames }: FrameList): readonly ShownFrame[] {
  const shown = frames.filter(({ isDiscarded }) => !isDiscarded)
  const timed = shown.every(({ seconds }) => seconds !== undefined)
  return shown
    .map(({ seconds, decodeSeconds, isKey }) => ({ seconds: (timed ? seconds : decodeSeconds) ?? 0, isKey }))
    .sort((a, b) => a.seconds - b.seconds)
}
