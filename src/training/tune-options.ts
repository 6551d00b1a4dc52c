/** What can be said to a run of `tune`, and what it says at its end. */
import { z } from 'zod'
import { ModalignError } from '../errors.ts'
import type { DatasetSource } from '../model/contracts.ts'
import type { Device, PassedOver } from '../runtime/session.ts'
import { samplePromptSchema } from './evaluation.ts'
import type { FeatureMemory } from './features.ts'
import { optimizerSchema } from './optimizers/index.ts'
import type { RunListener } from './run-log.ts'

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
  /** Updates between evaluations; one is made after the last update in any case. 0: only that one. Default 500. */
  evaluateEvery: z.int().min(0).optional(),
  /** Held-out samples to evaluate on at most, spread evenly over them. Default: all. */
  evaluationSamples: z.int().min(1).optional(),
  /** Questions to answer at each evaluation, greedily: the answers go into the step's row. */
  prompts: z.array(samplePromptSchema).readonly().optional(),
  /** Longest answer to them, in tokens. Default 64. */
  promptTokens: z.int().min(1).max(65_536).optional(),
  /** Where training runs. Default `auto`. */
  device: z.enum(['auto', 'cpu', 'cuda', 'directml', 'coreml', 'webgpu']).optional(),
  threads: z.int().min(1).optional(),
})
export type TuneSettings = z.infer<typeof tuneOptionsSchema>

export interface TuneOptions extends TuneSettings {
  /** Folder of the run: `metrics.jsonl`, `checkpoints/`, and at the end `model/`. */
  readonly output: string
  /** Called once with the error of each record that was left out (`onBad: 'skip'`), held-out ones too: before training, or when its media are first read. */
  readonly onBadRecord?: (error: ModalignError) => void
  /** Called with the error of each checkpoint that resuming passed over. */
  readonly onDamagedCheckpoint?: (error: ModalignError) => void
  readonly listeners?: readonly RunListener[]
  /** Held-out data: its mean loss is measured as the run goes on. */
  readonly evaluation?: DatasetSource
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

/** @throws TUNE_OPTIONS */
export function parseSettings(given: unknown): TuneSettings {
  const parsed = tuneOptionsSchema.safeParse(given)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  const field = issue?.code === 'unrecognized_keys' ? `/${issue.keys.join(', ')}` : `/${issue?.path.join('/') ?? ''}`
  throw new ModalignError({ code: 'TUNE_OPTIONS', field, expected: issue?.message })
}
