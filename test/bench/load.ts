/**
 * How long after `loadLanguageModel` the first forward starts, beside the time that ONNX Runtime alone needs for the same weights: a random Llama of a gigabyte in float32, with a
 * tokenizer of 49,152 tokens, each measurement in a process of its own and the files in the system's cache.
 */
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { z } from 'zod'
import { checkpointWeights } from '../../src/llm/checkpoint-weights.ts'
import { llama, llamaConfig } from '../../src/llm/families/llama.ts'
import { generationGraph } from '../../src/llm/generation/graph.ts'
import type { LoweredModel } from '../../src/onnx/lower.ts'
import { type Checkpoint, openCheckpoint } from '../../src/weights/checkpoint.ts'
import { type LoadJob, modelSchema, ortSchema } from './load-job.ts'
import { writeRandomTokenizer } from './random-tokenizer.ts'
import { writeRandomWeights } from './smollm2.ts'

const run = promisify(execFile)
const child = fileURLToPath(new URL(import.meta.url.endsWith('.ts') ? './load-child.ts' : './load-child.js', import.meta.url))
/** The first forward shall start within so many times ONNX Runtime's own time. */
const limit = 1.3
/** The fastest of so many: others use the machine, too. */
const rounds = 5

const config = {
  model_type: 'llama',
  hidden_size: 1024,
  intermediate_size: 2816,
  num_hidden_layers: 18,
  num_attention_heads: 16,
  num_key_value_heads: 8,
  vocab_size: 49_152,
  max_position_embeddings: 8192,
  rms_norm_eps: 1e-5,
  rope_theta: 100_000,
  tie_word_embeddings: true,
} as const

type Model = z.infer<typeof modelSchema>

export interface LoadFigures extends Readonly<Record<string, number>> {
  readonly checkpointBytes: number
  readonly ortSeconds: number
  /** From `loadLanguageModel` with `preload` to the first forward's start, over `ortSeconds`. */
  readonly ratioToOrt: number
  readonly limit: number
  /** The same without `preload`: everything one after the other. */
  readonly ratioToOrtInTurn: number
  /** From the first call that generates, with a model that is loaded, to the first forward's start. */
  readonly ratioToOrtOfOpening: number
  /** See `modelSchema`. */
  readonly bufferBytes: number
  /** Where weights are not repacked, whatever is not mapped. 0 where the system does not say. */
  readonly anonymousBytes: number
}

export async function benchLoad(): Promise<LoadFigures> {
  const folder = await mkdtemp(join(tmpdir(), 'modalign-bench-'))
  try {
    const checkpointBytes = await writeModel(folder)
    const { bytes, externalRoot = folder } = graphOf(await openCheckpoint(folder))
    const graph = join(folder, 'graph.onnx')
    await writeFile(graph, bytes)
    const model = (preload: boolean, prepacking = true): Promise<z.infer<typeof modelSchema>> =>
      measured({ mode: 'model', folder, preload, prepacking }, modelSchema)
    const mapped = await model(false, false)
    const times = { ort: [] as number[], preload: [] as Model[], inTurn: [] as Model[] }
    for (let round = 0; round < rounds; round++) {
      times.ort.push((await measured({ mode: 'ort', graph, externalRoot }, ortSchema)).seconds)
      times.preload.push(await model(true))
      times.inTurn.push(await model(false))
    }
    const least = (models: readonly Model[], of: (model: Model) => number): number => Math.min(...models.map(of))
    const ortSeconds = Math.min(...times.ort)
    const start = ({ startSeconds }: Model): number => startSeconds
    return {
      checkpointBytes,
      ortSeconds,
      startSeconds: least(times.preload, start),
      tokenSeconds: least(times.preload, ({ tokenSeconds }) => tokenSeconds),
      ratioToOrt: least(times.preload, start) / ortSeconds,
      limit,
      startSecondsInTurn: least(times.inTurn, start),
      ratioToOrtInTurn: least(times.inTurn, start) / ortSeconds,
      openSeconds: least(times.inTurn, ({ openSeconds }) => openSeconds),
      ratioToOrtOfOpening: least(times.inTurn, ({ openSeconds }) => openSeconds) / ortSeconds,
      bufferBytes: Math.max(...[mapped, ...times.preload, ...times.inTurn].map(({ bufferBytes }) => bufferBytes)),
      anonymousBytes: mapped.anonymousBytes ?? 0,
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** @returns the bytes of its weights */
async function writeModel(folder: string): Promise<number> {
  await writeRandomWeights(folder, llamaConfig.parse(config))
  await writeRandomTokenizer(folder, config.vocab_size)
  await writeFile(join(folder, 'config.json'), JSON.stringify(config))
  const { tensors } = await openCheckpoint(folder)
  return [...tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0)
}

/** What a generator opens: the arrangement of the weights is the same on both sides. */
function graphOf(checkpoint: Checkpoint): LoweredModel {
  return generationGraph(llama(llamaConfig.parse(config), checkpointWeights(checkpoint)), { appends: true })
}

async function measured<S extends z.ZodType>(job: LoadJob, schema: S): Promise<z.output<S>> {
  const { stdout } = await run(process.execPath, [...process.execArgv, child, JSON.stringify(job)])
  return schema.parse(JSON.parse(stdout))
}
