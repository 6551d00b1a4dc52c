/** Which frames of a film are taken. Plain arithmetic over the list of its frames: nothing is decoded here. */
import { ModalignError } from '../errors.ts'
import type { ShownFrame } from './frame-list.ts'

/**
 * Where N frames of `total` lie:
 * - `linspace` (default): `numpy.linspace(0, total - 1, N, dtype=int)`, truncated, first and last frame included. LLaVA-NeXT-Video, LLaVA-OneVision and LLaVA-Video
 *   (`process_video_with_decord`), LLaMA-Factory.
 * - `linspace-rounded`: `torch.linspace(0, total - 1, N).round()`, halves to even. Qwen2-VL and Qwen2.5-VL (`qwen_vl_utils.vision_process`).
 * - `segment-starts`: `torch.arange(0, total, total / N).int()`, the first frame of each of N equal parts. Transformers' video processors (`sample_frames`).
 * - `segment-centres`: the middle frame of each of N equal parts, truncated. InternVL, Video-LLaVA (`get_index`).
 */
export type UniformRule = 'linspace' | 'linspace-rounded' | 'segment-starts' | 'segment-centres'

export type FrameSampling =
  /** Exactly `frames` frames, spread evenly by number. A film with fewer repeats them. */
  | { readonly type: 'uniform'; readonly frames: number; readonly rule?: UniformRule | undefined }
  /**
   * The frame shown at every 1/fps of a second from the first one on. More than `maxFrames` (default 32, LLaVA-NeXT's `frames_upbound`) become that many, spread
   * evenly over the film (`linspace`).
   */
  | { readonly type: 'fps'; readonly fps: number; readonly maxFrames?: number | undefined }
  /** The frames shown at these times, in seconds from the beginning of the file. */
  | { readonly type: 'times'; readonly seconds: readonly number[] }
  /** Frames that are coded by themselves; more than `maxFrames` (default 32) are thinned evenly. */
  | { readonly type: 'keyframes'; readonly maxFrames?: number | undefined }
  /** The first frame, and each that differs from the one before by more than `threshold` (0 to 1, default 0.3: ffmpeg's scene score); thinned as key frames are. */
  | { readonly type: 'scenes'; readonly threshold?: number | undefined; readonly maxFrames?: number | undefined }

/** What happens where a film has fewer frames, or ends sooner, than asked: the last frame again (default), or `VIDEO_TOO_SHORT`. */
export type Shortage = 'repeat' | 'error'

/** Never more frames than this, whatever is asked. */
export const mostFrames = 4_096
export const defaultMaxFrames = 32

/** @throws {ModalignError} `VIDEO_SAMPLING` with the field. */
export function checkSampling(sampling: FrameSampling): void {
  const refuse = (field: string, got: unknown, expected: string): ModalignError =>
    new ModalignError({ code: 'VIDEO_SAMPLING', field: `/${field}`, got: String(got), expected })
  const count = (field: string, value: number): void => {
    if (!Number.isInteger(value) || value < 1 || value > mostFrames) throw refuse(field, value, `a whole number from 1 to ${mostFrames}`)
  }
  if (sampling.type === 'uniform') {
    count('frames', sampling.frames)
    return
  }
  if (sampling.type === 'times') {
    count('seconds', sampling.seconds.length)
    const bad = sampling.seconds.find((time) => !(time >= 0 && Number.isFinite(time)))
    if (bad !== undefined) throw refuse('seconds', bad, 'times of at least 0 s')
    return
  }
  count('maxFrames', sampling.maxFrames ?? defaultMaxFrames)
  if (sampling.type === 'fps' && !(sampling.fps > 0 && sampling.fps <= 1_000))
    throw refuse('fps', sampling.fps, 'more than 0 and at most 1000')
  if (sampling.type === 'scenes' && !((sampling.threshold ?? 0.3) > 0 && (sampling.threshold ?? 0.3) < 1)) {
    throw refuse('threshold', sampling.threshold, 'between 0 and 1')
  }
}

/**
 * Numbers of N frames among `total`, by one of the field's rules: see {@link UniformRule}.
 *
 * @example
 * uniformIndices(10, 4) // [0, 3, 6, 9]
 */
