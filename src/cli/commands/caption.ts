import { createHash } from 'node:crypto'
import { dirname, relative, resolve } from 'node:path'
import { z } from 'zod'
import { type ErrorData, errorData, ModalignError, unreachable } from '../../errors.ts'
import type { JsonObject } from '../../io/json.ts'
import { type CaptionItem, type CaptionOutcome, type CaptionSummary, captionJob } from '../../jobs/caption.ts'
import { type InputItem, type Inputs, inputItems } from '../../jobs/inputs.ts'
import type { GenerationOptions } from '../../llm/generation/generate-tokens.ts'
import { createImageDecoder } from '../../media/child-decoder.ts'
import { modalities } from '../../model/branches.ts'
import type { Modality } from '../../model/contracts.ts'
import { encodeMedia, type PreparedMedium, prepareMedium } from '../../model/media-features.ts'
import { localReader, type MediaReader } from '../../model/media-reader.ts'
import type { MultimodalModel } from '../../model/multimodal-model.ts'
import { type Progress, showProgress } from '../../training/progress-writer.ts'
import { pathSchema } from '../catalogues.ts'
import { defineCommand } from '../command.ts'
import { commandText } from '../command-text.ts'
import { exitCodeOf, exitCodes } from '../exit-codes.ts'
import { generationHelp, generationOptionsOf, generationSettings } from '../generation-settings.ts'
import { listenForInterrupts } from '../interrupts.ts'
import { extensionsOf, units } from '../media-kinds.ts'
import { closeModel, modelHelp, modelSettings, openModel } from '../model-source.ts'
import type { Terminal } from '../terminal.ts'

const settings = z.strictObject({
  input: pathSchema,
  output: pathSchema,
  format: z.enum(['jsonl', 'csv', 'txt']).default('jsonl'),
  prompt: z.string().min(1).default('What is this?'),
  onBad: z.enum(['fail', 'skip']).default('skip'),
  maxBad: z.union([z.int().min(0), z.string().regex(/^\d+(\.\d+)?%?$/, 'a number of items, or a share such as 5%')]).default(0),
  retryBad: z.boolean().default(false),
  batchSize: z.int().min(1).max(4096).default(8),
  modality: z.enum(modalities).default('image'),
  root: pathSchema.optional(),
  ...modelSettings,
  ...generationSettings,
})

export const captionCommand = defineCommand({
  settings,
  help: {
    output: 'where the rows go; for txt a folder of one file a picture',
    format: 'default jsonl',
    prompt: 'what is asked about each picture; default "What is this?"',
    'on-bad': 'a picture that cannot be used ends the job, or becomes a row with its error (default skip)',
    'max-bad': 'exit with 1 if more items than this are bad: a number or a share such as 5%; default 0',
    'retry-bad': 'try pictures again that an earlier run recorded as bad',
    modality: 'what the input holds: image (default), audio or video',
    'batch-size': 'pictures at a time; default 8',
    root: 'the folder that no picture may lie outside of; default: where the input begins',
    ...modelHelp,
    ...generationHelp,
  },
  positionals: [
    {
      name: 'INPUT',
      setting: 'input',
      help: 'a folder, a pattern such as photos/**/*.jpg, a JSONL file with "source" or "image", or one picture',
    },
  ],
  async run(given, { io, terminal, argv }) {
    const generation = generationOptionsOf(given)
    const inputs = await inputItems(given.input, { root: given.root, extensions: extensionsOf[given.modality] })
    const total = await countItems(inputs)
    await using decoder = createImageDecoder()
    const reader: MediaReader = {
      ...localReader,
      image: (source: string | Uint8Array, { signal }: { readonly signal?: AbortSignal | undefined }) =>
        decoder.decode(source, { ...(signal && { signal }) }),
    }
    const model = await openModel(given, terminal, reader)
    const { modality } = given
    let progress: Progress | undefined
    using interrupts = listenForInterrupts(io, () => progress?.message('stopping after this batch; press Ctrl-C again to stop at once'))
    try {
      progress = showProgress({ label: 'caption', total, unit: units[modality], stream: io.stderr, env: io.env })
      const summary = await captionJob<InputItem>({
        items: inputs.items,
        caption: (batch, { signal }) => captionBatch(model, batch, { modality, prompt: given.prompt, generation, signal }),
        output: { path: given.output, format: given.format },
        spec: jobSpec(model, inputs, given, generation),
        batchSize: given.batchSize,
        onBad: given.onBad,
        retryBad: given.retryBad,
        signal: interrupts.signal,
        onProgress: ({ captioned, bad }) => progress?.update(captioned + bad, bad > 0 ? [['bad', String(bad)]] : []),
      })
      progress.finish()
      conclude(summary, given, terminal, argv)
      if (summary.status === 'stopped') return interrupts.exitCode ?? exitCodes.interrupted
      return isAbove(given.maxBad, summary) ? exitCodes.skipped : exitCodes.ok
    } finally {
      progress?.finish()
      await closeModel(model)
    }
  },
})

