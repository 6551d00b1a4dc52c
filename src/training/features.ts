/** Frozen features, computed once for each medium and kept while there is room. */
import { createHash } from 'node:crypto'
import { ModalignError, unreachable } from '../errors.ts'
import { encodeMedia, type MediumFeatures, type PreparedMedium, prepareMedium } from '../model/media-features.ts'
import type { ReadOptions } from '../model/media-reader.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'
import type { MediaPart } from '../text/conversation.ts'

export interface FeatureMemoryOptions extends ReadOptions {
  /** Features beyond this are computed again when they are needed again. Default 2 GiB. */
  readonly maxBytes?: number
}

/** Features of media by where they come from. Paths are taken as unchanging for as long as this lives: one run. */
export class FeatureMemory {
  readonly #model: MultimodalModel
  readonly #options: ReadOptions
  readonly #maxBytes: number
  readonly #known = new Map<string, MediumFeatures>()
  /** Why a medium has no features: it is not read again. */
  readonly #unusable = new Map<string, ModalignError>()
  #bytes = 0

  constructor(model: MultimodalModel, { maxBytes = 2 ** 31, ...options }: FeatureMemoryOptions = {}) {
    this.#model = model
    this.#options = options
    this.#maxBytes = maxBytes
  }

  /** Features of each medium, in order. @throws what decoding throws, naming the file. */
  async of(media: readonly MediaPart[]): Promise<readonly MediumFeatures[]> {
    return (await this.orErrors(media)).map((features) => {
      if (features instanceof ModalignError) throw features
      return features
    })
  }

  /** As `of`, but with the error of each medium that cannot be used in its place. @throws what encoding throws */
  async orErrors(media: readonly MediaPart[]): Promise<readonly (MediumFeatures | ModalignError)[]> {
    const keys = media.map(keyOf)
    const missing = new Map<string, MediaPart>()
    for (const [index, part] of media.entries()) {
      const key = keys[index] ?? ''
      if (!this.#known.has(key) && !this.#unusable.has(key)) missing.set(key, part)
    }
    const prepared = await Promise.all([...missing].map(async ([key, part]) => ({ key, medium: await this.#prepared(part) })))
    const usable: { readonly key: string; readonly medium: PreparedMedium }[] = []
    for (const { key, medium } of prepared) {
      if (medium instanceof ModalignError) this.#unusable.set(key, medium)
      else usable.push({ key, medium })
    }
    const encoded = await encodeMedia(
      (modality) => this.#model.branch(modality),
      usable.map(({ medium }) => medium),
      this.#options.signal,
    )
    const fresh = new Map<string, MediumFeatures>()
    for (const [index, features] of encoded.entries()) {
      const key = usable[index]?.key ?? unreachable('features of no medium')
      fresh.set(key, features)
      if (this.#bytes + features.data.byteLength <= this.#maxBytes) {
        this.#known.set(key, features)
        this.#bytes += features.data.byteLength
      }
    }
    return keys.map((key) => this.#known.get(key) ?? fresh.get(key) ?? this.#unusable.get(key) ?? unreachable('a medium was forgotten'))
  }

  async #prepared(part: MediaPart): Promise<PreparedMedium | ModalignError> {
    try {
      return await prepareMedium(this.#model.branch(part.type), this.#model.reader, part, this.#options)
    } catch (error) {
      if (error instanceof ModalignError) return error
      throw error
    }
  }
}

/** Samples that are read again bring their bytes anew: those are told by what they hold. */
function keyOf({ type, source, region }: MediaPart): string {
  const place = typeof source === 'string' ? `path ${source}` : `bytes ${createHash('sha256').update(source).digest('hex')}`
  return region === undefined ? `${type} ${place}` : `${type} ${JSON.stringify(region)} ${place}`
}
