/** What ffmpeg's failures mean to whoever wanted a sound or a film. */
import { ModalignError } from '../errors.ts'
import type { MediaKind } from './containers.ts'

const endsEarly = /moov atom not found|partial file|ended prematurely|truncat|unexpected EOF|End of file/i

/** The error in the words of the medium; what is no failure of ffmpeg's comes back as it is. */
export function mediaError(error: unknown, kind: MediaKind): unknown {
  if (!(error instanceof ModalignError) || !error.code.startsWith('FFMPEG_')) return error
  const medium = kind === 'AUDIO' ? 'sound' : 'film'
  const again = (code: string, expected: string, hint?: string): ModalignError =>
    new ModalignError({ ...error.details, code, expected, hint: hint ?? error.details.hint, cause: error })
  const words = error.details.got ?? ''
  if (error.code === 'FFMPEG_MISSING') {
    return again(
      error.code,
      `ffmpeg, which decodes every ${medium}${kind === 'AUDIO' ? ' but WAV' : ''}`,
      'install ffmpeg (apt install ffmpeg, brew install ffmpeg, npm install ffmpeg-static), or name it in FFMPEG_PATH',
    )
  }
  if (error.code === 'FFMPEG_TIMEOUT') return again(`${kind}_TIMEOUT`, `a ${medium} that decodes in time`)
  if (error.code !== 'FFMPEG_FAILED') return error
  if (/matches no streams|does not contain any stream/.test(words)) {
    return again(`${kind}_NO_STREAM`, `a file with ${kind === 'AUDIO' ? 'sound' : 'pictures'}`)
  }
  if (/exceeds specified max pixel count|Cannot allocate memory|max_alloc/i.test(words))
    return again(`${kind}_TOO_LARGE`, `a ${medium} within the limits`)
  if (endsEarly.test(words)) return again(`${kind}_TRUNCATED`, 'a whole file', 'fetch or record it again')
  return again(`${kind}_DECODE`, `a ${medium} that decodes`)
}
