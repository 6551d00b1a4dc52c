/** Prepared samples and the features of their media, as batches of the step's graph. */
import { ModalignError, unreachable } from '../errors.ts'
import { fixedDim } from '../graph/tensor.ts'
import { type MediumFeatures, withTexts } from '../model/media-features.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'
import { type LabelledIds, withMediaLengths } from '../text/label-spans.ts'
import { type Batch, type BatchItem, collate } from './batch.ts'
import type { FeatureMemory } from './features.ts'
import type { PreparedSample } from './samples.ts'

export interface SampleBatchesOptions {
  readonly headChunks: number
  /** As they were prepared with: media whose size shows only now may make a sample longer than that. */
  readonly maxLength: number
  readonly overflow: 'error' | 'truncate'
}

export class SampleBatches {
  readonly #model: MultimodalModel
  readonly #features: FeatureMemory
  readonly #options: SampleBatchesOptions
  readonly #softPrompt: number

  constructor(model: MultimodalModel, features: FeatureMemory, options: SampleBatchesOptions) {
    this.#model = model
    this.#features = features
    this.#options = options
    const { trained } = model.llm.decoder
    this.#softPrompt = trained?.softPrompt === undefined ? 0 : fixedDim(trained.softPrompt.shape, 0, 'soft prompt')
  }

  /** Each sample with its features, or why it cannot be used. @throws what encoding throws */
  async items(samples: readonly PreparedSample[]): Promise<readonly (BatchItem | ModalignError)[]> {
    const found = await this.#features.orErrors(samples.flatMap(({ media }) => media.map(({ part }) => part)))
    let used = 0
    return samples.map((sample) => {
      const own = found.slice(used, used + sample.media.length)
      used += own.length
      const features = own.flatMap((one) => (one instanceof ModalignError ? [] : [one]))
      return features.length < own.length ? inRecord(sample, own) : this.#item(sample, features)
    })
  }

  /** One batch; several where a trained encoder sees units of several sizes. Sums of losses and gradients are the same. */
  batches(items: readonly BatchItem[]): readonly Batch[] {
    const groups = new Map<string, BatchItem[]>()
    for (const item of items) {
      const key = unitSizes(item).join()
      groups.set(key, [...(groups.get(key) ?? []), item])
    }
    return [...groups.values()].map((alike) =>
      collate(alike, {
        media: this.#model.mediaPaths,
        headChunks: this.#options.headChunks,
        softPrompt: this.#softPrompt,
        source: this.#model.llm.decoder.hasEncoder === true,
      }),
    )
  }

  #item(sample: PreparedSample, features: readonly MediumFeatures[]): BatchItem | ModalignError {
    try {
      const sized: LabelledIds = withMediaLengths(
        sample,
        features.map(({ tokensOut }) => tokensOut),
        this.#options,
      )
      const item = { ...sized, ids: withTexts(sized.ids, sized.media, features), features: features.slice(0, sized.media.length) }
      refuseMixedUnits(item)
      return item
    } catch (error) {
      if (!(error instanceof ModalignError)) throw error
      const { file, record } = sample
      return new ModalignError({ ...error.details, ...(file !== undefined && { file }), record, cause: error })
    }
  }
}

/** The sizes of the units that a sample brings to trained encoders, each once. */
function unitSizes({ features }: BatchItem): readonly string[] {
  const sizes = features.flatMap(({ modality, units = [] }) => units.map(({ value }) => `${modality} ${value.dims.slice(1).join(' x ')}`))
  return [...new Set(sizes)].sort()
}

/** @throws BATCH_UNITS for a sample that no batch can hold */
function refuseMixedUnits(item: BatchItem): void {
  const sizes = unitSizes(item)
  const kinds = new Set(sizes.map((size) => size.split(' ')[0]))
  if (sizes.length === kinds.size) return
  throw new ModalignError({
    code: 'BATCH_UNITS',
    got: `windows of several sizes in one sample: ${sizes.join(', ')}`,
    expected: 'windows of one size, which go through the trained encoder together',
    hint: 'take an encoder that fills its windows, or leave these samples out with onBad',
  })
}

/** The first failure among a sample's media, with the place of the record that names them. */
function inRecord({ media, file, record }: PreparedSample, features: readonly (MediumFeatures | ModalignError)[]): ModalignError {
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
