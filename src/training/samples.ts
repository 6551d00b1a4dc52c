/** A dataset made ready: every sample labelled, and its media known by where they lie. */
import { ModalignError } from '../errors.ts'
import type { DatasetSource, MediaSource, Sample } from '../model/contracts.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'
import { type LabelledIds, labelSpans } from '../text/label-spans.ts'

export interface PreparedSample extends LabelledIds {
  readonly id: string
  readonly file: string | undefined
  readonly record: number | undefined
}

export interface PrepareOptions {
  /** Longest sample in tokens, media included. Default: the language model's positions. */
  readonly maxLength?: number
  /** Samples longer than that: an error (default), or cut at the end. */
  readonly overflow?: 'error' | 'truncate'
  /** Bad records: the first one throws (default), or each is given here and left out. */
  readonly onBad?: (error: ModalignError) => void
  readonly signal?: AbortSignal
}

export interface Prepared {
  readonly samples: readonly PreparedSample[]
  readonly root: string | undefined
  readonly bad: number
}

/**
 * Reads and labels a whole dataset, before any of it is trained on: token ids stay in memory (4 bytes a token and as many for its weight), media do not.
 *
 * @throws DATASET_NO_SAMPLES if nothing usable is left, and what the dataset and `labelSpans` throw.
 */
export async function prepareSamples(model: MultimodalModel, dataset: DatasetSource, options: PrepareOptions = {}): Promise<Prepared> {
  const { onBad, signal, overflow } = options
  const maxLength = options.maxLength ?? model.llm.decoder.maxPositions
  const samples: PreparedSample[] = []
  let bad = 0
  const report = (error: ModalignError): void => {
    bad++
    if (onBad === undefined) throw error
    onBad(error)
  }
  for await (const sample of dataset.samples({ onBad: report, ...(signal && { signal }) })) {
    try {
      samples.push(prepare(model, sample, maxLength, overflow))
    } catch (error) {
      if (!(error instanceof ModalignError)) throw error
      report(error)
    }
  }
  if (samples.length === 0) throw noSamples(dataset.name, bad)
  return { samples, root: dataset.root, bad }
}

export function noSamples(dataset: string, bad: number): ModalignError {
  return new ModalignError({
    code: 'DATASET_NO_SAMPLES',
    file: dataset,
    got: `${bad} bad records and no good one`,
    expected: 'at least one sample',
  })
}

function prepare(model: MultimodalModel, sample: Sample, maxLength: number, overflow: 'error' | 'truncate' | undefined): PreparedSample {
  const labelled = labelSpans(sample, {
    tokenizer: model.llm.tokenizer,
    template: model.llm.template,
    mediaTokens: (part) => model.mediaTokens(part),
    maxLength,
    ...(overflow && { overflow }),
  })
  return { ...labelled, id: sample.id, file: sample.origin?.file, record: sample.origin?.record }
}

/** The media of a sample, in order. */
export function mediaSources({ media }: Pick<LabelledIds, 'media'>): readonly MediaSource[] {
  return media.map(({ part }) => part.source)
}
