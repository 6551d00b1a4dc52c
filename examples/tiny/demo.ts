/**
 * The demonstration: tunes the embedded pair's projector on emoji drawings in some styles, and asks it about drawings in a style that no training step has seen.
 * Everything it prints is computed here and now.
 */
import { join, resolve } from 'node:path'
import { llava } from '../../datasets/llava.ts'
import { ModalignError } from '../../src/errors.ts'
import type { MediaSource } from '../../src/model/contracts.ts'
import type { MultimodalModel } from '../../src/model/multimodal-model.ts'
import { FeatureMemory } from '../../src/training/features.ts'
import { writeLossCurve } from '../../src/training/loss-curve-files.ts'
import { type ProgressStream, showProgress } from '../../src/training/progress-writer.ts'
import type { StepMetrics } from '../../src/training/run-log.ts'
import { tune } from '../../src/training/tune.ts'
import { type LabelledFeatures, linearProbe, meanPooled, nearestNeighbour, normalised } from './baselines.ts'
import { type Concept, heldOutStyle, readConcepts, type Style, styles, trainingStyles } from './drawings.ts'
import { nameQuestion } from './drawings-questions.ts'
import { composePair, pairFile, tuning } from './pair.ts'
import { type WrittenStyle, writeStyle } from './pictures.ts'

export interface DemoOptions {
  /** A new folder for the pictures, the run and the curve. */
  readonly output: string
  /** Default 0. */
  readonly seed?: number
  readonly signal?: AbortSignal
}

/** What the demonstration found. Shares are of all held-out drawings. */
export interface DemoReport {
  /** Answers to "What is this?" that are the drawing's name, letter for letter. */
  readonly heldOutExactMatch: number
  /** The same question without a picture. */
  readonly blindExactMatch: number
  /** The same question with the picture of another record. */
  readonly shuffledExactMatch: number
  /** Nearest training picture by the encoder's mean-pooled features. */
  readonly nearestNeighbour: number
  /** Ridge regression on the same features. */
  readonly linearProbe: number
  readonly seconds: number
  /** Path of the loss curve (SVG; a PNG lies beside it). */
  readonly lossCurve: string
  /** Folder of the tuned model. */
  readonly model: string
  readonly concepts: number
  readonly trainingPictures: number
  readonly steps: number
}

export interface DemoIo {
  /** Text for people, one line or several. */
  say(text: string): void
  /** Where progress is drawn. */
  readonly progress: ProgressStream
}

const shown = 10
const encodedAtOnce = 32
const answeredAtOnce = 128

/**
 * @throws DEPENDENCY_MISSING if the drawings' packages are not installed, OUTPUT_EXISTS, and what tuning throws.
 */
