/** What happens in a run, as events for whoever listens and as rows of `metrics.jsonl`: one row a step, no row twice, however often the run was killed and resumed. */
import { ModalignError } from '../errors.ts'
import { openAppendLog } from '../io/append-log.ts'
import type { ByteSource } from '../io/byte-source.ts'
import type { FsOps } from '../io/fs-ops.ts'
import type { JsonObject, JsonValue } from '../io/json.ts'
import { readJsonl } from '../io/jsonl-log.ts'

/** One row of `metrics.jsonl`. Every number is finite. */
export interface StepMetrics {
  /** Updates done, this one included: the first row says 1. */
  readonly step: number
  /** Passes over the data done, as a fraction. */
  readonly epoch: number
  /** Summed cross-entropy of the step's supervised tokens divided by their number, in nats. */
  readonly loss: number
  readonly learningRate: number
  /** Norm of all gradients before clipping. */
  readonly gradientNorm: number
  /** Tokens that the loss was taken over. */
  readonly supervisedTokens: number
  /** Tokens that went through the model, media included, padding excluded. */
  readonly tokens: number
  /** Wall-clock time of the step. The only field that differs between two equal runs. */
  readonly seconds: number
  /** Figures of an evaluation made after this step. */
  readonly evaluation?: Readonly<Record<string, number>>
  /** Answers to the run's prompts after this step. */
  readonly answers?: readonly PromptAnswer[]
}
export interface PromptAnswer {
  readonly prompt: string
  readonly answer: string
}

export type RunEvent =
  | { readonly type: 'start'; readonly firstStep: number; readonly totalSteps: number }
  | { readonly type: 'step'; readonly metrics: StepMetrics }
  | { readonly type: 'checkpoint'; readonly step: number; readonly path: string }
  | { readonly type: 'end'; readonly step: number; readonly reason: 'finished' | 'aborted' | 'failed' }

export type RunListener = (event: RunEvent) => void

export interface RunLog extends AsyncDisposable {
  readonly path: string
  /** Bytes of complete rows: what a checkpoint records, and what `keepBytes` takes on resuming. */
  readonly length: number
  /** Writes the row of a step, then tells the listeners. Other events are only told. */
  emit(event: RunEvent): Promise<void>
  /** Returns when all rows are on stable storage; to be called before a checkpoint that records `length`. */
  sync(): Promise<void>
  close(): Promise<void>
}

export interface RunLogOptions {
  /** Rows to keep, as the checkpoint recorded them in bytes; what lies behind is cut off. Default 0: a new run, whose file must not exist or be empty. */
  readonly keepBytes?: number
  readonly listeners?: readonly RunListener[]
  readonly fs?: FsOps
}

/**
 * Opens the log of a run.
 *
 * @throws ModalignError `RUN_LOG_EXISTS` (a new run over the rows of another), `RUN_LOG_MISMATCH` (the file is not the one the checkpoint knew), and what
 * `openAppendLog` throws. `emit` throws `METRIC_NOT_FINITE` for a step with NaN or infinity in it, which is then not written.
 * @example
 * await using log = await openRunLog('runs/first/metrics.jsonl', { listeners: [(event) => console.error(event.type)] })
 * await log.emit({ type: 'start', firstStep: 1, totalSteps: 100 })
 */
export async function openRunLog(path: string, { keepBytes = 0, listeners = [], fs }: RunLogOptions = {}): Promise<RunLog> {
  const log = await openAppendLog(path, (source) => checkKept(source, path, keepBytes), fs === undefined ? {} : { fs })
  const encoder = new TextEncoder()
  return {
    path: log.path,
    get length() {
      return log.length
    },
    async emit(event) {
      if (event.type === 'step') {
        checkFinite(event.metrics)
        await log.append(encoder.encode(`${JSON.stringify(event.metrics)}\n`))
      }
      for (const listener of listeners) listener(event)
    },
    sync: () => log.sync(),
    close: () => log.close(),
    [Symbol.asyncDispose]: () => log.close(),
  }
}

async function checkKept(source: ByteSource, path: string, keepBytes: number): Promise<number> {
  if (keepBytes === 0 && source.size > 0) {
    const hint = 'resume that run, or write this one to another folder'
    throw new ModalignError({
      code: 'RUN_LOG_EXISTS',
      file: path,
      got: `${source.size} bytes of an earlier run`,
      expected: 'no file, or an empty one',
      hint,
    })
  }
  if (keepBytes === 0) return 0
  const hint = 'restore the file that belongs to the checkpoint'
  if (keepBytes > source.size) {
    throw new ModalignError({
      code: 'RUN_LOG_MISMATCH',
      file: path,
      got: `${source.size} bytes`,
      expected: `at least the ${keepBytes} that the checkpoint knows`,
      hint,
    })
  }
  const [last] = await source.read(keepBytes - 1, 1)
  if (last !== 0x0a)
    throw new ModalignError({
      code: 'RUN_LOG_MISMATCH',
      file: path,
      got: `no end of a row at byte ${keepBytes}`,
      expected: 'a newline',
      hint,
    })
  return keepBytes
}

function checkFinite({ evaluation, answers: _, ...metrics }: StepMetrics): void {
  for (const [name, value] of [...Object.entries(metrics), ...Object.entries(evaluation ?? {})]) {
    if (Number.isFinite(value)) continue
    const hint = 'the run cannot go on from here: resume from the last checkpoint with a lower learning rate'
    throw new ModalignError({
      code: 'METRIC_NOT_FINITE',
      field: `/${name}`,
      got: `${value} at step ${metrics.step}`,
      expected: 'a finite number',
      hint,
    })
  }
}

/**
 * The rows of a `metrics.jsonl`, checked.
 *
 * @throws ModalignError `RUN_LOG_ROW`, and what `readJsonl` throws
 * @example
 * for await (const { step, loss } of readRunLog('runs/first/metrics.jsonl')) console.log(step, loss)
 */
export async function* readRunLog(path: string): AsyncGenerator<StepMetrics, void, undefined> {
  for await (const { value, line, record } of readJsonl(path)) {
    const fail = (field: string, expected: string): never => {
      throw new ModalignError({ code: 'RUN_LOG_ROW', file: path, line, record, field, expected })
    }
    if (!isObject(value)) return fail('', 'an object')
    const row = value
    const number = (name: string): number => {
      const found = row[name]
      return typeof found === 'number' ? found : fail(`/${name}`, 'a number')
    }
    const { evaluation, answers } = row
    if (evaluation !== undefined && !isNumbers(evaluation)) return fail('/evaluation', 'an object of numbers')
    if (answers !== undefined && !isAnswers(answers)) return fail('/answers', 'a list of prompts and answers')
    yield {
      step: number('step'),
      epoch: number('epoch'),
      loss: number('loss'),
      learningRate: number('learningRate'),
      gradientNorm: number('gradientNorm'),
      supervisedTokens: number('supervisedTokens'),
      tokens: number('tokens'),
      seconds: number('seconds'),
      ...(evaluation !== undefined && { evaluation }),
      ...(answers !== undefined && { answers }),
    }
  }
}

function isObject(value: JsonValue): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isNumbers(value: JsonValue): value is Readonly<Record<string, number>> {
  return isObject(value) && Object.values(value).every((item) => typeof item === 'number')
}

function isAnswers(value: JsonValue): value is readonly (JsonObject & PromptAnswer)[] {
  return (
    Array.isArray(value) &&
    value.every((item: JsonValue) => isObject(item) && typeof item.prompt === 'string' && typeof item.answer === 'string')
  )
}
