import { stat } from 'node:fs/promises'
import { dirname, join, parse, resolve } from 'node:path'
import { z } from 'zod'
import { validateDataset } from '../../../datasets/index.ts'
import { type ErrorData, excerpt, ModalignError, renderError } from '../../errors.ts'
import { errnoOf, fileError } from '../../io/file-error.ts'
import { adapt } from '../../llm/adapters/adapt.ts'
import { adapterShape, hasAdapters } from '../../llm/adapters/settings.ts'
import { loadLanguageModel } from '../../llm/language-model.ts'
import { type Branch, checkedBranches, modalities } from '../../model/branches.ts'
import type { DatasetSource, Modality, SampleOptions } from '../../model/contracts.ts'
import { compose, type MultimodalModel } from '../../model/multimodal-model.ts'
import { adaptEncoder, trainableSchema } from '../../model/trained-encoder.ts'
import { withoutUndefined } from '../../runtime/session.ts'
import { elementCount } from '../../tensors.ts'
import { samplePromptSchema } from '../../training/evaluation.ts'
import { type FeatureStore, featureDtypes, openFeatureStore } from '../../training/feature-store.ts'
import { FeatureMemory } from '../../training/features.ts'
import { writeLossCurve } from '../../training/loss-curve-files.ts'
import { durationText } from '../../training/progress.ts'
import { type Progress, showProgress } from '../../training/progress-writer.ts'
import { type RunEvent, readRunLog } from '../../training/run-log.ts'
import { type TuneSummary, tune, tuneOptionsSchema } from '../../training/tune.ts'
import { encoderEntrySchema, makeEncoder, makeProjector, projectorEntrySchema } from '../catalogue-entries.ts'
import { pathSchema } from '../catalogues.ts'
import { defineCommand } from '../command.ts'
import { commandText } from '../command-text.ts'
import { ConfigurationError } from '../configuration-error.ts'
import { datasetHelp, datasetSettings, openDataset } from '../dataset-settings.ts'
import { downloading } from '../downloading.ts'
import { exitCodes } from '../exit-codes.ts'
import { type Interrupts, listenForInterrupts } from '../interrupts.ts'
import { closeModel } from '../model-source.ts'
import { modelNameSchema, templateHelp, templateSchema } from '../path-schema.ts'
import { isRecord } from '../run-file.ts'
import { countText } from '../table.ts'
import type { Terminal } from '../terminal.ts'

const branchSettings = z.strictObject({
  encoder: encoderEntrySchema,
  projector: projectorEntrySchema,
  trainable: z.union([z.literal(true), trainableSchema]).optional(),
})

const settings = z.strictObject({
  llm: modelNameSchema,
  template: templateSchema.optional(),
  download: z.boolean().optional(),
  image: branchSettings.optional(),
  audio: branchSettings.optional(),
  video: branchSettings.optional(),
  data: z.strictObject(datasetSettings),
  output: pathSchema,
  ...adapterShape,
  ...tuneOptionsSchema.shape,
  evaluation: z.strictObject(datasetSettings).optional(),
  cache: pathSchema.optional(),
  cacheDtype: z.enum(featureDtypes).default('float16'),
  prompts: z.array(samplePromptSchema.meta({ resolve: resolvedPrompt })).optional(),
})
type Settings = z.output<typeof settings>

/** One entry for each of tune's own settings: a new one without help does not compile. */
const tuningHelp = {
  epochs: 'passes over the data; default 1',
  maxSteps: 'end after this many updates',
  batchSize: 'samples in one pass through the graph; default 8',
  accumulation: 'passes whose gradients make one update; default 1',
  learningRate: 'highest learning rate; default 1e-3',
  schedule: 'default cosine',
  warmupRatio: 'share of the updates over which the rate rises from 0; default 0.03',
  optimizer: 'for example {name: adamw, weightDecay: 0.05}; default AdamW without decay',
  maxGradientNorm: 'gradients longer than this are shortened to it; default 1',
  seed: 'of the order of the data and the first values; default 0',
  maxLength: 'longest sample in tokens; default: what the language model can hold',
  overflow: 'longer samples: error (default) or truncate',
  onBad: 'bad records: fail (default) before anything is loaded, or skip, which counts and reports each',
  evaluateEvery: 'updates between evaluations on the held-out data and prompts; 0: only at the end; default 500',
  evaluationSamples: 'held-out samples to evaluate on at most; default all',
  prompts: 'a question to answer at each evaluation: a text, or {text: ..., image: FILE}',
  promptTokens: 'longest answer to them, in tokens; default 64',
  checkpointEvery: 'updates between checkpoints; 0: only the final model; default 500',
  resume: 'go on from the newest checkpoint in the output folder',
  device: 'where training runs; default auto',
  threads: 'threads on the CPU',
} as const satisfies Record<keyof typeof tuneOptionsSchema.shape, string>