export async function runDemo({ output, seed = 0, signal }: DemoOptions, io: DemoIo): Promise<DemoReport> {
  const started = performance.now()
  const folder = resolve(output)
  const concepts = await readConcepts(pairFile('concepts.json'))
  const drawn: readonly Style[] = [...trainingStyles, heldOutStyle]
  io.say(
    `${concepts.length} concepts drawn in ${drawn.length} styles: ${trainingStyles.map((style) => styles[style].package).join(', ')} to tune on; ${styles[heldOutStyle].package} held out.`,
  )

  const drawing = showProgress({ label: 'draw', total: drawn.length * concepts.length, unit: 'pictures', stream: io.progress })
  let count = 0
  const onDrawn = (): void => drawing.update(++count)
  const data = join(folder, 'data')
  const written: WrittenStyle[] = []
  for (const style of drawn)
    written.push(
      await writeStyle(data, style, concepts, style === heldOutStyle ? 'evaluate' : 'tune', { seed, onDrawn, ...(signal && { signal }) }),
    )
  drawing.finish()

  const model = await composePair(seed)
  try {
    const features = new FeatureMemory(model, { root: data })
    const pictures = written.flatMap(({ records }) => records.map(({ image }) => image))
    const encoding = showProgress({ label: 'encode', total: pictures.length, unit: 'pictures', stream: io.progress })
    await encodeAll(features, pictures, (done) => encoding.update(done), signal)
    encoding.finish()

    const heldOut = heldOutOf(written, concepts)
    const sample = heldOut.filter((_, index) => index % Math.floor(heldOut.length / shown) === 0).slice(0, shown)
    const before = await answers(
      model,
      features,
      sample.map(({ image }) => image),
    )

    const metrics = await tuneOn(
      model,
      features,
      written.filter(({ style }) => style !== heldOutStyle),
      join(folder, 'run'),
      seed,
      io,
      signal,
    )
    const lossCurve = join(folder, 'loss.svg')
    await writeLossCurve({ svg: lossCurve, png: join(folder, 'loss.png') }, metrics, { title: 'Tuning the projector of the tiny pair' })

    const said = await answers(
      model,
      features,
      heldOut.map(({ image }) => image),
    )
    const [blind = ''] = await blindAnswer(model)
    const share = (right: (index: number) => boolean): number => heldOut.filter((_, index) => right(index)).length / heldOut.length
    const train = written.filter(({ style }) => style !== heldOutStyle).flatMap(({ records }) => records.map(({ image }) => image))
    const [probeTrain, probeTest] = await probeSets(
      { features, width: model.branch('image').encoder.width },
      train,
      heldOut.map(({ image }) => image),
      concepts.length,
    )
    const report: DemoReport = {
      heldOutExactMatch: share((index) => said[index] === heldOut[index]?.concept.name),
      blindExactMatch: share((index) => blind === heldOut[index]?.concept.name),
      // Everyone gets the picture of the record half the list further on.
      shuffledExactMatch: share(
        (index) => said[(index + Math.floor(heldOut.length / 2)) % heldOut.length] === heldOut[index]?.concept.name,
      ),
      nearestNeighbour: await nearestNeighbour(probeTrain, probeTest),
      linearProbe: await linearProbe(probeTrain, probeTest),
      seconds: (performance.now() - started) / 1000,
      lossCurve,
      model: join(folder, 'run', 'model'),
      concepts: concepts.length,
      trainingPictures: train.length,
      steps: metrics.length,
    }
    io.say(
      conversationTable(
        sample.map(({ concept }, index) => [
          concept.name,
          before[index] ?? '',
          said[heldOut.findIndex((one) => one.concept === concept)] ?? '',
        ]),
      ),
    )
    io.say(figures(report))
    return report
  } finally {
    await model.dispose()
    await model.llm.dispose()
  }
}

interface HeldOut {
  readonly concept: Concept
  readonly image: string
}

function heldOutOf(written: readonly WrittenStyle[], concepts: readonly Concept[]): readonly HeldOut[] {
  const records = written.find(({ style }) => style === heldOutStyle)?.records ?? []
  return concepts.map((concept, index) => {
    const image = records[index]?.image
    if (image === undefined)
      throw new ModalignError({ code: 'DATASET_DRAWING', got: `no drawing of ${concept.name}`, expected: 'one for every concept' })
    return { concept, image }
  })
}

async function encodeAll(
  features: FeatureMemory,
  pictures: readonly string[],
  onProgress: (done: number) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const batches = Array.from({ length: Math.ceil(pictures.length / encodedAtOnce) }, (_, index) =>
    pictures.slice(index * encodedAtOnce, (index + 1) * encodedAtOnce),
  )
  let done = 0
  // Two at a time: one batch is decoded while the other is encoded.
  const work = async (): Promise<void> => {
    for (let batch = batches.shift(); batch !== undefined; batch = batches.shift()) {
      signal?.throwIfAborted()
      await features.of(batch.map(picture))
      done += batch.length
      onProgress(done)
    }
  }
  await Promise.all([work(), work()])
}

const picture = (source: MediaSource) => ({ type: 'image', source }) as const

