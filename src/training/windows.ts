/** How the steps of a run lie over its data, and the passes of each. */
import type { ModalignError } from '../errors.ts'
import type { Batch, BatchItem } from './batch.ts'
import type { SampleBatches } from './sample-batches.ts'
import { sampler } from './sampler.ts'
import type { PreparedSamples } from './samples.ts'
import { type Schedule, schedules, warmupStepsOf } from './schedules.ts'
import type { TuneSettings } from './tune-options.ts'

export interface Plan {
  readonly batchSize: number
  readonly accumulation: number
  readonly stepsPerEpoch: number
  readonly totalSteps: number
  readonly seed: number
  readonly rate: Schedule
}

export function planOf(samples: number, settings: TuneSettings): Plan {
  const {
    epochs = 1,
    batchSize = 8,
    accumulation = 1,
    learningRate = 1e-3,
    schedule = 'cosine',
    warmupRatio = 0.03,
    seed = 0,
    maxSteps,
  } = settings
  const stepsPerEpoch = Math.ceil(samples / (batchSize * accumulation))
  const totalSteps = Math.min(Math.max(1, Math.round(epochs * stepsPerEpoch)), maxSteps ?? Number.POSITIVE_INFINITY)
  const rate = schedules[schedule]({ peak: learningRate, warmupSteps: warmupStepsOf(warmupRatio, totalSteps), totalSteps })
  return { batchSize, accumulation, stepsPerEpoch, totalSteps, seed, rate }
}

/** One pass through the graph. */
export interface Pass extends Batch {
  /** Which of its update's passes: what random numbers hang on. Parts of a batch that had to be cut have places of their own. */
  readonly pass: number
}

/** The passes of one update. */
export interface Window {
  readonly batches: readonly Pass[]
  /** Samples left out, because a medium of theirs cannot be used: by their number. */
  readonly bad: ReadonlyMap<number, ModalignError>
}

/** More passes than any run has. */
const farApart = 2 ** 40

export class Windows {
  readonly #samples: PreparedSamples
  readonly #batches: SampleBatches
  readonly #plan: Plan
  /** Absent: the first bad sample ends the run. */
  readonly #onBad: ((error: ModalignError) => void) | undefined
  readonly #reported = new Set<number>()

  constructor(samples: PreparedSamples, batches: SampleBatches, plan: Plan, onBad: ((error: ModalignError) => void) | undefined) {
    this.#samples = samples
    this.#batches = batches
    this.#plan = plan
    this.#onBad = onBad
  }

  /** Samples left out so far. */
  get bad(): number {
    return this.#reported.size
  }

  /** The batches of one update, features included. */
  async window(step: number): Promise<Window> {
    const { batchSize, accumulation, stepsPerEpoch, seed } = this.#plan
    const epoch = Math.floor(step / stepsPerEpoch)
    const indices = sampler(this.#samples.length, { seed, epoch, batchSize: batchSize * accumulation }).batch(step % stepsPerEpoch)
    const batches: Pass[] = []
    const bad = new Map<number, ModalignError>()
    for (let start = 0; start < indices.length; start += batchSize) {
      const items = await this.#items(indices.slice(start, start + batchSize), bad)
      for (const [part, batch] of this.#batches.batches(items).entries())
        batches.push({ ...batch, pass: start / batchSize + part * farApart })
    }
    return { batches, bad }
  }

  reportBad({ bad }: Window): void {
    for (const [sample, error] of bad) {
      if (this.#reported.has(sample)) continue
      this.#reported.add(sample)
      this.#onBad?.(error)
    }
  }

  /** The samples with their features; those without are put into `bad`. */
  async #items(indices: readonly number[], bad: Map<number, ModalignError>): Promise<readonly BatchItem[]> {
    const found = await this.#batches.items(await Promise.all(indices.map((index) => this.#samples.at(index))))
    return found.flatMap((one, place) => {
      if (!(one instanceof Error)) return [one]
      if (this.#onBad === undefined) throw one
      bad.set(indices[place] ?? -1, one)
      return []
    })
  }
}
