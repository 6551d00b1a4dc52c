/** Frozen features, computed once for each medium and kept while there is room. */
import { createHash } from 'node:crypto'
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
  readonly #known = new Map<string, Float32Array>()
  /** Why a source has no features: it is not read again. */
  readonly #unusable = new Map<string, ModalignError>()
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
    const keys = sources.map(keyOf)
    const missing = new Map<string, MediaSource>()
    for (const [index, source] of sources.entries()) {
      const key = keys[index] ?? ''
      if (!this.#known.has(key) && !this.#unusable.has(key)) missing.set(key, source)
    }
    const decoded = await Promise.all([...missing].map(async ([key, source]) => ({ key, input: await this.#inputOf(source) })))
    const usable: { readonly key: string; readonly input: NamedTensors }[] = []
    for (const { key, input } of decoded) {
      if (input instanceof ModalignError) this.#unusable.set(key, input)
      else usable.push({ key, input })
    }
    const fresh = new Map<string, Float32Array>()
    if (usable.length > 0) {
      const { signal } = this.#options
      const { tokens, width, data } = await this.#model.image.encoder.encode(
        usable.map(({ input }) => input),
        signal === undefined ? {} : { signal },
      )
      const each = tokens * width
      for (const [index, { key }] of usable.entries()) {
        // A copy of its own, so that the batch's buffer can go.
        const features = data.slice(index * each, (index + 1) * each)
        fresh.set(key, features)
        if (this.#bytes + features.byteLength <= this.#maxBytes) {
          this.#known.set(key, features)
          this.#bytes += features.byteLength
        }
      }
    }
    return keys.map((key) => this.#known.get(key) ?? fresh.get(key) ?? this.#unusable.get(key) ?? unreachable('a source was forgotten'))
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

/** Samples that are read again bring their bytes anew: those are told by what they hold. */
function keyOf(source: MediaSource): string {
  return typeof source === 'string' ? `path ${source}` : `bytes ${createHash('sha256').update(source).digest('hex')}`
}
