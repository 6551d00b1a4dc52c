/** Frozen features, computed once for each medium and kept while there is room. */
import { ModalignError } from '../errors.ts'
import type { MediaSource } from '../model/contracts.ts'
import type { ReadOptions } from '../model/media-reader.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'

export interface FeatureMemoryOptions extends ReadOptions {
  /** Features beyond this are computed again when they are needed again. Default 2 GiB. */
  readonly maxBytes?: number
}

/** Features of pictures by where they come from. Paths are taken as unchanging for as long as this lives: one run. */
export class FeatureMemory {
  readonly #model: MultimodalModel
  readonly #options: ReadOptions
  readonly #maxBytes: number
  readonly #known = new Map<MediaSource, Float32Array>()
  #bytes = 0

  constructor(model: MultimodalModel, { maxBytes = 2 ** 31, ...options }: FeatureMemoryOptions = {}) {
    this.#model = model
    this.#options = options
    this.#maxBytes = maxBytes
  }

  /** Channels of a feature. */
  get width(): number {
    return this.#model.image.encoder.width
  }

  /** Features float32 [tokens, width] of each source, in order. @throws what decoding throws, naming the file. */
  async of(sources: readonly MediaSource[]): Promise<readonly Float32Array[]> {
    const missing = [...new Set(sources.filter((source) => !this.#known.has(source)))]
    const fresh = new Map<MediaSource, Float32Array>()
    if (missing.length > 0) {
      const { tokens, width, data } = await this.#model.encode(missing, this.#options)
      const each = tokens * width
      for (const [index, source] of missing.entries()) {
        // A copy of its own, so that the batch's buffer can go.
        const features = data.slice(index * each, (index + 1) * each)
        fresh.set(source, features)
        if (this.#bytes + features.byteLength <= this.#maxBytes) {
          this.#known.set(source, features)
          this.#bytes += features.byteLength
        }
      }
    }
    return sources.map((source) => {
      const features = this.#known.get(source) ?? fresh.get(source)
      if (features === undefined) throw new ModalignError({ code: 'FEATURES_MISSING', expected: 'features of every source' })
      return features
    })
  }
}