function resolvedPrompt(value: unknown, folder: string): unknown {
  if (!isRecord(value)) return value
  const absolute = (path: unknown): unknown => (typeof path === 'string' ? resolve(folder, path) : path)
  const resolved = modalities.flatMap((modality) => {
    const paths = value[modality]
    return paths === undefined ? [] : [[modality, Array.isArray(paths) ? paths.map(absolute) : absolute(paths)] as const]
  })
  return { ...value, ...Object.fromEntries(resolved) }
}

const kebab = (name: string): string => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)

export const tuneCommand = defineCommand({
  settings,
  help: {
    llm: "the language model's Hugging Face folder, or its name on the Hub",
    template: templateHelp,
    download: 'fetch models that are named, and not in the Hugging Face cache, from the Hub',
    'image-encoder': 'mobilenetV2, {family: onnxImage, model: FILE, output: TENSOR, preprocessing: ...}, or ./FILE.js#EXPORT',
    'image-projector': 'mlp, linear, {name: mlp, depth: 3}, or ./FILE.js#EXPORT',
    'audio-encoder': 'as image-encoder, for sounds: for example {family: whisper, model: FOLDER}',
    'audio-projector': 'stackedMlp, {name: stackedMlp, stack: 10}, or as image-projector',
    'image-trainable':
      'train the image encoder, too: {lora: {rank: 8}}, {unfreeze: [PATTERNS]}, or true: all its weights; safetensors only',
    'audio-trainable': 'as image-trainable',
    'video-trainable': 'as image-trainable',
    'video-encoder': 'as image-encoder, for videos',
    'video-projector': 'as image-projector',
    'data-path': 'a JSON or JSONL file of records',
    'data-root': datasetHelp.root,
    'data-format': datasetHelp.format,
    'evaluation-path': 'held-out records: their mean loss is measured as the run goes on',
    'evaluation-root': datasetHelp.root,
    'evaluation-format': datasetHelp.format,
    'lora-rank': 'train a LoRA of the language model: its rank; default 8, as soon as one of its settings is given',
    'lora-alpha': 'the LoRA is scaled by alpha / rank; default: the rank',
    'lora-targets': 'all-linear (default), or names of layers: [q_proj, v_proj]',
    'lora-dropout': "share of the LoRA's inputs that training drops; default 0",
    'lora-rslora': 'scale by alpha / sqrt(rank) instead',
    'soft-prompt-tokens': 'train so many embeddings in front of every sequence',
    'soft-prompt-text': 'a text whose embeddings they begin as',
    unfreeze: "train the language model's own weights: all, or patterns of names: ['model.layers.29.**', model.norm.weight]",
    cache: 'folder of a feature store: media that it has are not encoded again, others are added',
    'cache-dtype': 'how features are kept there: float32, float16 (default) or int8',
    output: 'folder of the run: metrics.jsonl, checkpoints, loss.svg, loss.png and the model',
    ...Object.fromEntries(Object.entries(tuningHelp).map(([name, help]) => [kebab(name), help])),
  },
  positionals: [{ name: 'RUN_FILE', help: 'a YAML file with any of these settings; flags win over it' }],
  async run(given, { io, terminal, argv }) {
    let progress: Progress | undefined
    let finishing = false
    using interrupts = listenForInterrupts(io, () => {
      const text = finishing ? 'finishing this step and writing a checkpoint; press Ctrl-C again to stop at once' : 'stopping'
      if (progress === undefined) terminal.note(text)
      else progress.message(text)
    })
    await checkOutput(given)
    if (modalities.every((modality) => given[modality] === undefined)) throw noEncoder()
    checkCache(given)
    const dataset = await checkedDataset(given.data, given.onBad, terminal, interrupts.signal)
    const heldOut = given.evaluation && (await checkedDataset(given.evaluation, given.onBad, terminal, interrupts.signal))
    const model = await composeModel(given, terminal)
    try {
      const bad = new BadRecords(terminal)
      const {
        llm: _,
        image: __,
        data: ___,
        evaluation: ____,
        lora: _____,
        softPrompt: ______,
        unfreeze: _______,
        download: ________,
        template: _________,
        cache,
        cacheDtype: dtype,
        output,
        ...options
      } = given
      await using store = cache === undefined ? undefined : await openFeatureStore(cache, { dtype })
      const onStoreError = (error: ModalignError): void => terminal.note(`${renderError(error.details)}; going on without`)
      const listener = (event: RunEvent): void => {
        if (event.type === 'start') {
          finishing = true
          progress = showProgress({ label: 'tune', total: event.totalSteps, skipped: event.firstStep - 1, stream: io.stderr, env: io.env })
        }
        if (event.type !== 'step') terminal.record(event)
      }
      const started = performance.now()
      const run = tune(model, dataset, {
        ...options,
        output,
        listeners: [listener],
        ...(store && {
          features: new FeatureMemory(model, { ...(dataset.root !== undefined && { root: dataset.root }), store, onStoreError }),
        }),
        ...(heldOut && { evaluation: heldOut }),
        onBadRecord: (error) => bad.add(error.details),
        onDamagedCheckpoint: (error) => {
          terminal.record({ type: 'damaged', ...error.details })
          terminal.note(renderError(error.details))
        },
        signal: interrupts.signal,
      })
      let heldOutLoss: number | undefined
      let next = await run.next()
      for (; next.done !== true; next = await run.next()) {
        const { step, loss, learningRate, evaluation, answers = [] } = next.value
        if (evaluation?.loss !== undefined) heldOutLoss = evaluation.loss
        terminal.record({ type: 'step', ...next.value })
        progress?.update(step, [
          ['loss', loss.toFixed(4)],
          ...(heldOutLoss === undefined ? [] : [['held out', heldOutLoss.toFixed(4)] as const]),
          ['lr', learningRate.toExponential(1)],
        ])
        for (const { prompt, answer } of answers) progress?.message(`step ${step}: ${excerpt(prompt)} -> ${excerpt(answer)}`)
      }
      progress?.finish()
      const curve = await drawCurve(output, next.value.steps)
      if (store !== undefined) sayCache(store, terminal)
      conclude({ summary: next.value, given, model, bad, heldOutLoss, curve, seconds: (performance.now() - started) / 1000 }, terminal)
      if (next.value.model !== undefined) return exitCodes.ok
      return sayHowToGoOn(next.value, argv, interrupts, terminal)
    } catch (error) {
      progress?.finish()
      if (interrupts.exitCode === undefined || !isAbort(error)) throw error
      terminal.note(`interrupted before the first step; nothing was trained. Start again with: ${commandText(argv)}`)
      return interrupts.exitCode
    } finally {
      await closeModel(model)
    }
  },
})

