/** What is trained, beside the session that trains it: parameters, gradients and optimizer state never leave this thread between steps. */
import { ModalignError, unreachable } from '../errors.ts'
import type { Trainables } from '../graph/parameters.ts'
import type { Session } from '../runtime/session.ts'
import type { NamedTensors, TensorValue } from '../tensors.ts'
import { clipGradientNorm, gradientNorm } from './optimizers/clipping.ts'
import type { NamedArrays, Optimizer, OptimizerState } from './optimizers/optimizer.ts'
import { gradientName } from './step-graph.ts'

export interface Update {
  /** Mean loss over the window's targets: sum of losses over sum of weights. */
  readonly loss: number
  /** Sum of the targets' weights in the window. */
  readonly weight: number
  /** Of the mean loss's gradient, before clipping. */
  readonly gradientNorm: number
}

export interface TrainerSnapshot {
  readonly parameters: Trainables
  readonly optimizer: OptimizerState
}

/** One interface for a trainer in this thread (`LocalTrainer`, browsers too) and one in a worker thread. */
export interface Trainer extends AsyncDisposable {
  /** Adds one micro-batch's loss and gradients to the window. `weight`: sum of its targets' weights. */
  accumulate(feeds: NamedTensors, weight: number, signal?: AbortSignal): Promise<void>
  /** Ends the window: one optimizer step with the gradient of the mean loss over all its targets. @throws TRAINING_LOSS_NOT_FINITE, GRADIENT_NOT_FINITE, TRAINING_WINDOW_EMPTY */
  update(learningRate: number): Promise<Update>
  /** The loss's sum over a batch, without training. */
  loss(feeds: NamedTensors, signal?: AbortSignal): Promise<number>
  /** Copies of everything that a checkpoint needs. */
  snapshot(): Promise<TrainerSnapshot>
  restore(snapshot: TrainerSnapshot): Promise<void>
  /**
   * Gives the session's memory back, repacked weights and arenas included, until the next run opens it again. What is trained stays. For work between two steps that
   * needs room of its own.
   */
  suspend(): Promise<void>
  dispose(): Promise<void>
}

export interface LocalTrainerOptions {
  readonly session: Session
  /** Opens the session anew after it was suspended. Without it, `suspend` keeps the session. */
  readonly reopen?: () => Promise<Session>
  readonly trainables: Trainables
  readonly optimizer: Optimizer
  /** Gradients are scaled down to this norm. Default: no clipping. */
  readonly maxGradientNorm?: number
}

/**
 * Trains in the calling thread: a step graph's session, and the parameters that it gives gradients of.
 *
 * The window: gradients of summed losses are added up, and divided once by the sum of all weights. So k micro-batches of unequal lengths give the full batch's
 * gradient, which a mean of means would not.
 */
export class LocalTrainer implements Trainer {
  /** Undefined while suspended. */
  #session: Session | undefined
  readonly #reopen: (() => Promise<Session>) | undefined
  readonly #optimizer: Optimizer
  readonly #maxGradientNorm: number | undefined
  #trainables: Trainables
  #state: OptimizerState
  #window: { loss: number; weight: number; readonly gradients: NamedArrays }

  constructor({ session, reopen, trainables, optimizer, maxGradientNorm }: LocalTrainerOptions) {
    this.#session = session
    this.#reopen = reopen
    this.#optimizer = optimizer
    this.#maxGradientNorm = maxGradientNorm
    this.#trainables = copied(trainables)
    this.#state = optimizer.init(this.#trainables)
    this.#window = emptyWindow(this.#trainables)
  }

