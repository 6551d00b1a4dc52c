/** Frozen features, computed once for each medium: kept in memory while there is room, and in a store where one is given. */
import { createHash } from 'node:crypto'
import { ModalignError, unreachable } from '../errors.ts'
import type { TrainedEncoder } from '../model/contracts.ts'
import { encodeMedia, type MediumFeatures, type PreparedMedium, prepareMedium, projectedPlaces } from '../model/media-features.ts'
import type { ReadOptions } from '../model/media-reader.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'
import { gridFeatures } from '../model/token-grid.ts'
import type { MediaPart } from '../text/conversation.ts'
import { contentDigest } from './content-digest.ts'
import type { FeatureKey, FeatureStore, PackedFeatures } from './feature-store.ts'

export interface FeatureMemoryOptions extends ReadOptions {
  /** Features of media whose encoder is trained, too, as its present weights give them. Default false: those media have units, which the step encodes. */
  readonly encodeTrained?: boolean
  /** Features beyond this are computed again when they are needed again. Default 2 GiB. */
  readonly maxBytes?: number
  /** Features of earlier runs are read here, and new ones written. It stays the caller's, who closes it. */
  readonly store?: FeatureStore
  /** Called once, when the store cannot be written any more: features are computed all the same. Default: the error is thrown. */
  readonly onStoreError?: (error: ModalignError) => void
}

/**
 * Features of media by where they come from, or what a trained encoder takes of them. Paths are taken as unchanging for as long as this lives: one run.
 *
 * @throws FEATURES_NOT_FROZEN for a store of features that training changes
 */
export class FeatureMemory {
  readonly #model: MultimodalModel
  readonly #options: ReadOptions
  readonly #encodeTrained: boolean
  readonly #maxBytes: number
  readonly #store: FeatureStore | undefined
  readonly #onStoreError: ((error: ModalignError) => void) | undefined
  #writing = true
  readonly #known = new Map<string, MediumFeatures>()
  /** Why a medium has no features: it is not read again. */
  readonly #unusable = new Map<string, ModalignError>()
  #bytes = 0

  constructor(model: MultimodalModel, options: FeatureMemoryOptions = {}) {
    const { maxBytes = 2 ** 31, store, onStoreError, encodeTrained = false, ...reading } = options
    const trained = model.modalities.map((modality) => model.branch(modality).encoder).find((encoder) => encoder.trained !== undefined)
    if (store !== undefined && trained !== undefined)
      throw new ModalignError({
        code: 'FEATURES_NOT_FROZEN',
        file: store.folder,
        got: `${trained.label}, of which something is trained`,
        expected: 'encoders that are frozen: features of others change from step to step',
        hint: 'leave out the feature store, or `trainable` of the encoder',
      })
    this.#model = model
    this.#options = reading
    this.#encodeTrained = encodeTrained
    this.#maxBytes = maxBytes
    this.#store = store
    this.#onStoreError = onStoreError
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
    const found = await Promise.all([...missing].map(async ([key, part]) => ({ key, ...(await this.#found(part)) })))
    const fresh = new Map<string, MediumFeatures>()
    const usable: (Prepared & { readonly key: string })[] = []
    for (const one of found) {
      if ('error' in one) this.#unusable.set(one.key, one.error)
      else if ('features' in one) fresh.set(one.key, one.features)
      else usable.push(one)
    }
    const computed = await encodeMedia(
      (modality) => this.#model.branch(modality),
      usable.map(({ medium }) => medium),
      this.#options.signal,
    )
    const packed: PackedFeatures[] = []
    for (const [index, features] of computed.entries()) {
      const { key, medium, stored } = usable[index] ?? unreachable('features of no medium')
      if (this.#store === undefined || stored === undefined) fresh.set(key, features)
      else {
        const record = this.#store.pack(stored, { size: medium.size, data: features.data })
        packed.push(record)
        fresh.set(key, { ...features, data: record.stored() })
      }
    }
    await this.#keep(packed)
    for (const [key, features] of fresh) {
      const bytes = bytesOf(features)
      if (this.#bytes + bytes > this.#maxBytes) continue
      this.#known.set(key, features)
      this.#bytes += bytes
    }
    return keys.map((key) => this.#known.get(key) ?? fresh.get(key) ?? this.#unusable.get(key) ?? unreachable('a medium was forgotten'))
  }

  async #found(part: MediaPart): Promise<Found> {
    const branch = this.#model.branch(part.type)
    try {
      const { encoder, projector } = branch
      if (this.#store === undefined) {
        const medium = await prepareMedium(branch, this.#model.reader, part, this.#options, this.#model.llm.tokenizer)
        return encoder.trained === undefined || this.#encodeTrained ? { medium } : { features: unitsOf(medium, encoder.trained) }
      }
      const content = await contentDigest(part.source, this.#options)
      const stored: FeatureKey = { modality: part.type, content, region: part.region, encoder: encoder.fingerprint, width: encoder.width }
      const known = this.#store.get(stored)
      if (known !== undefined) {
        const grid = encoder.grid(known.size)
        // A record of another number of tokens is of another preprocessing: it is computed again.
        if (gridFeatures(grid) * encoder.width === known.data.length)
          return { features: { modality: part.type, data: known.data, ...projectedPlaces(projector, grid, this.#model.llm.tokenizer) } }
      }
      return { medium: await prepareMedium(branch, this.#model.reader, part, this.#options, this.#model.llm.tokenizer), stored }
    } catch (error) {
      if (error instanceof ModalignError) return { error }
      throw error
    }
  }

  async #keep(records: readonly PackedFeatures[]): Promise<void> {
    if (this.#store === undefined || !this.#writing) return
    try {
      await this.#store.put(records)
    } catch (error) {
      if (!(error instanceof ModalignError) || error.code !== 'FEATURE_STORE_WRITE' || this.#onStoreError === undefined) throw error
      this.#writing = false
      this.#onStoreError(error)
    }
  }
}

interface Prepared {
  readonly medium: PreparedMedium
  /** Under which its features are to be stored. */
  readonly stored?: FeatureKey
}
type Found = Prepared | { readonly features: MediumFeatures } | { readonly error: ModalignError }

/** What the step is to encode. */
function unitsOf({ modality, inputs, tokensOut, separators }: PreparedMedium, { graph }: TrainedEncoder): MediumFeatures {
  const units = graph.units(inputs)
  return { modality, data: new Float32Array(0), units, tokensOut, ...(separators !== undefined && { separators }) }
}

function bytesOf({ data, units = [] }: MediumFeatures): number {
  return units.reduce((sum, { value }) => sum + value.data.byteLength, data.byteLength)
}

/** Samples that are read again bring their bytes anew: those are told by what they hold. */
function keyOf({ type, source, region }: MediaPart): string {
  const place = typeof source === 'string' ? `path ${source}` : `bytes ${createHash('sha256').update(source).digest('hex')}`
  return region === undefined ? `${type} ${place}` : `${type} ${JSON.stringify(region)} ${place}`
}