function sayCache({ folder, counts }: FeatureStore, terminal: Terminal): void {
  const { hits, written, damaged, firstDamage } = counts
  terminal.record({ type: 'cache', folder, ...counts })
  terminal.note(`feature store: ${countText(hits)} read, ${countText(written)} written: ${folder}`)
  if (damaged > 0) terminal.note(`${damaged} damaged records were computed again (${firstDamage})`)
}

function noEncoder(): ConfigurationError {
  return new ConfigurationError([
    {
      code: 'CONFIG_MISSING',
      field: '--image-encoder',
      got: 'nothing',
      expected: 'an encoder and a projector for images, audio or video',
      hint: 'give --image-encoder and --image-projector, or "image" in the run file',
    },
  ])
}

/** Features of encoders that are trained change from step to step: no store can hold them. @throws FEATURES_NOT_FROZEN */
function checkCache(given: Settings): void {
  const trained = modalities.find((modality) => given[modality]?.trainable !== undefined)
  if (given.cache === undefined || trained === undefined) return
  throw new ModalignError({
    code: 'FEATURES_NOT_FROZEN',
    file: given.cache,
    field: '--cache',
    got: `a feature store, and ${trained} features that change from step to step`,
    expected: 'encoders that are frozen',
    hint: `leave out --cache, or --${trained}-trainable`,
  })
}

