/** Tuning a projector on instruction data, the encoder and the language model frozen. */
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { z } from 'zod'
import { ModalignError, unreachable } from '../errors.ts'
import { nodeFs } from '../io/fs-ops.ts'
import { acquireLock } from '../io/lock.ts'
import type { DatasetSource, MediaSource } from '../model/contracts.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'
import { saveModel } from '../model/saved-model.ts'
import { gridTokens } from '../model/token-grid.ts'
import { permutation } from '../random.ts'
import type { Device, PassedOver } from '../runtime/session.ts'
import { type Batch, type BatchItem, collate, type MediaShape } from './batch.ts'
import { newestCheckpoint, writeCheckpoint } from './checkpoint.ts'
import { FeatureMemory } from './features.ts'
import { optimizerSchema } from './optimizers/index.ts'
import { openRunLog, type RunListener, type RunLog, type StepMetrics } from './run-log.ts'
import { sampler } from './sampler.ts'
import { mediaSources, noSamples, type PreparedSample, prepareSamples } from './samples.ts'
import { type Schedule, schedules, warmupStepsOf } from './schedules.ts'
import { stepGraph } from './step-graph.ts'
import { openTrainer, type WorkerTrainer } from './worker-trainer.ts'

export const tuneOptionsSchema = z.strictObject({
  /** Passes over the data. Default 1; `maxSteps` ends a run earlier. */
  epochs: z.number().positive().max(1e6).optional(),
  maxSteps: z.int().min(1).optional(),
  /** Samples in one pass through the graph. Default 8. */
  batchSize: z.int().min(1).max(65_536).optional(),
  /** Passes whose gradients make one update. Default 1. */
  accumulation: z.int().min(1).max(65_536).optional(),
  /** Peak learning rate. Default 1e-3, LLaVA's for projectors. */
  learningRate: z.number().positive().max(10).optional(),
  /** Default `cosine`. */
  schedule: z.enum(['cosine', 'linear', 'constant']).optional(),
  /** Share of the updates over which the rate rises from 0. Default 0.03. */
  warmupRatio: z.number().min(0).max(1).optional(),
  /** Default AdamW without weight decay. */
  optimizer: optimizerSchema.optional(),
  /** Default 1. */
  maxGradientNorm: z.number().positive().optional(),
  /** Of the order of the data. Default 0. */
  seed: z.int().min(0).optional(),
  /** Longest sample in tokens. Default: what the language model can hold. */
  maxLength: z.int().min(2).optional(),
  /** Longer samples: `error` (default) or `truncate`. */
  overflow: z.enum(['error', 'truncate']).optional(),
  /** Bad records: `fail` (default) or `skip`, which counts and reports each. */
  onBad: z.enum(['fail', 'skip']).optional(),
  /** Updates between checkpoints; 0 writes none but the final model. Default 500. */
  checkpointEvery: z.int().min(0).optional(),
  /** Go on from the newest checkpoint in `output`. Default false. */
  resume: z.boolean().optional(),
  /** Where training runs. Default `auto`. */
  device: z.enum(['auto', 'cpu', 'cuda', 'directml', 'coreml', 'webgpu']).optional(),
  threads: z.int().min(1).optional(),
})
export type TuneSettings = z.infer<typeof tuneOptionsSchema>

export interface TuneOptions extends TuneSettings {
  /** Folder of the run: `metrics.jsonl`, `checkpoints/`, and at the end `model/`. */
  readonly output: string
  /** Called once with the error of each record that was left out (`onBad: 'skip'`): before training, or when its media are first read. */
  readonly onBadRecord?: (error: ModalignError) => void
  /** Called with the error of each checkpoint that resuming passed over. */
  readonly onDamagedCheckpoint?: (error: ModalignError) => void
  readonly listeners?: readonly RunListener[]
  /** Features computed before, with the dataset's root. Default: computed as they are needed. */
  readonly features?: FeatureMemory
  /** Ends the run after the step under way, with a checkpoint to resume from. */
  readonly signal?: AbortSignal
}