  async accumulate(feeds: NamedTensors, weight: number, signal?: AbortSignal): Promise<void> {
    const session = await this.#opened()
    const outputs = await session.run(
      { ...feeds, ...this.#parameterFeeds() },
      { fetch: ['loss', ...Object.keys(this.#trainables).map((name) => gradientName({ name }))], ...(signal && { signal }) },
    )
    for (const [name, sums] of Object.entries(this.#window.gradients)) {
      const gradient = outputs[gradientName({ name })]?.data
      if (gradient?.length !== sums.length) throw new Error(`internal: the step gave no gradient of ${name}`)
      for (let i = 0; i < sums.length; i++) sums[i] = (sums[i] ?? 0) + Number(gradient[i])
    }
    this.#window.loss += scalarOf(outputs.loss)
    this.#window.weight += weight
  }

  async update(learningRate: number): Promise<Update> {
    const { loss, weight, gradients } = this.#window
    if (weight <= 0)
      throw new ModalignError({ code: 'TRAINING_WINDOW_EMPTY', got: 'no targets since the last update', expected: 'at least one' })
    this.#window = emptyWindow(this.#trainables)
    if (!Number.isFinite(loss)) {
      throw new ModalignError({
        code: 'TRAINING_LOSS_NOT_FINITE',
        got: String(loss),
        expected: 'a finite loss',
        hint: 'lower the learning rate, or look for a bad record in the last batch',
      })
    }
    for (const gradient of Object.values(gradients)) for (let i = 0; i < gradient.length; i++) gradient[i] = (gradient[i] ?? 0) / weight
    const norm = this.#maxGradientNorm === undefined ? gradientNorm(gradients) : clipGradientNorm(gradients, this.#maxGradientNorm)
    this.#state = this.#optimizer.update(this.#trainables, gradients, this.#state, learningRate)
    return { loss: loss / weight, weight, gradientNorm: norm }
  }

  async loss(feeds: NamedTensors, signal?: AbortSignal): Promise<number> {
    const session = await this.#opened()
    const { loss } = await session.run({ ...feeds, ...this.#parameterFeeds() }, { fetch: ['loss'], ...(signal && { signal }) })
    return scalarOf(loss)
  }

  async snapshot(): Promise<TrainerSnapshot> {
    return { parameters: copied(this.#trainables), optimizer: copiedState(this.#state) }
  }

  async restore({ parameters, optimizer }: TrainerSnapshot): Promise<void> {
    this.#trainables = copied(parameters)
    this.#state = copiedState(optimizer)
    this.#window = emptyWindow(this.#trainables)
  }

  async suspend(): Promise<void> {
    if (this.#reopen === undefined) return
    const session = this.#session
    this.#session = undefined
    await session?.dispose()
  }

  async dispose(): Promise<void> {
    await this.#session?.dispose()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  async #opened(): Promise<Session> {
    this.#session ??= await this.#reopen?.()
    return this.#session ?? unreachable('only a trainer that can open its session again suspends it')
  }

  #parameterFeeds(): NamedTensors {
    return Object.fromEntries(
      Object.entries(this.#trainables).map(([name, { dims, data }]) => [name, { dtype: 'float32' as const, dims, data }]),
    )
  }
}

function copied(trainables: Trainables): Trainables {
  return Object.fromEntries(Object.entries(trainables).map(([name, { dims, data }]) => [name, { dims, data: data.slice() }]))
}

function copiedState({ step, slots }: OptimizerState): OptimizerState {
  const copies = Object.entries(slots).map(([slot, arrays]) => [
    slot,
    Object.fromEntries(Object.entries(arrays).map(([name, data]) => [name, data.slice()])),
  ])
  return { step, slots: Object.fromEntries(copies) }
}

function emptyWindow(trainables: Trainables): { loss: number; weight: number; readonly gradients: NamedArrays } {
  return {
    loss: 0,
    weight: 0,
    gradients: Object.fromEntries(Object.entries(trainables).map(([name, { data }]) => [name, new Float32Array(data.length)])),
  }
}

function scalarOf(tensor: TensorValue | undefined): number {
  const [value] = tensor?.data ?? []
  if (value === undefined) throw new Error('internal: the step gave no loss')
  return Number(value)
}