export function uniformIndices(total: number, frames: number, rule: UniformRule = 'linspace'): readonly number[] {
  return Array.from({ length: frames }, (_, i) => Math.min(total - 1, ruleAt[rule](total, frames, i)))
}

const ruleAt: Readonly<Record<UniformRule, (total: number, frames: number, i: number) => number>> = {
  // NumPy computes i * step in float64 and puts the end in exactly.
  linspace: (total, frames, i) => (frames === 1 ? 0 : i === frames - 1 ? total - 1 : Math.trunc(i * ((total - 1) / (frames - 1)))),
  // torch computes in float32, from both ends to the middle.
  'linspace-rounded': (total, frames, i) => {
    if (frames === 1) return 0
    const step = Math.fround((total - 1) / (frames - 1))
    return halfToEven(Math.fround(i < Math.floor(frames / 2) ? step * i : total - 1 - step * (frames - 1 - i)))
  },
  'segment-starts': (total, frames, i) => Math.trunc(Math.fround(i * (total / frames))),
  'segment-centres': (total, frames, i) => Math.trunc((total / frames) * (i + 0.5)),
}

function halfToEven(value: number): number {
  const below = Math.floor(value)
  if (value - below !== 0.5) return Math.round(value)
  return below % 2 === 0 ? below : below + 1
}

/** Of a sorted list, the last index whose time is at most `seconds`: the frame that is on the screen then. The first one before anything is shown. */
export function shownAt(frames: readonly ShownFrame[], seconds: number): number {
  let [low, high] = [0, frames.length]
  // A tick is at least a microsecond; the sum of a few roundings is not.
  const time = seconds + 1e-7
  while (low < high) {
    const middle = (low + high) >>> 1
    if ((frames[middle]?.seconds ?? 0) <= time) low = middle + 1
    else high = middle
  }
  return Math.max(0, low - 1)
}

function thinned(indices: readonly number[], most: number): readonly number[] {
  if (indices.length <= most) return indices
  return uniformIndices(indices.length, most).map((at) => indices[at] ?? 0)
}

/**
 * Numbers of the frames to take, in order, repeats included.
 *
 * @param frames the film's frames (of the wanted part), sorted by time, at least one
 * @param endSeconds when the last of them ends
 * @param changes numbers of the frames at which a scene begins: needed for `scenes`
 * @throws {ModalignError} `VIDEO_TOO_SHORT` if `shortage` is `error`.
 */
export function sampledIndices(
  frames: readonly ShownFrame[],
  endSeconds: number,
  sampling: FrameSampling,
  shortage: Shortage,
  changes: readonly number[] = [],
): readonly number[] {
  const all = frames.map((_, i) => i)
  const tooShort = (got: string, expected: string): ModalignError =>
    new ModalignError({ code: 'VIDEO_TOO_SHORT', got, expected, hint: "shortage: 'repeat' repeats frames" })
  if (sampling.type === 'uniform') {
    if (shortage === 'error' && frames.length < sampling.frames) throw tooShort(`${frames.length} frames`, `${sampling.frames} frames`)
    return uniformIndices(frames.length, sampling.frames, sampling.rule)
  }
  if (sampling.type === 'times') {
    const beyond = sampling.seconds.find((time) => time >= endSeconds)
    if (shortage === 'error' && beyond !== undefined) throw tooShort(`a film of ${endSeconds} s`, `a frame at ${beyond} s`)
    return sampling.seconds.map((time) => shownAt(frames, time))
  }
  const most = sampling.maxFrames ?? defaultMaxFrames
  if (sampling.type === 'keyframes')
    return thinned(
      all.filter((i) => i === 0 || frames[i]?.isKey === true),
      most,
    )
  if (sampling.type === 'scenes')
    return thinned(
      [...new Set([0, ...changes])].sort((a, b) => a - b),
      most,
    )
  const first = frames[0]?.seconds ?? 0
  const steps = Math.max(1, Math.ceil((endSeconds - first) * sampling.fps - 1e-6))
  if (steps > most) return uniformIndices(frames.length, most)
  return Array.from({ length: steps }, (_, k) => shownAt(frames, first + k / sampling.fps))
}
