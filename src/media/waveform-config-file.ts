/** The sound settings of a Hugging Face folder's `preprocessor_config.json`, from disk. */
import { readFile, stat } from 'node:fs/promises'
import { ModalignError } from '../errors.ts'
import { fileError } from '../io/file-error.ts'
import { parseAudioPreprocessorConfig } from './waveform-config.ts'
import type { AudioPreprocessing } from './waveform-preprocess.ts'

const largestConfigBytes = 1_048_576

/**
 * @throws {ModalignError} `FILE_...`, `PREPROCESSING_INVALID`, `PREPROCESSING_UNSUPPORTED`
 *
 * @example
 * const spec = await readAudioPreprocessorConfig('models/whisper-base/preprocessor_config.json')
 */
export async function readAudioPreprocessorConfig(file: string): Promise<AudioPreprocessing> {
  const failed = (error: unknown): never => {
    throw fileError(error, file, 'a preprocessor_config.json')
  }
  const { size } = await stat(file).catch(failed)
  if (size > largestConfigBytes)
    throw new ModalignError({ code: 'PREPROCESSING_INVALID', file, got: `${size} bytes`, expected: `at most ${largestConfigBytes}` })
  const text = await readFile(file, 'utf8').catch(failed)
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (cause) {
    throw new ModalignError({
      code: 'PREPROCESSING_INVALID',
      file,
      got: cause instanceof Error ? cause.message : String(cause),
      expected: 'JSON',
      cause,
    })
  }
  return parseAudioPreprocessorConfig(json, file)
}