export interface TuneSummary {
  readonly steps: number
  readonly samples: number
  readonly badRecords: number
  readonly loss: number
  /** Folder of the saved model; undefined for a run that was interrupted. */
  readonly model: string | undefined
  readonly device: Device
  /** What `auto` did not take, and why. */
  readonly passedOver: readonly PassedOver[]
}

/**
 * Tunes a model's projector. Yields one row of metrics for each update, the same that go to `metrics.jsonl`; the model's parameters are the trained ones at the end.
 *
 * Loss and gradients are sums over the supervised tokens of the whole accumulation window divided by their number. The same options, data and seed give the same run;
 * a run that was interrupted and resumed ends as if it had not been.
 *
 * @throws TUNE_OPTIONS, TUNE_RESUME, CHECKPOINT_DAMAGED, RUN_LOG_EXISTS, OUTPUT_LOCKED, DATASET_*, DATA_*, and what decoding, encoding and training throw.
 * @example
 * for await (const { step, loss } of tune(model, llava('data.json'), { output: 'runs/first', epochs: 1 })) console.log(step, loss)
 */
export async function* tune(
  model: MultimodalModel,
  dataset: DatasetSource,
  options: TuneOptions,
): AsyncGenerator<StepMetrics, TuneSummary> {
  const { output, onBadRecord = () => undefined, onDamagedCheckpoint, listeners = [], features, signal, ...given } = options
  const settings = parseSettings(given)
  const folder = resolve(output)
  await nodeFs.mkdir(folder)
  await using _lock = await acquireLock(join(folder, '.lock'))
  const prepared = await prepareSamples(model, dataset, {
    ...(settings.maxLength !== undefined && { maxLength: settings.maxLength }),
    ...(settings.overflow && { overflow: settings.overflow }),
    ...(settings.onBad === 'skip' && { onBad: onBadRecord }),
    ...(signal && { signal }),
  })
  const plan = planOf(prepared.samples, settings)
  const fingerprint = runFingerprint(model, prepared.samples, settings)
  const checkpoints = join(folder, 'checkpoints')
  const from = settings.resume === true ? await newestCheckpoint(checkpoints, onDamagedCheckpoint) : undefined
  if (from !== undefined && from.fingerprint !== fingerprint) {
    throw new ModalignError({
      code: 'TUNE_RESUME',
      file: from.folder,
      got: 'a checkpoint of a run with other options, data or models',
      expected: 'the same run',
      hint: 'give the options of the first start, or another output folder',
    })
  }
  // No signal: an abort ends the run between steps, with a checkpoint, and reading goes on until then.
  const memory = features ?? new FeatureMemory(model, { root: prepared.root })
  if (from === undefined && model.needsStatistics) model.setStatistics(await statisticsSample(memory, prepared.samples, plan.seed))
  const graph = stepGraph({ decoder: model.llm.decoder, media: [model.mediaPath] })
  await using trainer = await openTrainer({
    model: {
      bytes: graph.model.bytes,
      ...(graph.model.externalRoot !== undefined && { externalRoot: graph.model.externalRoot }),
      ...(graph.model.externalData && { externalData: graph.model.externalData }),
    },
    session: {
      device: settings.device ?? 'auto',
      memoryPattern: false,
      ...(settings.threads !== undefined && { threads: settings.threads }),
    },
    trainables: from?.snapshot.parameters ?? model.parameters,
    optimizer: settings.optimizer ?? { name: 'adamw', weightDecay: 0 },
    maxGradientNorm: settings.maxGradientNorm ?? 1,
  })
  if (from !== undefined) await trainer.restore(from.snapshot)
  // A run that was killed before its first checkpoint left rows, and nothing to go on from: it begins again. A finished one is kept.
  if (settings.resume === true && (from?.logBytes ?? 0) === 0 && !existsSync(join(folder, 'model')))
    await rm(join(folder, 'metrics.jsonl'), { force: true })
  await using log = await openRunLog(join(folder, 'metrics.jsonl'), { listeners, ...(from && { keepBytes: from.logBytes }) })
  const firstStep = (from?.step ?? 0) + 1
  await log.emit({ type: 'start', firstStep, totalSteps: plan.totalSteps })

  const run = new Run(model, prepared.samples, memory, plan, trainer, graph.headChunks, settings.onBad === 'skip' ? onBadRecord : undefined)
  let loss = Number.NaN
  let step = firstStep - 1
  try {
    let next = step < plan.totalSteps ? run.window(step) : undefined
    while (step < plan.totalSteps && next !== undefined && signal?.aborted !== true) {
      const window = await next
      next = step + 1 < plan.totalSteps ? run.window(step + 1) : undefined
      // Its failure is met when it is awaited, after this step.
      next?.catch(() => undefined)
      run.reportBad(window)
      // A window of which nothing is left changes nothing and has no row.
      const metrics = window.batches.length === 0 ? undefined : await run.step(step, window)
      step++
      if (metrics !== undefined) {
        loss = metrics.loss
        await log.emit({ type: 'step', metrics })
        yield metrics
      }
      if (settings.checkpointEvery !== 0 && step % (settings.checkpointEvery ?? 500) === 0 && step < plan.totalSteps)
        await checkpoint(trainer, log, checkpoints, step, fingerprint)
    }
    if (step >= plan.totalSteps && log.length === 0) throw noSamples(dataset.name, prepared.bad + run.bad)
  } catch (error) {
    await log.emit({ type: 'end', step, reason: 'failed' })
    throw error
  }
  const finished = step >= plan.totalSteps
  const { parameters } = await trainer.snapshot()
  model.setParameters(parameters)
  if (finished) await saveModel(model, join(folder, 'model'))
  else await checkpoint(trainer, log, checkpoints, step, fingerprint)
  await log.emit({ type: 'end', step, reason: finished ? 'finished' : 'aborted' })
  return {
    steps: step,
    samples: prepared.samples.length,
    badRecords: prepared.bad + run.bad,
    loss,
    model: finished ? join(folder, 'model') : undefined,
    device: trainer.device,
    passedOver: trainer.passedOver,
  }
}

