/** What the three kinds of media are called, and by which names their files end. */
import { audioExtensions, imageExtensions, videoExtensions } from '../jobs/inputs.ts'
import type { Modality } from '../model/contracts.ts'

export const extensionsOf: Readonly<Record<Modality, readonly string[]>> = {
  image: imageExtensions,
  audio: audioExtensions,
  video: videoExtensions,
}
export const units: Readonly<Record<Modality, string>> = { image: 'pictures', audio: 'sounds', video: 'videos' }