async function countItems({ items }: Inputs): Promise<number> {
  let count = 0
  for await (const _ of items) count++
  return count
}

interface Asked {
  readonly modality: Modality
  readonly prompt: string
  readonly generation: GenerationOptions
  readonly signal: AbortSignal
}

/** Each medium is decoded and prepared by itself, so that a bad one costs nobody else anything; those that are left go through the models together. */
async function captionBatch(
  model: MultimodalModel,
  batch: readonly InputItem[],
  { modality, prompt, generation, signal }: Asked,
): Promise<readonly CaptionOutcome[]> {
  const prepared = await Promise.all(batch.map((item) => prepare(model, item, modality, signal)))
  const good = prepared.flatMap((one) => ('medium' in one ? [one] : []))
  if (good.length === 0) return prepared.flatMap((one) => ('error' in one ? [one] : []))
  const features = await encodeMedia(
    (type) => model.branch(type),
    good.map(({ medium }) => medium),
    signal,
  )
  // Random numbers hang on the item, so that no caption depends on its batch.
  const captions = await model.answer(
    good.map(({ item }) => item.id),
    features,
    { ...generation, modality, prompt, signal },
  )
  const remaining = captions.values()
  return prepared.map((one) => ('error' in one ? one : { caption: remaining.next().value ?? unreachable('fewer captions than pictures') }))
}

type Prepared = { readonly item: CaptionItem; readonly medium: PreparedMedium } | { readonly error: ErrorData }

async function prepare(model: MultimodalModel, item: InputItem, type: Modality, signal: AbortSignal): Promise<Prepared> {
  try {
    return {
      item,
      medium: await prepareMedium(model.branch(type), model.reader, { type, source: item.path }, { signal }, model.llm.tokenizer),
    }
  } catch (error) {
    const data = errorData(error)
    // What is wrong with the machine is no fault of the picture.
    if (
      !(error instanceof ModalignError) ||
      (exitCodeOf(data) === exitCodes.environment && data.code !== 'FFMPEG_MISSING' && data.code !== 'FILE_PERMISSION')
    )
      throw error
    return { error: { ...data, file: item.source } }
  }
}

/** Everything that the captions depend on. The batch size is not among it. */
function jobSpec(
  model: MultimodalModel,
  inputs: Inputs,
  { output, prompt, modality }: { readonly output: string; readonly prompt: string; readonly modality: Modality },
  generation: GenerationOptions,
): JsonObject {
  const hash = createHash('sha256')
  for (const [name, { dims, data }] of Object.entries(model.parameters)) hash.update(`${name} ${dims.join()}`).update(data)
  const { encoder, projector } = model.branch(modality)
  const json: z.ZodType<JsonObject> = z.record(z.string(), z.json())
  return {
    prompt,
    input: relative(dirname(resolve(output)), inputs.root).replaceAll('\\', '/'),
    kind: inputs.kind,
    encoder: encoder.fingerprint,
    languageModel: model.llm.identity,
    projector: { name: projector.definition.name, parameters: hash.digest('hex') },
    generation: json.parse(Object.fromEntries(Object.entries(generation).filter(([, value]) => value !== undefined))),
  }
}

/** Whether more than the allowed number or share of the items is bad. */
function isAbove(maxBad: number | string, { bad, total }: CaptionSummary): boolean {
  const text = String(maxBad)
  const value = Number(text.replace('%', ''))
  return text.endsWith('%') ? bad * 100 > value * total : bad > value
}

function conclude(summary: CaptionSummary, { output }: { readonly output: string }, terminal: Terminal, argv: readonly string[]): void {
  const { status, total, captioned, bad, resumed, left, missing, byCode, tornBytes } = summary
  terminal.record({ type: 'summary', output, ...summary })
  terminal.note(`${captioned} of ${total} captioned${resumed > 0 ? ` (${resumed} rows were there already)` : ''}, ${bad} bad: ${output}`)
  for (const [code, count] of Object.entries(byCode)) terminal.note(`  ${count} x ${code}`)
  if (missing > 0) terminal.note(`${missing} rows are of items that the input does not have any more; they were kept`)
  if (tornBytes > 0) terminal.note(`${tornBytes} bytes of a half-written row of an earlier run were cut off`)
  if (status === 'stopped') terminal.note(`${left} items are left. Go on with: ${commandText(argv)}`)
}
