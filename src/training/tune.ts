/** Tuning a projector, and what `adapt` and `adaptEncoder` make trainable of the models around it, on instruction data. */
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { ModalignError } from '../errors.ts'
import { nodeFs } from '../io/fs-ops.ts'
import { acquireLock } from '../io/lock.ts'
import { type DropoutField, dropoutFeeds } from '../llm/adapters/dropout.ts'
import type { DatasetSource, MediaSource } from '../model/contracts.ts'
import type { MediumFeatures } from '../model/media-features.ts'
import type { MultimodalModel } from '../model/multimodal-model.ts'
import { saveModel } from '../model/saved-model.ts'
import { permutation } from '../random.ts'
import { withoutUndefined } from '../runtime/session.ts'
import type { MediaPart } from '../text/conversation.ts'
import { newestCheckpoint, type RunCheckpoint, writeCheckpoint } from './checkpoint.ts'
import { Evaluation } from './evaluation.ts'
import { FeatureMemory } from './features.ts'
import { openRunLog, type RunLog, type StepMetrics } from './run-log.ts'
import { SampleBatches, type SampleBatchesOptions } from './sample-batches.ts'
import { noSamples, type Prepared, type PreparedSamples, prepareSamples } from './samples.ts'
import { stepGraph } from './step-graph.ts'
import { parseSettings, type TuneOptions, type TuneSettings, type TuneSummary } from './tune-options.ts'
import { type Plan, planOf, type Window, Windows } from './windows.ts'
import { openTrainer, type WorkerTrainer } from './worker-trainer.ts'

export { type TuneOptions, type TuneSettings, type TuneSummary, tuneOptionsSchema } from './tune-options.ts'

