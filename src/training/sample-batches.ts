/** Prepared samples and the features of their media, as batches of the step's graph. */
import { ModalignError, unreachable } from '../errors.ts'
import { fixedDim } from '../graph/tensor.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'
import { gridTokens } from '../model/token-grid.ts'
import { type Batch, type BatchItem, collate, type MediaShape } from './batch.ts'
import type { FeatureMemory } from './features.ts'
import { mediaSources, type PreparedSample } from './samples.ts'

export class SampleBatches {
  readonly #features: FeatureMemory
  readonly #media: readonly MediaShape[]
  readonly #headChunks: number
  readonly #softPrompt: number

  constructor(model: MultimodalModel, features: FeatureMemory, headChunks: number) {
    this.#features = features
    this.#headChunks = headChunks
    const { trained } = model.llm.decoder
    this.#softPrompt = trained?.softPrompt === undefined ? 0 : fixedDim(trained.softPrompt.shape, 0, 'soft prompt')
    this.#media = [{ modality: 'image', tokens: gridTokens(model.grid), width: model.image.encoder.width, tokensOut: model.imageTokens }]
  }

  /** Each sample with its features, or why it cannot be used. @throws what encoding throws */
  async items(samples: readonly PreparedSample[]): Promise<readonly (BatchItem | ModalignError)[]> {
    const found = await this.#features.orErrors(samples.flatMap(mediaSources))
    let used = 0
    return samples.map((sample) => {
      const own = found.slice(used, used + sample.media.length)
      used += own.length
      const features = own.filter((one) => one instanceof Float32Array)
      if (features.length < own.length) return inRecord(sample, own)
      return { ...sample, features: features.map((data) => ({ modality: 'image' as const, data })) }
    })
  }

  batch(items: readonly BatchItem[]): Batch {
    return collate(items, { media: this.#media, headChunks: this.#headChunks, softPrompt: this.#softPrompt })
  }
}

/** The first failure among a sample's media, with the place of the record that names them. */
function inRecord({ media, file, record }: PreparedSample, features: readonly (Float32Array | ModalignError)[]): ModalignError {
  const index = features.findIndex((one) => one instanceof ModalignError)
  const error = features[index]
  const medium = media[index]
  if (!(error instanceof ModalignError) || medium === undefined) return unreachable('every medium has features')
  const { source } = medium.part
  const { details } = error
  return new ModalignError({
    ...details,
    file: file ?? details.file,
    record,
    field: `/turns/${medium.turn}`,
    got: typeof source === 'string' ? `${source}: ${details.got ?? 'unusable'}` : details.got,
    hint: details.hint ?? 'repair or remove the record, or let bad records be skipped',
    cause: error,
  })
}