async function answers(model: MultimodalModel, features: FeatureMemory, sources: readonly MediaSource[]): Promise<readonly string[]> {
  const all: string[] = []
  for (let start = 0; start < sources.length; start += answeredAtOnce) {
    const batch = sources.slice(start, start + answeredAtOnce)
    const known = await features.of(batch.map(picture))
    all.push(...(await model.answer(batch, known, { prompt: nameQuestion, maxNewTokens: 24 })))
  }
  return all
}

async function blindAnswer(model: MultimodalModel): Promise<readonly string[]> {
  let text = ''
  for await (const piece of model.chat([{ role: 'user', content: [{ type: 'text', text: nameQuestion }] }], { maxNewTokens: 24 }))
    text += piece
  return [text.trim()]
}

async function tuneOn(
  model: MultimodalModel,
  features: FeatureMemory,
  written: readonly WrittenStyle[],
  output: string,
  seed: number,
  io: DemoIo,
  signal: AbortSignal | undefined,
): Promise<readonly StepMetrics[]> {
  const metrics: StepMetrics[] = []
  const sources = written.map(({ file }) => llava(file))
  const dataset = {
    name: 'drawings',
    root: sources[0]?.root ?? '',
    samples: (options: Parameters<(typeof sources)[number]['samples']>[0]) => joined(sources.map((source) => source.samples(options))),
  }
  let progress: ReturnType<typeof showProgress> | undefined
  const run = tune(model, dataset, {
    ...tuning,
    seed,
    output,
    features,
    listeners: [
      (event) => {
        if (event.type === 'start') progress = showProgress({ label: 'tune', total: event.totalSteps, stream: io.progress })
      },
    ],
    ...(signal && { signal }),
  })
  for await (const row of run) {
    metrics.push(row)
    progress?.update(row.step, [['loss', row.loss.toFixed(3)]])
  }
  progress?.finish()
  // Figures of half a run would pass for the demonstration's.
  signal?.throwIfAborted()
  return metrics
}

async function* joined<T>(parts: readonly AsyncIterable<T>[]): AsyncGenerator<T> {
  for (const part of parts) yield* part
}

async function probeSets(
  { features, width }: { readonly features: FeatureMemory; readonly width: number },
  train: readonly string[],
  test: readonly string[],
  concepts: number,
): Promise<readonly [LabelledFeatures, LabelledFeatures]> {
  const pooled = async (sources: readonly string[]): Promise<readonly Float32Array[]> =>
    (await features.of(sources.map(picture))).map(({ data }) => meanPooled(data, width))
  const [trainData, testData] = normalised(await pooled(train), await pooled(test))
  return [
    { width, data: trainData, labels: train.map((_, index) => index % concepts) },
    { width, data: testData, labels: test.map((_, index) => index % concepts) },
  ]
}

function conversationTable(rows: readonly (readonly [string, string, string])[]): string {
  const lines = rows.map(
    ([name, before, after]) =>
      `  ${after === name ? '✓' : ' '} ${name}\n      before: ${before || '(nothing)'}\n      after:  ${after || '(nothing)'}`,
  )
  return `Asked "${nameQuestion}" about drawings in the held-out style:\n${lines.join('\n')}`
}

function figures(report: DemoReport): string {
  const percent = (share: number): string => `${(100 * share).toFixed(1)} %`.padStart(7)
  return [
    `Exact match on "${nameQuestion}" over ${report.concepts} drawings in a style never trained on:`,
    `  ${percent(report.heldOutExactMatch)}  the tuned model`,
    `  ${percent(report.linearProbe)}  a linear probe on the encoder's features (${report.concepts} classes)`,
    `  ${percent(report.nearestNeighbour)}  nearest neighbour on the encoder's features`,
    `  ${percent(report.shuffledExactMatch)}  the tuned model, shown another record's picture`,
    `  ${percent(report.blindExactMatch)}  the tuned model, shown no picture`,
    `${report.seconds.toFixed(0)} s in all. Loss curve: ${report.lossCurve}. Tuned model: ${report.model}`,
  ].join('\n')
}