/** A run writes into a folder of its own: never over its inputs, never into the root of a disk. @throws CONFIG_OUTPUT */
async function checkOutput({ output, llm, data }: Settings): Promise<void> {
  const folder = resolve(output)
  const inputs = [resolve(llm), resolve(data.root ?? dirname(data.path)), resolve(data.path)]
  const refuse = (got: string, expected: string): ModalignError =>
    new ModalignError({ code: 'CONFIG_OUTPUT', file: output, field: '/output', got, expected })
  if (folder === parse(folder).root) throw refuse('the root of the file system', 'a folder for this run')
  if (inputs.includes(folder)) throw refuse('the folder of an input', 'a folder of its own')
  try {
    if (!(await stat(folder)).isDirectory()) throw refuse('a file', 'a folder')
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw fileError(error, output, 'a folder')
  }
}

/**
 * Reads the whole dataset once before anything is loaded, so that a missing picture shows now and not after an hour. `fail`: tells the first 100 problems and ends;
 * `skip`: gives the dataset without the records that have one.
 */
async function checkedDataset(
  data: Settings['data'],
  onBad: Settings['onBad'],
  terminal: Terminal,
  signal: AbortSignal,
): Promise<DatasetSource> {
  const source = openDataset(data)
  const skips = onBad === 'skip'
  const report = await validateDataset(source, { limit: skips ? Number.MAX_SAFE_INTEGER : 100, signal })
  if (report.problemCount === 0) return source
  if (skips) return withoutRecords(source, report.problems)
  for (const problem of report.problems) {
    terminal.record({ type: 'problem', ...problem })
    terminal.note(renderError(problem))
  }
  const [first] = report.byCode
  throw new ModalignError({
    code: first?.code ?? 'DATASET_RECORD',
    file: data.path,
    record: first?.first.record,
    got: `${report.problemCount === 1 ? '1 problem' : `${countText(report.problemCount)} problems`} in ${countText(report.records)} records`,
    expected: 'none',
    hint: '`modalign data validate` tells them all; --on-bad skip leaves these records out',
  })
}

/** The samples whose records have no problem; each of the others is reported once. */
function withoutRecords(source: DatasetSource, problems: readonly ErrorData[]): DatasetSource {
  const known = new Map(problems.flatMap((problem) => (problem.record === undefined ? [] : [[problem.record, problem] as const])))
  return {
    ...source,
    async *samples({ onBad, signal }: SampleOptions = {}) {
      for await (const sample of source.samples({ ...(onBad && { onBad }), ...(signal && { signal }) })) {
        const problem = sample.origin === undefined ? undefined : known.get(sample.origin.record)
        if (problem === undefined) yield sample
        else if (onBad === undefined) throw new ModalignError(problem)
        else onBad(new ModalignError(problem))
      }
    },
  }
}

async function composeModel(given: Settings, terminal: Terminal): Promise<MultimodalModel> {
  const { llm: folder, template, download, device, threads, seed, lora, softPrompt, unfreeze } = given
  const place = withoutUndefined({ device, threads })
  const named = modalities.flatMap((modality) => {
    const entries = given[modality]
    return entries === undefined ? [] : [{ modality, ...entries }]
  })
  const projectors = await Promise.all(named.map(({ projector }) => makeProjector(projector)))
  const frozen = await loadLanguageModel(folder, { ...place, ...withoutUndefined({ template }), ...downloading(download, terminal) })
  const adapters = withoutUndefined({ lora, softPrompt, unfreeze })
  const llm = hasAdapters(adapters) ? await adapt(frozen, { ...adapters, ...(seed !== undefined && { seed }) }) : frozen
  const branches: Partial<Record<Modality, Branch>> = {}
  try {
    for (const [index, { modality, encoder: entry, trainable }] of named.entries()) {
      const projector = projectors[index]
      if (projector === undefined) continue
      const encoder = await makeEncoder(entry, { ...place, ...downloading(download, terminal) })
      branches[modality] = { encoder, projector }
      if (trainable !== undefined) branches[modality] = { encoder: await adaptEncoder(encoder, { trainable, seed, threads }), projector }
    }
    return await compose({ ...checkedBranches(branches), llm, ...(seed !== undefined && { seed }) })
  } catch (error) {
    await Promise.all(Object.values(branches).map(({ encoder }) => encoder.dispose()))
    throw error
  }
}

/** Records that were left out, by code; the first ones are told as they come. */
class BadRecords {
  readonly #terminal: Terminal
  readonly #byCode = new Map<string, number>()
  #count = 0

  constructor(terminal: Terminal) {
    this.#terminal = terminal
  }