const mostForStatistics = 1024
const readAtOnce = 32

/** Features of some media, drawn from the whole data. Unusable ones are met again in training, and reported there. */
async function statisticsSample(memory: FeatureMemory, samples: readonly PreparedSample[], seed: number): Promise<readonly Float32Array[]> {
  const order = permutation(samples.length, { seed, stream: 'statistics' })
  const sources = new Set<MediaSource>()
  for (let position = 0; position < samples.length && sources.size < mostForStatistics; position++) {
    const sample = samples[order(position)]
    if (sample !== undefined) for (const source of mediaSources(sample)) sources.add(source)
  }
  const found: Float32Array[] = []
  const all = [...sources]
  for (let start = 0; start < all.length; start += readAtOnce) {
    for (const one of await memory.orErrors(all.slice(start, start + readAtOnce))) if (one instanceof Float32Array) found.push(one)
  }
  return found
}

/** How the steps of a run lie over its data. */
interface Plan {
  readonly batchSize: number
  readonly accumulation: number
  readonly stepsPerEpoch: number
  readonly totalSteps: number
  readonly seed: number
  readonly rate: Schedule
}

function planOf(samples: readonly PreparedSample[], settings: TuneSettings): Plan {
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
  const stepsPerEpoch = Math.ceil(samples.length / (batchSize * accumulation))
  const totalSteps = Math.min(Math.max(1, Math.round(epochs * stepsPerEpoch)), maxSteps ?? Number.POSITIVE_INFINITY)
  const rate = schedules[schedule]({ peak: learningRate, warmupSteps: warmupStepsOf(warmupRatio, totalSteps), totalSteps })
  return { batchSize, accumulation, stepsPerEpoch, totalSteps, seed, rate }
}

/** The passes of one update. */
interface Window {
  readonly batches: readonly Batch[]
  /** Samples left out, because a medium of theirs cannot be used. */
  readonly bad: ReadonlyMap<PreparedSample, ModalignError>
}