/**
 * Tunes a model's projector, and what is trained of its language model and encoders (see `adapt`, `adaptEncoder`). Yields one row of metrics for each update, the same that go to `metrics.jsonl`; the model's parameters are the trained ones at the end.
 *
 * Loss and gradients are sums over the supervised tokens of the whole accumulation window divided by their number. The same options, data and seed give the same run;
 * a run that was interrupted and resumed ends as if it had not been. Evaluations between the steps change none of that, and need no memory beside the steps' own.
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
  const { output, onBadRecord = () => undefined, onDamagedCheckpoint, listeners = [], evaluation, features, signal, ...given } = options
  const settings = parseSettings(given)
  const onBad = settings.onBad === 'skip' ? onBadRecord : undefined
  const folder = resolve(output)
  await nodeFs.mkdir(folder)
  await using _lock = await acquireLock(join(folder, '.lock'))
  const prepare = (data: DatasetSource, name: string, limit?: number): Promise<Prepared> =>
    prepareSamples(model, data, {
      ...withoutUndefined({ maxLength: settings.maxLength, overflow: settings.overflow, onBad, limit, signal }),
      store: join(folder, name),
    })
  await using prepared = await prepare(dataset, '.samples')
  await using heldOut = evaluation === undefined ? undefined : await prepare(evaluation, '.samples-held-out', settings.evaluationSamples)
  const plan = planOf(prepared.samples.length, settings)
  const fingerprint = runFingerprint(model, prepared, settings)
  const checkpoints = join(folder, 'checkpoints')
  const from = settings.resume === true ? await newestCheckpoint(checkpoints, onDamagedCheckpoint) : undefined
  checkSameRun(from, fingerprint)
  // No signal: an abort ends the run between steps, with a checkpoint, and reading goes on until then.
  const memory = features ?? new FeatureMemory(model, { root: prepared.root })
  if (from === undefined && model.needsStatistics) {
    const encoded = isFrozen(model) ? memory : new FeatureMemory(model, { root: prepared.root, encodeTrained: true })
    model.setStatistics(await statisticsSample(encoded, prepared.samples, plan.seed))
  }
  const graph = stepGraph({ decoder: model.llm.decoder, media: model.mediaPaths })
  const { bytes, externalRoot, externalData } = graph.model
  const place = { device: settings.device ?? 'auto', ...withoutUndefined({ threads: settings.threads }) } as const
  await using trainer = await openTrainer({
    model: withoutUndefined({ bytes, externalRoot, externalData }),
    session: { ...place, memoryPattern: false },
    trainables: from?.snapshot.parameters ?? model.parameters,
    optimizer: settings.optimizer ?? { name: 'adamw', weightDecay: 0 },
    maxGradientNorm: settings.maxGradientNorm ?? 1,
  })
  if (from !== undefined) await trainer.restore(from.snapshot)
  if (settings.resume === true && (from?.logBytes ?? 0) === 0) await keepEarlierRows(folder)
  await using log = await openRunLog(join(folder, 'metrics.jsonl'), { listeners, ...(from && { keepBytes: from.logBytes }) })
  const firstStep = (from?.step ?? 0) + 1
  await log.emit({ type: 'start', firstStep, totalSteps: plan.totalSteps })

  const batching: SampleBatchesOptions = {
    headChunks: graph.headChunks,
    maxLength: settings.maxLength ?? model.llm.decoder.maxPositions,
    overflow: settings.overflow ?? 'error',
  }
  const run = new Windows(prepared.samples, new SampleBatches(model, memory, batching), plan, onBad)
  const evaluator = new Evaluation(model, {
    heldOut: heldOut && {
      samples: heldOut.samples,
      batches: new SampleBatches(model, new FeatureMemory(model, { root: heldOut.root }), batching),
    },
    prompts: settings.prompts ?? [],
    promptTokens: settings.promptTokens ?? 64,
    batchSize: plan.batchSize,
    place,
    onBad,
  })
  const dropout = model.llm.decoder.trained?.dropout
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
      const done = window.batches.length === 0 ? undefined : await update(trainer, plan, step, window, dropout)
      step++
      if (done !== undefined) {
        const metrics = isEvaluated(step, plan, settings, heldOut !== undefined)
          ? { ...done, ...(await evaluated(evaluator, model, trainer, signal)) }
          : done
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
    badRecords: prepared.bad + run.bad + (heldOut?.bad ?? 0) + evaluator.bad,
    loss,
    model: finished ? join(folder, 'model') : undefined,
    device: trainer.device,
    passedOver: trainer.passedOver,
  }
}

/** @throws TUNE_RESUME */
function checkSameRun(from: RunCheckpoint | undefined, fingerprint: string): void {
  if (from === undefined || from.fingerprint === fingerprint) return
  throw new ModalignError({
    code: 'TUNE_RESUME',
    file: from.folder,
    got: 'a checkpoint of a run with other options, data or models',
    expected: 'the same run',
    hint: 'give the options of the first start, or another output folder',
  })
}

/**
 * A run that was killed before its first checkpoint left rows, and nothing to go on from: it begins again, and its rows stay under another name. A finished run's stay where
 * they are, and refuse to be written over.
 */
async function keepEarlierRows(folder: string): Promise<void> {
  const rows = join(folder, 'metrics.jsonl')
  if (!existsSync(rows) || existsSync(join(folder, 'model'))) return
  for (let number = 1; ; number++) {
    const kept = join(folder, `metrics.${number}.jsonl`)
    if (existsSync(kept)) continue
    await nodeFs.rename(rows, kept)
    return
  }
}

async function update(
  trainer: WorkerTrainer,
  plan: Plan,
  step: number,
  { batches }: Window,
  dropout: DropoutField | undefined,
): Promise<StepMetrics> {
  const started = performance.now()
  for (const { feeds, weight, dims, pass } of batches) {
    const masks = dropout && dropoutFeeds(dropout, dims, { seed: plan.seed, pass: step * plan.accumulation + pass })
    await trainer.accumulate({ ...feeds, ...masks }, weight)
  }
  const learningRate = plan.rate(step)
  const { loss, gradientNorm } = await trainer.update(learningRate)
  return {
    step: step + 1,
    epoch: (step + 1) / plan.stepsPerEpoch,
    loss,
    learningRate,
    gradientNorm,
    supervisedTokens: batches.reduce((sum, batch) => sum + batch.targets, 0),
    tokens: batches.reduce((sum, batch) => sum + batch.tokens, 0),
    seconds: (performance.now() - started) / 1000,
  }
}