  add(error: ErrorData): void {
    this.#byCode.set(error.code, (this.#byCode.get(error.code) ?? 0) + 1)
    this.#terminal.record({ type: 'bad', ...error })
    if (this.#count++ < 20) this.#terminal.note(renderError(error))
    else if (this.#count === 21) this.#terminal.note('... and more: --json or `modalign data validate` tells them all')
  }

  get byCode(): Readonly<Record<string, number>> {
    return Object.fromEntries(this.#byCode)
  }
}

/** Over all sessions of the run: the rows are in its log. */
async function drawCurve(output: string, steps: number): Promise<{ readonly svg: string; readonly png: string } | undefined> {
  if (steps === 0) return undefined
  const points: { readonly step: number; readonly loss: number }[] = []
  const evaluation: { readonly step: number; readonly loss: number }[] = []
  for await (const { step, loss, evaluation: figures } of readRunLog(join(output, 'metrics.jsonl'))) {
    points.push({ step, loss })
    if (figures?.loss !== undefined) evaluation.push({ step, loss: figures.loss })
  }
  const files = { svg: join(output, 'loss.svg'), png: join(output, 'loss.png') }
  await writeLossCurve(files, points, { evaluation })
  return files
}

interface Outcome {
  readonly summary: TuneSummary
  readonly given: Settings
  readonly model: MultimodalModel
  readonly bad: BadRecords
  readonly heldOutLoss: number | undefined
  readonly curve: { readonly svg: string; readonly png: string } | undefined
  readonly seconds: number
}

/** Exactly what was done and what was not. */
function conclude({ summary, given, model, bad, heldOutLoss, curve, seconds }: Outcome, terminal: Terminal): void {
  const { steps, samples, badRecords, loss, device, passedOver } = summary
  const parameters = Object.values(model.parameters).reduce((sum, { dims }) => sum + elementCount(dims), 0)
  const branches = model.modalities.map((modality) => model.branch(modality))
  const projectors = branches.map(({ projector }) => projector.definition.name).join(' and ')
  const trained = branches.flatMap(({ encoder }) => (encoder.trained === undefined ? [] : [encoder]))
  const encoders = branches
    .map(({ encoder }) => `${encoder.trained === undefined ? '' : 'other weights of '}${encoder.label}`)
    .join(' and ')
  terminal.record({ type: 'summary', ...summary, parameters, badByCode: bad.byCode, lossCurve: curve, seconds })
  const words = Object.entries(bad.byCode).map(([code, count]) => `${countText(count)} x ${code}`)
  terminal.note(
    `trained: the projector ${projectors}, ${countText(parameters)} parameters, ${countText(steps)} steps in ${durationText(seconds)}${steps === 0 ? '' : `, last loss ${loss.toFixed(4)}`}`,
  )
  const { llm } = model
  const adapters = Object.keys(llm.adapters?.settings ?? {})
  if (adapters.length > 0) terminal.note(`trained, too: ${adapters.join(', ')} of the language model ${llm.label}`)
  for (const { label, trained: parts } of trained)
    terminal.note(`trained, too: ${Object.keys(parts?.settings ?? {}).join(', ')} of the encoder ${label}`)
  terminal.note(
    `not trained: the encoder ${encoders} and the ${adapters.length > 0 ? 'other weights of the ' : ''}language model ${llm.label} (frozen)`,
  )
  terminal.note(
    `data: ${countText(samples)} samples of ${given.data.path}; left out: ${badRecords === 0 ? 'none' : `${countText(badRecords)} records (${words.join(', ')})`}`,
  )
  terminal.note(
    `device: ${device}${passedOver.length === 0 ? '' : `; passed over: ${passedOver.map((one) => `${one.device} (${one.reason})`).join(', ')}`}`,
  )
  terminal.note(heldOutLoss === undefined ? 'not done: no evaluation on held-out data' : `loss on held-out data: ${heldOutLoss.toFixed(4)}`)
  if (curve !== undefined) terminal.note(`loss curve: ${curve.svg} and ${curve.png}`)
  if (summary.model !== undefined)
    terminal.note(`model: ${summary.model}. Talk to it: modalign chat --model ${summary.model} --${model.modalities[0] ?? 'image'} FILE`)
}

function sayHowToGoOn({ steps }: TuneSummary, argv: readonly string[], { exitCode }: Interrupts, terminal: Terminal) {
  const again = argv.includes('--resume') ? argv : [...argv, '--resume']
  terminal.note(`interrupted after step ${steps}; no model was written. Go on with: ${commandText(steps === 0 ? argv : again)}`)
  return exitCode ?? exitCodes.interrupted
}

function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === 'AbortError'
}