class Run {
  readonly #samples: readonly PreparedSample[]
  readonly #features: FeatureMemory
  readonly #plan: Plan
  readonly #trainer: WorkerTrainer
  readonly #media: readonly MediaShape[]
  readonly #headChunks: number
  /** Absent: the first bad sample ends the run. */
  readonly #onBad: ((error: ModalignError) => void) | undefined
  readonly #reported = new Set<PreparedSample>()

  constructor(
    model: MultimodalModel,
    samples: readonly PreparedSample[],
    features: FeatureMemory,
    plan: Plan,
    trainer: WorkerTrainer,
    headChunks: number,
    onBad: ((error: ModalignError) => void) | undefined,
  ) {
    this.#samples = samples
    this.#features = features
    this.#plan = plan
    this.#trainer = trainer
    this.#headChunks = headChunks
    this.#media = [{ modality: 'image', tokens: gridTokens(model.grid), width: model.image.encoder.width, tokensOut: model.imageTokens }]
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
    const batches: Batch[] = []
    const bad = new Map<PreparedSample, ModalignError>()
    for (let start = 0; start < indices.length; start += batchSize) {
      const items = await this.#items(
        indices.slice(start, start + batchSize).map((index) => this.#sample(index)),
        bad,
      )
      if (items.length > 0) batches.push(collate(items, { media: this.#media, headChunks: this.#headChunks }))
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
  async #items(samples: readonly PreparedSample[], bad: Map<PreparedSample, ModalignError>): Promise<readonly BatchItem[]> {
    const found = await this.#features.orErrors(samples.flatMap(mediaSources))
    let used = 0
    return samples.flatMap((sample) => {
      const own = found.slice(used, used + sample.media.length)
      used += own.length
      const features = own.filter((one) => one instanceof Float32Array)
      if (features.length === own.length) return { ...sample, features: features.map((data) => ({ modality: 'image' as const, data })) }
      const error = inRecord(sample, own)
      if (this.#onBad === undefined) throw error
      bad.set(sample, error)
      return []
    })
  }

  async step(step: number, { batches }: Window): Promise<StepMetrics> {
    const started = performance.now()
    for (const { feeds, weight } of batches) await this.#trainer.accumulate(feeds, weight)
    const learningRate = this.#plan.rate(step)
    const { loss, gradientNorm } = await this.#trainer.update(learningRate)
    return {
      step: step + 1,
      epoch: (step + 1) / this.#plan.stepsPerEpoch,
      loss,
      learningRate,
      gradientNorm,
      supervisedTokens: batches.reduce((sum, batch) => sum + batch.targets, 0),
      tokens: batches.reduce((sum, batch) => sum + batch.tokens, 0),
      seconds: (performance.now() - started) / 1000,
    }
  }

  #sample(index: number): PreparedSample {
    const sample = this.#samples[index]
    if (sample === undefined) throw new Error('internal: the sampler left the data')
    return sample
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

async function checkpoint(trainer: WorkerTrainer, log: RunLog, root: string, step: number, fingerprint: string): Promise<void> {
  if (step === 0) return
  await log.sync()
  await nodeFs.mkdir(root)
  const path = await writeCheckpoint(root, { step, logBytes: log.length, fingerprint }, await trainer.snapshot())
  await log.emit({ type: 'checkpoint', step, path })
}

function parseSettings(given: unknown): TuneSettings {
  const parsed = tuneOptionsSchema.safeParse(given)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  const field = issue?.code === 'unrecognized_keys' ? `/${issue.keys.join(', ')}` : `/${issue?.path.join('/') ?? ''}`
  throw new ModalignError({ code: 'TUNE_OPTIONS', field, expected: issue?.message })
}

/** What the next step computes depends on exactly this. */
function runFingerprint(model: MultimodalModel, samples: readonly PreparedSample[], settings: TuneSettings): string {
  const { resume: _, checkpointEvery: __, device: ___, threads: ____, ...deciding } = settings
  const hash = createHash('sha256').update(
    JSON.stringify([model.llm.identity, model.image.encoder.fingerprint, model.image.projector, deciding]),
  )
  for (const sample of samples) {
    hash.update(sample.ids).update(sample.weights)
    for (const source of mediaSources(sample)) hash.update(source)
  }
  return hash.digest('hex')
}
