/** Frozen features, computed once for each medium and kept while there is room. */
import { ModalignError, unreachable } from '../errors.ts'
import type { MediaSource } from '../model/contracts.ts'
import type { ReadOptions } from '../model/media-reader.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'
import type { NamedTensors } from '../tensors.ts'

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
  /** Why a source has no features: it is not read again. */
  readonly #unusable = new Map<MediaSource, ModalignError>()
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
    return (await this.orErrors(sources)).map((features) => {
      if (features instanceof ModalignError) throw features
      return features
    })
  }

  /** As `of`, but with the error of each source that cannot be used in its place. @throws what encoding throws */
  async orErrors(sources: readonly MediaSource[]): Promise<readonly (Float32Array | ModalignError)[]> {
    const missing = [...new Set(sources.filter((source) => !this.#known.has(source) && !this.#unusable.has(source)))]
    const decoded = await Promise.all(missing.map(async (source) => ({ source, input: await this.#inputOf(source) })))
    const usable: { readonly source: MediaSource; readonly input: NamedTensors }[] = []
    for (const { source, input } of decoded) {
      if (input instanceof ModalignError) this.#unusable.set(source, input)
      else usable.push({ source, input })
    }
    const fresh = new Map<MediaSource, Float32Array>()
    if (usable.length > 0) {
      const { signal } = this.#options
      const { tokens, width, data } = await this.#model.image.encoder.encode(
        usable.map(({ input }) => input),
        signal === undefined ? {} : { signal },
      )
      const each = tokens * width
      for (const [index, { source }] of usable.entries()) {
        // A copy of its own, so that the batch's buffer can go.
        const features = data.slice(index * each, (index + 1) * each)
        fresh.set(source, features)
        if (this.#bytes + features.byteLength <= this.#maxBytes) {
          this.#known.set(source, features)
          this.#bytes += features.byteLength
        }
      }
    }
    return sources.map(
      (source) => this.#known.get(source) ?? fresh.get(source) ?? this.#unusable.get(source) ?? unreachable('a source was forgotten'),
    )
  }

  async #inputOf(source: MediaSource): Promise<NamedTensors | ModalignError> {
    const { reader, image } = this.#model
    try {
      return await image.encoder.preprocess(await reader.image(source, this.#options))
    } catch (error) {
      if (error instanceof ModalignError) return error
      throw error
    }
  }
}