function isEvaluated(step: number, { totalSteps }: Plan, { evaluateEvery = 500, prompts = [] }: TuneSettings, heldOut: boolean): boolean {
  if (!heldOut && prompts.length === 0) return false
  return step === totalSteps || (evaluateEvery > 0 && step % evaluateEvery === 0)
}

/** What an evaluation adds to a step's row. One that was aborted adds nothing: the run ends in good order. */
async function evaluated(
  evaluation: Evaluation,
  model: MultimodalModel,
  trainer: WorkerTrainer,
  signal: AbortSignal | undefined,
): Promise<Pick<StepMetrics, 'evaluation' | 'answers'>> {
  const { parameters } = await trainer.snapshot()
  model.setParameters(parameters)
  await trainer.suspend()
  try {
    const { figures, answers } = await evaluation.run(signal)
    return { ...(Object.keys(figures).length > 0 && { evaluation: figures }), ...(answers.length > 0 && { answers }) }
  } catch (error) {
    if (signal?.aborted === true && error instanceof Error && error.name === 'AbortError') return {}
    throw error
  }
}

/** Whether no encoder is trained. */
function isFrozen(model: MultimodalModel): boolean {
  return model.modalities.every((modality) => model.branch(modality).encoder.trained === undefined)
}

const mostForStatistics = 1024
const readAtOnce = 32

/** Features of some media, drawn from the whole data. Unusable ones are met again in training, and reported there. */
async function statisticsSample(memory: FeatureMemory, samples: PreparedSamples, seed: number): Promise<readonly MediumFeatures[]> {
  const order = permutation(samples.length, { seed, stream: 'statistics' })
  const sources = new Map<MediaSource, MediaPart>()
  for (let position = 0; position < samples.length && sources.size < mostForStatistics; position++) {
    for (const { part } of (await samples.at(order(position))).media) sources.set(part.source, part)
  }
  const found: MediumFeatures[] = []
  const all = [...sources.values()]
  for (let start = 0; start < all.length; start += readAtOnce) {
    for (const one of await memory.orErrors(all.slice(start, start + readAtOnce))) if (!(one instanceof Error)) found.push(one)
  }
  return found
}

async function checkpoint(trainer: WorkerTrainer, log: RunLog, root: string, step: number, fingerprint: string): Promise<void> {
  if (step === 0) return
  await log.sync()
  await nodeFs.mkdir(root)
  const path = await writeCheckpoint(root, { step, logBytes: log.length, fingerprint }, await trainer.snapshot())
  await log.emit({ type: 'checkpoint', step, path })
}

/** What the next step computes depends on exactly this. */
function runFingerprint(model: MultimodalModel, { fingerprint }: Prepared, settings: TuneSettings): string {
  const {
    resume: _,
    checkpointEvery: _checkpointEvery,
    device: _device,
    threads: _threads,
    evaluateEvery: _evaluateEvery,
    evaluationSamples: _evaluationSamples,
    prompts: _prompts,
    promptTokens: _promptTokens,
    ...deciding
  } = settings
  const branches = model.modalities.map((modality) => {
    const { encoder, projector } = model.branch(modality)
    const { trained } = encoder
    const own = [modality, (trained?.base ?? encoder).fingerprint, projector.definition.name, projector.options]
    return trained === undefined ? own : [...own, trained.settings]
  })
  return createHash('sha256')
    .update(
      JSON.stringify([
        model.llm.identity,
        // A run without adapters has the fingerprint that it had before there were any.
        ...(model.llm.adapters === undefined ? [] : [model.llm.adapters.settings]),
        branches,
        deciding,
        fingerprint,
      ]),
    )
    .digest('hex')
}
